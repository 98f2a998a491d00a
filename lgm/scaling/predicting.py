"""What a family's fits predict, each quantity on its own evidence, and one family against another.

A prediction may be well known where no exponent is: along the valley of equally good laws they trade places and the
loss that they give stays. So what is asked of a quantity is how far it spreads over draws and methods, not of what it
was made.
"""

from __future__ import annotations

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
    best = lambda part: lambda law: laws.optimum(law, family.cost, flops, settings.max_params)[part]
    found = {"params": _state(family, settings, best(0), LOOSE), unit: _state(family, settings, best(1), LOOSE),
             "loss": _state(family, settings, best(2), LOOSE_LOSS)}
    result = _row(family, settings, found, best(2))
    n, d, _ = laws.optimum(family.estimates[settings.method].fit.law, family.cost, flops, settings.max_params)
    beyond = {"flops": flops / float(runs.flops.max()), "params": float(n) / float(runs.n.max()),
              unit: float(d) / float(runs.d.max())}
    return nothing | result | {"beyond_data": beyond}


def point(family: Family, settings: Settings, n: float, d: float) -> dict:
    """The loss of a run of n parameters and d images or tokens, its interval and that of one run, or why not."""
    unit = family.runs.unit
    nothing = {"params": n, unit: d, "loss": None, "intervals": {}, "methods": {}, "refused": {},
               "reason": family.reason}
    # along a valley there is no end to come to, and the loss is the same
    if not (nothing["reason"] or family.unidentified):
        nothing["reason"] = family.estimates[settings.method].fit.convergence.reason
    if nothing["reason"]:
        return nothing
    loss = lambda law: laws.loss(law, n, d)
    return nothing | _row(family, settings, {"loss": _state(family, settings, loss, LOOSE_LOSS)}, loss)


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


def _row(family: Family, settings: Settings, found: dict, loss) -> dict:
    """The stated of `found`, and of one run's loss."""
    estimate = family.estimates[settings.method]
    result = {"intervals": {}, "methods": {}, "refused": {}}
    for name, (value, interval, others, reason) in found.items():
        result["methods"][name] = others
        result[name] = None if reason else value
        if reason:
            result["refused"][name] = reason
        else:
            result["intervals"][name] = interval
    if result["loss"] is not None:
        noise = np.exp(sensitivity.scatter(family.runs, estimate.fit.law, (len(estimate.draws),), settings.seed))
        low, high = bootstrap.interval(loss(estimate.draws) * noise, loss(estimate.fit.law))
        low, high = min(low, result["intervals"]["loss"][0]), max(high, result["intervals"]["loss"][1])
        result["intervals"]["loss_of_one_run"] = [float(low), float(high)]
    unknown = all(result[name] is None for name in found)
    return result | {"reason": next(iter(result["refused"].values())) if unknown else None}


def _state(family: Family, settings: Settings, quantity, loose: float) -> tuple[float, list[float], dict, str | None]:
    """Value, interval, the value by every method, and why it is not stated.

    The interval is that of the chosen method's draws and holds the other methods' values too: where they differ by more
    than noise can make them, the law's form is in doubt, and so is what it says.
    """
    values = {name: float(quantity(e.fit.law)) for name, e in family.estimates.items()
              if e.fit.convergence.converged or family.unidentified}
    estimate = family.estimates[settings.method]
    low, high = estimate.between(quantity)
    low, high = min(float(low), *values.values()), max(float(high), *values.values())
    reason = None
    if not (np.isfinite([low, high]).all() and high <= loose * low):
        reason = f"its 95% interval, {low:.3g} to {high:.3g}, spans a factor above {loose:g}"
    return float(quantity(estimate.fit.law)), [low, high], values, reason


def compare(first: Family, second: Family, settings: Settings, budgets: list[float]) -> dict:
    """Differences of exponents (first minus second) with 95% intervals, which has the lower loss at each budget, and
    how many times the compute of the second the first needs for the second's loss there.

    The families' draws are independent, so that a draw of each makes a draw of the difference.
    """
    result = {"families": [first.runs.family, second.runs.family], "exponents": {}, "budgets": [], "reason": None}
    for family in (first, second):
        reason = family.refusal(settings.method)
        if reason:
            return result | {"reason": f"{family.runs.family}: {reason}"}
    one, two = (family.estimates[settings.method] for family in (first, second))
    order = np.random.default_rng(settings.seed).permutation(len(two.draws))
    a, b = one.draws, two.draws[order]
    for index, name in ((3, "alpha"), (4, "beta")):
        if name in one.refused or name in two.refused:
            continue
        difference = float(one.fit.law[index] - two.fit.law[index])
        low, high = bootstrap.interval(a[:, index] - b[:, index], difference)
        result["exponents"][name] = {"difference": difference, "interval": [float(low), float(high)],
                                     "differs": bool(low > 0 or high < 0)}
    for flops in budgets:
        losses = [laws.optimum(law, family.cost, flops)[2] for law, family in ((a, first), (b, second))]
        best = [float(laws.optimum(e.fit.law, f.cost, flops)[2]) for e, f in ((one, first), (two, second))]
        low, high = bootstrap.interval(losses[0] - losses[1], best[0] - best[1])
        factor = needed(one.fit.law, first, best[1], flops)
        between = bootstrap.interval(np.log(needed(a, first, losses[1], flops)), np.log(factor))
        result["budgets"].append({
            "budget": flops, "losses": best, "difference": best[0] - best[1], "interval": [float(low), float(high)],
            "first_is_lower": float((losses[0] < losses[1]).mean()),
            "compute": below_never(factor), "compute_interval": [below_never(v) for v in np.exp(between)],
        })
    return result


def needed(law: np.ndarray, family: Family, loss, flops: float) -> np.ndarray:
    """How many times `flops` the best runs of a law [..., 5] need to come to a loss; NEVER where its E lies above."""
    own = laws.optimum(law, family.cost, flops)[2]
    floor = np.exp(law[..., 2])
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = ((own - floor) / (loss - floor)) ** (1 / laws.exponents(law, family.cost)["loss"])
    return np.clip(np.where(loss > floor, factor, NEVER), 1 / NEVER, NEVER)


def below_never(factor: float) -> float | None:
    """A factor of compute, None for never."""
    return float(factor) if factor < 0.99 * NEVER else None
