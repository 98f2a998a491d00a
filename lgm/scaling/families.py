"""One family's fits by all methods, what they predict, and one family against another."""

from __future__ import annotations

import dataclasses

import numpy as np

from lgm.scaling import bootstrap, identify, isoflop, laws, parametric, sensitivity
from lgm.scaling.laws import Cost
from lgm.scaling.parametric import Fit
from lgm.scaling.solver import Points
from lgm.scaling.table import Runs


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to fit.

    Attributes:
      method: of METHODS, the one that predicts, is left out from, and is compared. delta: Huber's.
      draws: bootstrap draws. seed: of the draws. max_steps: of each optimizer.
    """

    method: str = "huber"
    delta: float = parametric.HUBER_DELTA
    draws: int = 1000
    seed: int = 0
    max_steps: int = parametric.MAX_STEPS

    def __post_init__(self):
        if self.method not in parametric.METHODS:
            raise ValueError(f"--method={self.method!r} is not one of {', '.join(parametric.METHODS)}")
        if not (np.isfinite(self.delta) and self.delta > 0):
            raise ValueError(f"--delta={self.delta} must be a positive number; the usual one is 1e-3")
        if self.draws < 100:
            raise ValueError(f"--draws={self.draws} is too few for a 95% interval; give 100 or more")
        if self.max_steps < 1:
            raise ValueError(f"--max-steps={self.max_steps} must be positive")


@dataclasses.dataclass(frozen=True)
class Estimate:
    """One method's fit, its bootstrap laws [draws, 5], and what it may not state, and why.

    Draws that reached no optimum are left out, but not where an exponent is refused: along it there is none to reach.
    """

    fit: Fit
    draws: np.ndarray
    drawn_converged: float
    refused: dict[str, str]
    units: int

    def interval(self, values: np.ndarray) -> list[float]:
        return bootstrap.interval(values, self.units).tolist()

    @property
    def frontier_refused(self) -> str | None:
        """Why no best N and D is stated; None where they are."""
        return self.refused.get("alpha") or self.refused.get("beta")


@dataclasses.dataclass(frozen=True)
class Family:
    """A family's runs, cost and estimates; `reason` says why nothing was fitted."""

    runs: Runs
    cost: Cost | None
    estimates: dict[str, Estimate]
    isoflop: isoflop.Isoflop | None
    checks: dict
    reason: str | None


def analyse(runs: Runs, settings: Settings) -> Family:
    """All fits of one family and, for the chosen method, its leave-outs, held-out budget and sensitivities."""
    cost = laws.fit_cost(runs.n, runs.d, runs.flops) if runs.flops is not None and len(runs) else None
    refused = identify.by_design(runs)
    if "alpha" in refused and "beta" in refused:
        return Family(runs, cost, {}, None, {}, refused["alpha"])
    weights = bootstrap.weights(runs.run, settings.draws, settings.seed)
    estimates = {method: _estimate(method, runs, weights, refused, settings) for method in parametric.METHODS}
    chosen, huber = estimates[settings.method], estimates["huber"]
    checks = {"held_out": sensitivity.held_out(runs, settings.method, settings.delta, settings.draws, settings.seed)}
    if not chosen.frontier_refused:
        checks |= {
            "leave_one_size_out": sensitivity.leave_sizes_out(runs, chosen.fit, settings.delta),
            "leave_one_run_out": sensitivity.leave_points_out(runs, chosen.fit, settings.delta),
            "ranges": sensitivity.ranges(runs, chosen.fit, settings.delta),
            "deltas": [] if huber.frontier_refused else sensitivity.deltas(runs, huber.fit),
        }
    return Family(runs, cost, estimates, isoflop.fit(runs, weights), checks, None)


def _estimate(method: str, runs: Runs, weights: np.ndarray, refused: dict, settings: Settings) -> Estimate:
    fit = parametric.fit(method, runs.n, runs.d, runs.loss, settings.delta, settings.max_steps)
    points = Points.of(runs.n, runs.d, runs.loss)
    drawn = parametric.refit(method, points, np.repeat(fit.law[None], len(weights), 0), weights, settings.delta)
    converged = drawn.converged(1e-3)
    shown = identify.by_fit(runs, fit, drawn, refused)
    kept = converged | ("alpha" in shown) | ("beta" in shown)
    return Estimate(fit, drawn.law[kept], float(converged.mean()), shown, len(np.unique(runs.run)))


def predict(family: Family, settings: Settings, budget: float) -> dict:
    """Best N and D for a budget in FLOPs, the loss there, 95% intervals, how far out of the data it is, or why not."""
    unit = family.runs.unit
    none = {"params": None, unit: None, "loss": None, "reason": None}
    reason = family.reason or _no_frontier(family, settings)
    if reason:
        return {"budget": budget} | none | {"reason": reason}
    estimate = family.estimates[settings.method]
    n, d, loss = (float(v) for v in laws.optimum(estimate.fit.law, family.cost, budget))
    drawn = laws.optimum(estimate.draws, family.cost, budget)
    noise = np.exp(sensitivity.scatter(family.runs, estimate.fit.law, (len(estimate.draws),), settings.seed))
    runs = family.runs
    return {
        "budget": budget, "params": n, unit: d, "loss": loss,
        "intervals": {"params": estimate.interval(drawn[0]), unit: estimate.interval(drawn[1]),
                      "loss": estimate.interval(drawn[2]), "loss_of_one_run": estimate.interval(drawn[2] * noise)},
        "beyond_data": {"flops": budget / float(runs.flops.max()), "params": n / float(runs.n.max()),
                        unit: d / float(runs.d.max())},
        "reason": None,
    }


def _no_frontier(family: Family, settings: Settings) -> str | None:
    if family.cost is None:
        return "FLOPs are unknown: give a column 'flops', or --tokens-per-image"
    return family.estimates[settings.method].frontier_refused


def compare(first: Family, second: Family, settings: Settings, budgets: list[float]) -> dict:
    """Differences of exponents (first minus second) with 95% intervals, and which has the lower loss at each budget.

    The families' draws are independent, so that a draw of each makes a draw of the difference.
    """
    result = {"families": [first.runs.family, second.runs.family], "exponents": {}, "budgets": [], "reason": None}
    for family in (first, second):
        reason = family.reason or _no_frontier(family, settings)
        if reason:
            return result | {"reason": f"{family.runs.family}: {reason}"}
    one, two = (family.estimates[settings.method] for family in (first, second))
    count = min(len(one.draws), len(two.draws))
    order = np.random.default_rng(settings.seed).permutation(count)
    a, b = one.draws[:count], two.draws[:count][order]
    units = min(one.units, two.units)
    for index, name in ((3, "alpha"), (4, "beta")):
        low, high = bootstrap.interval(a[:, index] - b[:, index], units)
        difference = float(one.fit.law[index] - two.fit.law[index])
        result["exponents"][name] = {"difference": difference, "interval": [float(low), float(high)],
                                     "differs": bool(low > 0 or high < 0)}
    for budget in budgets:
        losses = [laws.optimum(law, family.cost, budget)[2] for law, family in ((a, first), (b, second))]
        best = [float(laws.optimum(e.fit.law, f.cost, budget)[2]) for e, f in ((one, first), (two, second))]
        low, high = bootstrap.interval(losses[0] - losses[1], units)
        result["budgets"].append({
            "budget": budget, "losses": best, "difference": best[0] - best[1], "interval": [float(low), float(high)],
            "first_is_lower": float((losses[0] < losses[1]).mean()),
        })
    return result
