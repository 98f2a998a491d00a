"""What a loss comes to: a column of quality (a distance, a gap of few steps, the best guidance) as a power of the loss.

ln q = a + b ln L over a family's runs, by least squares; at a predicted loss the quality of one run is told with the
interval of the line, of the loss and of the runs' scatter about it.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from lgm.scaling import bootstrap
from lgm.scaling.table import Runs

RUNS = 8  # fewer tell no line and its error
EXPLAINED = 0.5  # of the variance of ln q, below which the loss does not tell it


@dataclasses.dataclass(frozen=True)
class Quality:
    """ln q = line[0] + line[1] ln L, its draws [draws, 2], the scatter of ln q about it, and the part of its variance
    that it explains. reason: why it is not stated; None where it is. span: lowest and highest loss."""

    column: str
    line: np.ndarray
    draws: np.ndarray
    scatter: float
    explained: float
    runs: int
    span: tuple[float, float]
    reason: str | None

    def at(self, loss: float, losses: np.ndarray, seed: int = 0) -> tuple[float, list[float]]:
        """The quality at a predicted loss and the interval of one run's, for draws of the loss."""
        value = float(np.exp(self.line @ (1.0, np.log(loss))))
        random = np.random.default_rng(seed)
        count = min(len(losses), len(self.draws))
        drawn = (self.draws[:count, 0] + self.draws[:count, 1] * np.log(random.permutation(losses)[:count])
                 + self.scatter * random.standard_normal(count))
        low, high = np.exp(bootstrap.interval(drawn, np.log(value)))
        return value, [float(low), float(high)]


def fit(runs: Runs, column: str, draws: int = 1000, seed: int = 0) -> Quality:
    """The line of a column over a family's rows that have it."""
    values = runs.quality[column]
    kept = np.isfinite(values) & (values > 0)
    x, y = np.log(runs.loss[kept]), np.log(values[kept])
    nothing = lambda reason: Quality(column, np.full(2, np.nan), np.zeros((0, 2)), np.nan, 0.0, int(kept.sum()),
                                     (0.0, 0.0), reason)
    if kept.sum() < RUNS or np.ptp(x) == 0:
        return nothing(f"{kept.sum()} rows have a positive {column} and losses that differ; a line needs {RUNS}")
    matrix = np.stack([np.ones_like(x), x], -1)
    line = np.linalg.pinv(matrix) @ y
    left = y - matrix @ line
    free = len(y) - 2
    explained = 1.0 - float(left @ left) / max(float(((y - y.mean()) ** 2).sum()), 1e-300)
    random = np.random.default_rng(seed)
    scatter = np.sqrt(float(left @ left) / np.maximum(random.chisquare(free, draws), 1e-3))
    drawn = line + (scatter[:, None] * random.standard_normal((draws, len(y)))) @ np.linalg.pinv(matrix).T
    reason = None if explained >= EXPLAINED else (
        f"the loss tells {100 * max(explained, 0):.0f}% of how {column} differs between runs")
    return Quality(column, line, drawn, float(np.sqrt(left @ left / free)), explained, len(y),
                   (float(np.exp(x.min())), float(np.exp(x.max()))), reason)


def summary(quality: Quality) -> dict:
    """What fit.json holds of a line."""
    stated = quality.reason is None
    return {"column": quality.column, "runs": quality.runs, "explained": quality.explained, "reason": quality.reason,
            "power": {"value": float(quality.line[1]), "interval": bootstrap.interval(
                quality.draws[:, 1], quality.line[1]).tolist()} if stated else None,
            "scatter": quality.scatter if stated else None, "losses": list(quality.span)}
