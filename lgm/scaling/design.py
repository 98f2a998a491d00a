"""The next runs: which sizes and amounts of data would sharpen an answer most for what they cost.

The draws of a fit are laws that might as well be true, each with its answer and with what any run would then measure.
A run tells of the answer as far as the two go together over the draws: measured with noise s, it leaves of the answer's
variance v the part v - c^2 / (w + s^2), c being their covariance and w the variance of the measurement (a Gaussian's
conditional variance; Chaloner & Verdinelli 1995 on Bayesian design). Runs are chosen one after the other.
"""

import dataclasses
from typing import Any

import numpy as np

from lgm.scaling import laws, predicting
from lgm.scaling.families import Family, Settings

RUNS = 4  # proposed at most
WORTH = 0.02  # of the interval that a run takes away: less, and no more are proposed
NEAR = 0.5  # of what the best run within the means takes away: of those that take so much the one of most per FLOP
STEPS = 24  # sizes and amounts that are looked at, where no ladder says which there are
BEYOND = 4.0  # times the largest size and amount of the table


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Runs that could be: parameters, data and FLOPs [runs], and what each is called, as an entry of a sweep's plan."""

    n: np.ndarray
    d: np.ndarray
    flops: np.ndarray
    entries: tuple[dict[str, Any], ...] = ()


def grid(family: Family, most: float) -> Candidates:
    """Sizes and amounts about those of the table, of at most so many FLOPs."""
    runs, low = family.runs, 2.0
    n = np.geomspace(runs.n.min() / low, runs.n.max() * BEYOND, STEPS)
    d = np.geomspace(runs.d.min() / low, runs.d.max() * BEYOND, STEPS)
    n, d = (axis.ravel() for axis in np.meshgrid(n, d))
    flops = family.cost.flops(n, d)
    kept = flops <= most
    return Candidates(n[kept], d[kept], flops[kept])


def propose(family: Family, settings: Settings, budget: float, candidates: Candidates, spend: float) -> dict:
    """The next runs for the loss at a budget, of `spend` FLOPs in all, one after the other with the part of its
    interval that is left.

    A run of its own has the noise of a training run and of a row.
    """
    estimate = family.estimates[settings.method]
    answer = np.log(predicting.best(family, settings, budget)[1][2])
    if family.form is not None:
        pairs = zip(candidates.n, candidates.d, strict=True)
        measured = np.log(np.stack([family.form.loss(n, d)[1] for n, d in pairs], -1))
    else:
        measured = np.log(laws.loss(estimate.draws[:, None], candidates.n, candidates.d))
    good = np.isfinite(answer) & np.isfinite(measured).all(-1)
    values = np.concatenate([answer[good, None], measured[good]], -1)
    covariance = np.cov(values.T) if values.shape[1] > 1 else np.zeros((1, 1))
    noise = float(np.sum(np.square(estimate.drawn.noise.sizes())))
    start, left, rows = covariance[0, 0], spend, []
    while len(rows) < RUNS and start > 0:
        spread = np.diag(covariance)[1:] + noise
        gain = covariance[0, 1:] ** 2 / np.where(spread > 0, spread, np.inf)
        within = candidates.flops <= left * (1 + 1e-9)
        if not within.any() or gain[within].max() < (1 - (1 - WORTH) ** 2) * covariance[0, 0]:
            break
        able = within & (gain >= NEAR * gain[within].max())
        chosen = int(np.flatnonzero(able)[(gain / candidates.flops)[able].argmax()])
        column = covariance[:, chosen + 1]
        covariance = covariance - np.outer(column, column) / spread[chosen]
        left -= candidates.flops[chosen]
        rows.append({"params": float(candidates.n[chosen]), family.runs.unit: float(candidates.d[chosen]),
                     "flops": float(candidates.flops[chosen]),
                     "left": float(np.sqrt(max(covariance[0, 0], 0.0) / start))}
                    | (candidates.entries[chosen] if candidates.entries else {}))
    return {"family": family.runs.family, "budget": budget, "spend": spend, "runs": rows}


def lines(proposed: dict | None, unit: str) -> list[str]:
    """The next runs in words."""
    if not proposed or not proposed["runs"]:
        return []
    runs = [f"N={row['params']:.3g}, {unit}={row[unit]:.3g} ({row['flops']:.2g} FLOPs): {row['left']:.0%}"
            for row in proposed["runs"]]
    return [f"next, to know the loss of {proposed['family']} at {proposed['budget']:.3g} FLOPs better, and what is "
            f"left of its interval: {'; then '.join(runs)}"]
