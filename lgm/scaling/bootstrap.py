"""Intervals: tables drawn from a fitted law with the noise that its residuals show, each fitted again.

Drawing runs with replacement instead leaves out, in every draw, a third of a plan that was made to have no run too
many: its intervals held the truth always, at up to twice the width that 95% asks for (`tools/fit_coverage.py` counts).
"""

import dataclasses

import numpy as np

from lgm.scaling import cells, noise, projection, solver
from lgm.scaling.solver import Points
from lgm.scaling.table import Runs

LEVEL = 0.95
STILL = 1e-9  # noise below which a table is exact
VALLEY = (0.05, 1.5)  # exponents from which draws start where a plan does not tell them


@dataclasses.dataclass(frozen=True)
class Draws:
    """Laws [draws, 5] of simulated tables, which unknowns ended on a bound [draws, 5], and the noise of the tables."""

    law: np.ndarray
    at_bound: np.ndarray
    noise: noise.Noise


def draw(runs: Runs, law: np.ndarray, delta: float, draws: int, seed: int = 0, identified: bool = True) -> Draws:
    """Laws that might as well have been found instead of `law` [5].

    delta: Huber's of the method that found it, infinite for least squares. identified: whether the plan tells the
    exponents at all; where not, draws start from exponents far apart, for the valley of equally good ones to be seen.
    """
    found = cells.gather(runs)
    points = Points.of(found.n, found.d, np.exp(found.mean(np.log(runs.loss))))
    inner = points.inward(law)
    value, jacobian = solver.tangent(points, inner)
    whole = Points(np.log(runs.n) - points.centre[0], np.log(runs.d) - points.centre[1], np.log(runs.loss),
                   points.centre)
    residual = whole.log_loss - solver.terms(whole, inner[None])[0][0]
    errors = noise.measure(found, residual, jacobian, delta)
    if max(errors.sizes()) < STILL and identified:
        return Draws(np.repeat(law[None], draws, 0), np.zeros((draws, 5), bool), errors)
    start = np.repeat(law[None, 3:], draws, 0)
    if not identified:
        low, high = np.log(VALLEY)
        start = np.exp(np.random.default_rng(seed + 2).uniform(low, high, (draws, 2)))
    drawn, _ = projection.fit(points.x, points.y, np.exp(value), found.rows, 1 + errors.draw(draws, seed), start)
    low, high = points.bounds()
    return Draws(points.outward(drawn), (drawn <= low + solver.GONE + 1e-9) | (drawn >= high - 1e-9), errors)


def interval(values: np.ndarray, at: np.ndarray | float | None = None) -> np.ndarray:
    """[2, ...]: the 95% interval of draws along the first axis: percentiles, and `at`, the value at the fit itself.

    Corrections for median bias were tried: they gain nothing where a law is well told and lose cover (88 for 95%) where
    an exponent is hardly told at all.
    """
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return np.stack([low, high] if at is None else [np.minimum(low, at), np.maximum(high, at)])
