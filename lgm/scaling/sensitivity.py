"""How much a fit depends on what was fitted: sizes, points, budgets left out, Huber's delta, and the largest budget.

Leaving out is a weight of zero, so each table here is one batch of fits.
"""

from typing import Any

import numpy as np

from lgm.scaling import bootstrap, identify, laws, parametric, solver
from lgm.scaling.parametric import Fit
from lgm.scaling.solver import Points
from lgm.scaling.table import Runs

DELTAS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
GROUPS = 10  # of sizes left out together
LARGEST = 1.1  # budgets within this factor of the largest are held out with it
EXACT = 100_000  # runs x rows: of more, what leaving a run out does is taken from the slope of the objective
SHOWN = 200  # held-out runs that are listed


def leave_sizes_out(runs: Runs, fit: Fit, delta: float) -> list[dict]:
    """For each size: exponents without it, and the mean relative error of predicting its losses from the others.

    Where an isoFLOP plan has a size of its own for nearly every run, neighbours are left out together.
    """
    groups = size_groups(runs.n)
    if len(groups) <= identify.VALUES:
        return []
    kept = np.stack([~np.isin(runs.n, group) for group in groups])
    found, rows = _refit(runs, fit, kept, delta)
    ratio = lambda law, out: laws.loss(law, runs.n[out], runs.d[out]) / runs.loss[out]
    return [
        {"params": [float(group[0]), float(group[-1])], "error": float(ratio(law, ~keep).mean() - 1)} | row
        for group, keep, law, row in zip(groups, kept, found, rows, strict=True)
    ]


def size_groups(n: np.ndarray) -> list[np.ndarray]:
    """Distinct sizes, or at most `GROUPS` groups of neighbours, ascending."""
    sizes = np.unique(n)
    return np.array_split(sizes, min(len(sizes), GROUPS))


def leave_points_out(runs: Runs, fit: Fit, delta: float) -> dict:
    """Lowest and highest exponents when one training run is left out, and the run that moves each most."""
    names, member = np.unique(runs.run, return_inverse=True)
    if len(names) * len(runs) <= EXACT:
        found, _ = _refit(runs, fit, runs.run != names[:, None], delta)
    else:
        found = fit.law + _influence(runs, fit, member, delta)
    result = {}
    for name, index in (("alpha", 3), ("beta", 4)):
        moved = int(np.abs(found[:, index] - fit.law[index]).argmax())
        result[name] = {"low": float(found[:, index].min()), "high": float(found[:, index].max()),
                        "row": int(runs.row[runs.run == names[moved]][0])}
    return result


def _influence(runs: Runs, fit: Fit, member: np.ndarray, delta: float) -> np.ndarray:
    """To first order, how far the law moves [runs, 5] when one run is left out: one Newton step from the optimum."""
    points = Points.of(runs.n, runs.d, runs.loss)
    scores, hessian = solver.scores(points, points.inward(fit.law), parametric.huber_delta(fit.method, delta),
                                    fit.method == "variable_projection")
    by_run = np.stack([np.bincount(member, column) for column in scores.T], -1)
    return points.outward(points.inward(fit.law) + by_run @ np.linalg.pinv(hessian, 1e-12)) - fit.law


def ranges(runs: Runs, fit: Fit, delta: float) -> list[dict]:
    """Exponents without the smallest sizes, the largest size, the least data, the smallest and the largest budgets."""
    cost = runs.flops if runs.flops is not None else runs.n * runs.d
    budget = "FLOPs" if runs.flops is not None else f"params x {runs.unit}"
    groups, data = size_groups(runs.n), np.unique(runs.d)
    cuts = [(f"params >= {group[0]:.3g}", runs.n >= group[0]) for group in groups[1:4]]
    cuts += [(f"params < {groups[-1][0]:.3g}", runs.n < groups[-1][0])]
    cuts += [(f"{runs.unit} >= {np.quantile(data, q):.3g}", runs.d >= np.quantile(data, q)) for q in (0.25, 0.5)]
    cuts += [(f"{budget} >= {np.quantile(cost, q):.3g}", cost >= np.quantile(cost, q)) for q in (0.25, 0.5)]
    cuts += [(f"{budget} <= {np.quantile(cost, q):.3g}", cost <= np.quantile(cost, q)) for q in (0.75, 0.5)]
    rows = []
    for name, keep in cuts:
        reasons = identify.by_design(runs.take(keep)) if keep.any() else {"alpha": "no run is left"}
        if reasons:
            rows.append({"range": name, "points": int(keep.sum()), "alpha": None, "beta": None,
                         "reason": next(iter(reasons.values()))})
        else:
            _, (row,) = _refit(runs, fit, keep[None], delta)
            rows.append({"range": name, "points": int(keep.sum())} | row)
    return rows


def deltas(runs: Runs, fit: Fit) -> list[dict]:
    """Exponents of the Huber fit for each delta."""
    one = np.ones((1, len(runs)), bool)
    return [{"delta": delta} | _refit(runs, fit, one, delta)[1][0] for delta in DELTAS]


def _refit(runs: Runs, fit: Fit, kept: np.ndarray, delta: float) -> tuple[np.ndarray, list[dict]]:
    """Laws [fits, 5] and rows of exponents for each mask of kept rows [fits, rows]."""
    points = Points.of(runs.n, runs.d, runs.loss)
    found = parametric.refit(fit.method, points, np.repeat(fit.law[None], len(kept), 0), kept.astype(float), delta)
    rows = [
        {"alpha": float(law[3]), "beta": float(law[4]), "reason": None} if good else
        {"alpha": None, "beta": None, "reason": "no optimum reached"}
        for law, good in zip(found.law, found.converged(1e-3), strict=True)
    ]
    return found.law, rows


def held_out(runs: Runs, whole: Fit, delta: float, draws: int, seed: int,
             above: tuple[str, float] | None = None) -> dict:
    """Fit without the training runs that reach the largest budget, predict what they measured there, and compare.

    What such a run measured on its way, at less data, shares its noise and is left out too. The interval is for a new
    run: a draw's law times the scatter of one of the fitted runs. whole: the fit of all runs, near which to start.
    above: (column, value): held out is what lies above.
    """
    top, what, name, limit = largest(runs, above)
    rest, held = runs.take(~np.isin(runs.run, runs.run[top])), runs.take(top)
    result: dict[str, Any] = {"budget": limit, "unit": name, "what": what, "fitted": len(rest), "runs": [],
                              "inside": 0, "of": 0, "worst": None, "reason": None}
    if not top.any():
        return result | {"reason": f"no run has {name} above {limit:g}: nothing to hold out"}
    reason = identify.unfittable(rest) or next(iter(identify.by_design(rest).values()), None)
    if reason:
        return result | {"reason": f"without {what}, {reason}"}
    fit = parametric.fit(whole.method, rest.n, rest.d, rest.loss, delta, near=whole.law)
    if not fit.convergence.converged:
        return result | {"reason": f"without {what}, the fit {fit.convergence.reason}"}
    drawn = bootstrap.draw(rest, fit.law, parametric.huber_delta(whole.method, delta), draws, seed).law
    chosen = np.linspace(0, len(held) - 1, min(len(held), SHOWN)).astype(int)
    held = held.take(chosen)
    noise = np.exp(scatter(errors(rest, fit.law), (draws, len(held)), seed))
    predicted = laws.loss(fit.law, held.n, held.d)
    low, high = bootstrap.interval(laws.loss(drawn[:, None], held.n, held.d) * noise, predicted)
    for index in range(len(held)):
        measured = float(held.loss[index])
        result["runs"].append({
            "row": int(held.row[index]), "params": float(held.n[index]), runs.unit: float(held.d[index]),
            "measured": measured, "predicted": float(predicted[index]), "error": float(predicted[index] / measured - 1),
            "interval": [float(low[index]), float(high[index])],
            "inside": bool(low[index] <= measured <= high[index]),
        })
    return result | {"inside": sum(row["inside"] for row in result["runs"]), "of": len(held),
                     "worst": max((row["error"] for row in result["runs"]), key=abs)}


def largest(runs: Runs, above: tuple[str, float] | None = None) -> tuple[np.ndarray, str, str, float]:
    """(rows to hold out [rows] bool, what they are, the column that says so, its limit): those of the largest budget,
    or above: (column, value) what lies above. Raises ValueError, one line, for a column that is not there."""
    if above is None:
        cost = runs.flops if runs.flops is not None else runs.n * runs.d
        name = "FLOPs" if runs.flops is not None else f"params x {runs.unit}"
        return cost >= cost.max() / LARGEST, "the largest budget", name, float(cost.max())
    name, limit = above
    columns = {"params": runs.n, runs.unit: runs.d, "flops": runs.flops}
    if columns.get(name) is None:
        raise ValueError(f"--hold-out={name}>{limit:g}: there is no {name} in the table; there are "
                         f"{', '.join(column for column, values in columns.items() if values is not None)}")
    return columns[name] > limit, f"what has {name} above {limit:g}", name, limit


def errors(runs: Runs, law: np.ndarray) -> np.ndarray:
    """Errors of ln L of fitted runs, widened for the five unknowns that were fitted to them."""
    left = np.log(runs.loss) - np.log(laws.loss(law, runs.n, runs.d))
    return left * np.sqrt(len(left) / max(len(left) - 5, 1))


def scatter(errors: np.ndarray, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Errors drawn at random."""
    return np.random.default_rng(seed + 1).choice(errors, shape)
