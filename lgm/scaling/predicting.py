"""What a family's fits predict, each quantity on its own evidence, and one family against another.

A prediction may be well known where no exponent is: along the valley of equally good laws they trade places and the
loss that they give stays. So what is asked of a quantity is how far it spreads over draws and methods, not of what it
was made.
"""

from typing import Any

import numpy as np

from lgm.scaling import bootstrap, laws, sensitivity
from lgm.scaling.families import Family, Settings

LOOSE = 30.0  # highest over lowest end of an interval of N or D that is not worth stating
LOOSE_LOSS = 1.5  # of a loss
NEVER = 1e6  # times the compute: as good as never


def budget(family: Family, settings: Settings, flops: float) -> dict:
    """Best N and D for a budget in FLOPs, the loss there, 95% intervals, how far out of the data it is, or why not."""
    unit = family.runs.unit
    nothing = {"budget": flops, "params": None, unit: None, "loss": None, "intervals": {}, "methods": {}, "refused": {},
               "reason": family.refusal(settings.method)}
    if nothing["reason"]:
        return nothing
    runs = family.runs
    value, drawn = best(family, settings, flops)
    by_method = {name: laws.optimum(e.fit.law, family.cost, flops, settings.max_params)
                 for name, e in _converged(family).items()}
    found = {name: _state(value[i], drawn[i], {key: float(part[i]) for key, part in by_method.items()}, family, loose)
             for i, (name, loose) in enumerate((("params", LOOSE), (unit, LOOSE), ("loss", LOOSE_LOSS)))}
    beyond = {"flops": flops / float(runs.flops.max()), "params": float(value[0]) / float(runs.n.max()),
              unit: float(value[1]) / float(runs.d.max())}
    return nothing | _row(family, settings, found, drawn[2]) | {"beyond_data": beyond}


def best(family: Family, settings: Settings, flops) -> tuple[np.ndarray, np.ndarray]:
    """(N, D, loss) [3] of the lowest loss at a budget by the law that predicts, and of its draws [3, draws]; with
    budgets [n] for `flops` the same of each [3, n] and [3, draws, n]."""
    if family.form is not None:
        value, drawn = family.form.optimum(family.cost, flops, settings.max_params)
        return (value, drawn) if np.ndim(flops) else (value[:, 0], drawn[..., 0])
    estimate = family.estimates[settings.method]
    each = lambda law: np.stack(laws.optimum(law[..., None, :] if np.ndim(flops) else law, family.cost, flops,
                                             settings.max_params))
    return each(estimate.fit.law), each(estimate.draws)


def loss(family: Family, settings: Settings, n, d) -> tuple[np.ndarray, np.ndarray]:
    """The loss at N and D by the law that predicts, and of its draws [draws, ...]."""
    if family.form is not None:
        return family.form.loss(n, d)
    estimate = family.estimates[settings.method]
    return laws.loss(estimate.fit.law, n, d), laws.loss(estimate.draws[(..., *[None] * np.ndim(d), slice(None))], n, d)


def point(family: Family, settings: Settings, n: float, d: float) -> dict:
    """The loss of a run of n parameters and d images or tokens, its interval and that of one run, or why not."""
    unit = family.runs.unit
    nothing = {"params": n, unit: d, "loss": None, "intervals": {}, "methods": {}, "refused": {},
               "reason": family.reason}
    # along a valley there is no end to come to, and the loss is the same
    if not (nothing["reason"] or family.unidentified or family.form):
        nothing["reason"] = family.estimates[settings.method].fit.convergence.reason
    if nothing["reason"]:
        return nothing
    value, drawn = loss(family, settings, n, d)
    others = {name: float(laws.loss(e.fit.law, n, d)) for name, e in _converged(family).items()}
    return nothing | _row(family, settings, {"loss": _state(value, drawn, others, family, LOOSE_LOSS)}, drawn)


def frontier(family: Family, method: str) -> dict | None:
    """Exponents of N_opt, D_opt and L_opt - E in compute, each with its interval or the reason why it is not stated."""
    estimate = family.estimates[method]
    if family.cost is None or family.unidentified or not estimate.fit.convergence.converged:
        return None
    result = {}
    for name in ("N", "D", "loss"):
        quantity = lambda law, name=name: laws.exponents(law, family.cost)[name]
        low, high = estimate.between(quantity)
        wide = high > 10 * low if name == "loss" else high - low > 0.5
        reason = f"its 95% interval is {low:.2g} to {high:.2g}" if wide else None
        result[name] = {"value": None if wide else float(quantity(estimate.fit.law)),
                        "interval": None if wide else [float(low), float(high)], "reason": reason}
    return result


def _errors(family: Family, settings: Settings) -> np.ndarray:
    return sensitivity.errors(family.runs, family.estimates[settings.method].fit.law)


def _row(family: Family, settings: Settings, found: dict, losses: np.ndarray) -> dict:
    """The stated of `found`, and of one run's loss."""
    result = {"intervals": {}, "methods": {}, "refused": {}}
    for name, (value, interval, others, reason) in found.items():
        result["methods"][name] = others
        result[name] = None if reason else value
        if reason:
            result["refused"][name] = reason
        else:
            result["intervals"][name] = interval
    if result["loss"] is not None:
        errors = _errors(family, settings) if family.form is None else family.form.errors
        noise = np.exp(sensitivity.scatter(errors, (len(losses),), settings.seed))
        low, high = bootstrap.interval(losses * noise, result["loss"])
        low, high = min(low, result["intervals"]["loss"][0]), max(high, result["intervals"]["loss"][1])
        result["intervals"]["loss_of_one_run"] = [float(low), float(high)]
    unknown = all(result[name] is None for name in found)
    return result | {"reason": next(iter(result["refused"].values())) if unknown else None}


def _converged(family: Family) -> dict:
    return {name: e for name, e in family.estimates.items() if e.fit.convergence.converged or family.unidentified}


def _state(value, drawn: np.ndarray, others: dict, family: Family, loose: float
           ) -> tuple[float, list[float], dict, str | None]:  # fmt: skip
    """Value, interval, the plain law's value by every method, and why it is not stated.

    The interval is that of the draws and, of a plain law, holds the other methods' values too: where they differ by
    more than noise can make them, the law's form is in doubt, and so is what it says.
    """
    low, high = map(float, bootstrap.interval(drawn, value))
    if family.form is None:
        low, high = min(low, *others.values()), max(high, *others.values())
    reason = None
    if not (np.isfinite([low, high]).all() and high <= loose * low):
        reason = f"its 95% interval, {low:.3g} to {high:.3g}, spans a factor above {loose:g}"
    return float(value), [low, high], others, reason


def compare(first: Family, second: Family, settings: Settings, budgets: list[float]) -> dict:
    """Differences of exponents (first minus second) with 95% intervals, which has the lower loss at each budget, and
    how many times the compute of the second the first needs for the second's loss there.

    The families' draws are independent, so that a draw of each makes a draw of the difference.
    """
    result: dict[str, Any] = {"families": [first.runs.family, second.runs.family], "exponents": {}, "budgets": [],
                              "reason": None}
    for family in (first, second):
        reason = family.refusal(settings.method)
        if reason:
            return result | {"reason": f"{family.runs.family}: {reason}"}
    one, two = (family.estimates[settings.method] for family in (first, second))
    for index, name in ((3, "alpha"), (4, "beta")):
        if name in one.refused or name in two.refused or first.form or second.form:
            continue
        a, b = paired(one.draws[:, index], two.draws[:, index], settings.seed)
        difference = float(one.fit.law[index] - two.fit.law[index])
        low, high = bootstrap.interval(a - b, difference)
        result["exponents"][name] = {"difference": difference, "interval": [float(low), float(high)],
                                     "differs": bool(low > 0 or high < 0)}
    for flops in budgets:
        (ours, a), (theirs, b) = (best(family, settings, flops) for family in (first, second))
        a, b = paired(a[2], b[2], settings.seed)
        one, two = float(ours[2]), float(theirs[2])
        low, high = bootstrap.interval(a - b, one - two)
        factor, factors = needed(first, settings, two, b, flops)
        between = bootstrap.interval(np.log(factors), np.log(factor))
        result["budgets"].append({
            "budget": flops, "losses": [one, two], "difference": one - two,
            "interval": [float(low), float(high)], "first_is_lower": float((a < b).mean()),
            "compute": below_never(factor), "compute_interval": [below_never(v) for v in np.exp(between)],
        })
    return result


def paired(a: np.ndarray, b: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws of two families side by side, in an order of no meaning, as many as the fewer."""
    b = b[np.random.default_rng(seed).permutation(len(b))]
    count = min(len(a), len(b))
    return a[:count], b[:count]


def needed(family: Family, settings: Settings, loss: float, losses: np.ndarray, flops: float
           ) -> tuple[float, np.ndarray]:  # fmt: skip
    """How many times `flops` the best runs of a family need to come to a loss, and its draws to draws of the loss;
    NEVER where its E lies above."""
    if family.form is not None:
        return family.form.needed(family.cost, loss, losses, flops, NEVER)

    estimate = family.estimates[settings.method]
    return (float(times(estimate.fit.law, family.cost, loss, flops)),
            times(estimate.draws[: len(losses)], family.cost, losses, flops))


def times(law: np.ndarray, cost: laws.Cost, loss, flops: float) -> np.ndarray:
    """How many times `flops` the best runs of a law [..., 5] need to come to a loss; NEVER where its E lies above."""
    own, floor = laws.optimum(law, cost, flops)[2], np.exp(law[..., 2])
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = ((own - floor) / (loss - floor)) ** (1 / laws.exponents(law, cost)["loss"])
    return np.clip(np.where(loss > floor, factor, NEVER), 1 / NEVER, NEVER)


def below_never(factor: float) -> float | None:
    """A factor of compute, None for never."""
    return float(factor) if factor < 0.99 * NEVER else None
