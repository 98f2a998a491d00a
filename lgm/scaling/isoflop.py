"""IsoFLOP parabolas: at each budget the size of lowest loss, and how it grows with the budget.

The second approach of Hoffmann et al. (2203.15556): a parabola of the loss in ln N for every budget, then a line of
ln N_opt in ln C. It needs no law, only a plan with several sizes at each budget. Where alpha and beta differ, a
parabola is a biased picture of the valley (2603.22339): the law's own frontier is to be preferred, and this one to
check it.
"""

import dataclasses

import numpy as np

from lgm.scaling import bootstrap, cells, noise
from lgm.scaling.laws import Cost
from lgm.scaling.table import Runs

SAME_BUDGET = 1.1  # budgets within this factor are one
SIZES = 4  # a parabola has three coefficients
BUDGETS = 4  # a line has two coefficients, and its error needs more than one point to spare
SLICES = 24  # budgets of a table of learning curves, which has any number
REACH = 2.0  # of the sizes' span: how far from their centre a draw's minimum may lie


@dataclasses.dataclass(frozen=True)
class Slice:
    """One budget: its FLOPs (geometric mean), its rows, the parabola's coefficients in ln N (highest first).

    `reason` says why its minimum does not count; None where it does.
    """

    budget: float
    rows: np.ndarray
    coefficients: np.ndarray
    n: float
    loss: float
    reason: str | None


@dataclasses.dataclass(frozen=True)
class Isoflop:
    """Minima of all budgets and N_opt = exp(offset) C^slope, with draws [draws, 2] of (offset, slope).

    `reason` says why no exponent is stated; None where it is. lost: the share of the draws' parabolas without a minimum
    near the sizes tried, whose minimum is put where the search ends.
    """

    slices: tuple[Slice, ...]
    line: np.ndarray
    draws: np.ndarray
    reason: str | None
    lost: float = 0.0

    def optimum(self, cost: Cost, budget: float) -> tuple[float, float, np.ndarray, np.ndarray]:
        """N and D of lowest loss at a budget and their intervals."""
        size = lambda line: np.exp(line[..., 0] + line[..., 1] * np.log(budget))
        data = lambda line: budget / (cost.k * size(line) ** cost.p)
        between = lambda part: bootstrap.interval(part(self.draws), part(self.line))
        return size(self.line), data(self.line), between(size), between(data)


def fit(runs: Runs, draws: int, seed: int = 0) -> Isoflop:
    """Parabolas and their line, and so many draws: the same budgets with the noise that the parabolas leave."""
    groups = _groups(runs)
    none = np.full(2, np.nan), np.full((0, 2), np.nan)
    if runs.flops is None:
        return Isoflop((), *none, "FLOPs are unknown: give a column 'flops', or --tokens-per-image")
    if not groups:
        return Isoflop((), *none, f"no budget (within a factor {SAME_BUDGET:g}) has {SIZES} sizes")
    slices = tuple(_slice(runs, rows) for rows in groups)
    good = [s for s in slices if s.reason is None]
    if len(good) < BUDGETS:
        reason = (f"{len(good)} of {len(slices)} budgets have their minimum inside the sizes tried; a line and its "
                  f"error need {BUDGETS}")
        return Isoflop(slices, *none, reason)
    log_c = np.log([s.budget for s in good])
    line = _line(log_c, np.log([[s.n for s in good]]))[0]
    errors = _errors(runs, good, draws, seed)
    minima = np.stack([_minima(np.log(runs.n[s.rows]), runs.loss[s.rows] * (1 + error))
                       for s, error in zip(good, errors, strict=True)], -1)
    drawn = _line(log_c, minima[:, 0])
    low, high = bootstrap.interval(drawn[:, 1], line[1])
    reason = f"the 95% interval of its exponent, {low:.2g} to {high:.2g}, is wider than 1" if high - low > 1 else None
    return Isoflop(slices, line, drawn, reason, float(minima[:, 1].mean()))


def _errors(runs: Runs, good: list[Slice], draws: int, seed: int) -> list[np.ndarray]:
    """Relative errors [draws, rows] of each budget, as large as those about its parabola; less what they were."""
    rows = np.concatenate([s.rows for s in good])
    sides = np.cumsum([0, *(len(s.rows) for s in good)])
    basis = np.zeros((len(rows), 3 * len(good)))
    for i, s in enumerate(good):
        basis[sides[i]:sides[i + 1], 3 * i:3 * i + 3] = np.vander(np.log(runs.n[s.rows] / s.n), 3)
    fitted = np.concatenate([np.polyval(s.coefficients, np.log(runs.n[s.rows])) for s in good])
    left = runs.loss[rows] / fitted - 1
    found = noise.measure(cells.each(runs.take(rows)), left, basis, np.inf)
    errors = (1 + found.draw(draws, seed)) * fitted / runs.loss[rows] - 1
    return np.split(errors, sides[1:-1], axis=1)


def _groups(runs: Runs) -> list[np.ndarray]:
    """Rows of the same budget, for budgets with enough sizes, lowest first: one of each run, of at most `SLICES`."""
    if runs.flops is None:
        return []
    order, groups, start = np.argsort(runs.flops, kind="stable"), [], 0
    for stop in range(1, len(order) + 1):
        if stop == len(order) or runs.flops[order[stop]] > SAME_BUDGET * runs.flops[order[start]]:
            rows = order[start:stop]
            # of a learning curve's rows the middle one: neighbours say the same
            middle = rows[np.argsort(np.abs(np.arange(len(rows)) - len(rows) // 2), kind="stable")]
            rows = np.sort(middle[np.unique(runs.run[middle], return_index=True)[1]])
            if len(np.unique(runs.n[rows])) >= SIZES:
                groups.append(rows)
            start = stop
    if len(groups) <= SLICES:
        return groups
    return [groups[i] for i in np.linspace(0, len(groups) - 1, SLICES).astype(int)]


def _slice(runs: Runs, rows: np.ndarray) -> Slice:
    budget = float(np.exp(np.log(runs.flops[rows]).mean()))
    x = np.log(runs.n[rows])
    coefficients = np.polyfit(x - x.mean(), runs.loss[rows], 2)
    log_n = x.mean() - coefficients[1] / (2 * coefficients[0]) if coefficients[0] else np.inf
    reason = None
    if coefficients[0] <= 0:
        reason = "the loss has no minimum in size"
    elif not x.min() <= log_n <= x.max():
        reason = "the minimum lies outside the sizes tried"
    lowest = float(np.polyval(coefficients, log_n - x.mean())) if np.isfinite(log_n) else np.nan
    two, one, zero = coefficients
    at_zero = np.array([two, one - 2 * two * x.mean(), zero - one * x.mean() + two * x.mean() ** 2])
    with np.errstate(over="ignore"):
        return Slice(budget, rows, at_zero, float(np.exp(log_n)), lowest, reason)


def _minima(x: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """[draws, 2]: ln N of the minimum of each draw's parabola through losses [draws, rows] at x = ln N, and whether it
    has none within reach, but its lower end there."""
    centre, spread, reach = x.mean(), x.std(), REACH * np.ptp(x)
    two, one, _ = np.linalg.pinv(np.vander((x - centre) / spread, 3)) @ losses.T
    with np.errstate(divide="ignore", invalid="ignore"):
        away = np.where(two > 0, -spread * one / (2 * two), -np.sign(one) * np.inf)
    lost = ~(np.abs(away) <= reach)
    return np.stack([centre + np.clip(np.nan_to_num(away, posinf=reach, neginf=-reach), -reach, reach), lost], -1)


def _line(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(offset, slope) [draws, 2] of least squares through y [draws, points]."""
    dx = x - x.mean()
    slope = y @ dx / (dx**2).sum()
    return np.stack([y.mean(-1) - slope * x.mean(), slope], -1)
