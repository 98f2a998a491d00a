"""How far a method's answer may be off: the noise of runs that its residuals show, and tables that have such noise.

Noise is of two kinds: of a training run, which all of its rows share, and of a row. Their sizes are estimated from the
residuals as in an analysis of variance, from contrasts that the fit did not take for itself;
each simulated table has sizes of its own, drawn as the residuals leave them uncertain, so that percentiles of the fits
have Student's tails where Student's are due.

A robust method's answer errs as least squares would under errors of psi(r) / E psi' in place of r, psi being the slope
of its loss (Huber, Robust Statistics, 1981, section 7.6). E psi' is that of a normal distribution whose scale is the
quarter quantile of differences between residuals (Rousseeuw and Croux, 1993), which outliers do not move.
"""

import dataclasses

import numpy as np

from lgm.scaling.cells import Cells

UNKNOWNS = 5
ROBUST = 0.7  # degrees of freedom that a robust scale keeps, by simulation of 24 to 72 points
# by simulation of 15 to 40 points (`tools/fit_coverage.py`): a robust answer of few points, of which it passes through
# some, errs by less than the asymptotic formula says. Of more than 72 the difference is taken to fall as their number
LESS, MANY = 0.08, 72
FEW = 3  # degrees of freedom between runs below which a typical size of their noise is counted in
TYPICAL = 0.01  # of a training run's noise, as a part of its loss
FAINT = 0.05  # of the largest weight of a contrast between runs
LARGEST = 1500  # residuals whose differences are ranked


@dataclasses.dataclass(frozen=True)
class Noise:
    """Sums of squares, degrees of freedom, and the trace that tells how much of the runs' noise the first one holds.

    between: (sum of squares, degrees of freedom, trace), or None where every run is one row. within: the first two.
    rows: [cells] a cell's variance is that of a row over it. group, members: as of Cells.
    """

    within: tuple[float, float]
    between: tuple[float, float, float] | None
    rows: np.ndarray
    group: np.ndarray
    members: np.ndarray

    def sizes(self) -> tuple[float, float]:
        """Standard deviations of a run's and of a row's noise."""
        total, free = self.within
        row = total / max(free, 1.0)
        if self.between is None:
            return 0.0, float(np.sqrt(row))
        total, free, trace = self.between
        run = max(total - free * row, 0.0) / max(trace, 1e-300) if free else TYPICAL**2
        return float(np.sqrt(run)), float(np.sqrt(row))

    def draw(self, draws: int, seed: int) -> np.ndarray:
        """Errors [draws, cells]."""
        random = np.random.default_rng(seed)
        total, free = self.within
        row = total / np.maximum(random.chisquare(max(free, 1.0), draws), 1e-3)
        errors = np.sqrt(row)[:, None] * random.standard_normal((draws, len(self.rows))) / np.sqrt(self.rows)
        if self.between is None:
            return errors
        total, free, trace = self.between
        held = max(FEW - free, 0.0)
        unit = trace / max(free, 1.0) if trace > 0 else 1.0
        seen = (total + held * (row + TYPICAL**2 * unit)) / np.maximum(random.chisquare(free + held, draws), 1e-3)
        run = np.sqrt(np.maximum(seen - row, 0.0) / unit)
        own = random.standard_normal((draws, len(self.members))) / np.sqrt(self.members)
        return errors + run[:, None] * own[:, self.group]


def measure(cells: Cells, residual: np.ndarray, jacobian: np.ndarray, delta: float) -> Noise:
    """The noise that residuals [rows] of ln L show after a fit whose Jacobian at the cells is [cells, 5].

    delta: Huber's of the method that fitted, infinite for least squares.
    """
    root = np.sqrt(cells.rows)
    basis = _basis(jacobian * root[:, None])
    residual, share = _as_least_squares(residual, delta)
    residual = cells.mean(residual) * root
    left = residual - basis @ (basis.T @ residual)
    total, free = float(left @ left), len(residual) - basis.shape[1]
    if not cells.shared:
        return Noise((share * total, share * max(free, 1)), None, cells.rows, cells.group, cells.members)
    # what the runs' own means leave
    mean = lambda values: (np.bincount(cells.group, root * values) / np.bincount(cells.group, cells.rows))
    without = lambda values: values - root * mean(values)[cells.group]
    inner = _basis(np.stack([without(column) for column in basis.T], -1))
    own = without(residual)
    own = own - inner @ (inner.T @ own)
    within, free_within = float(own @ own), len(residual) - len(cells.members) - inner.shape[1]
    if free_within < 1:
        within, free_within = total, max(free, 1)
    # contrasts between runs, in units of a row's noise: each has the variance row^2 + weight run^2. What the fit took
    # for itself leaves next to no weight, and is left out
    size = np.sqrt(cells.members)
    across = np.stack([np.bincount(cells.group, root * column) / size for column in basis.T], -1)
    weight, vectors = np.linalg.eigh(np.diag(np.bincount(cells.group, cells.rows) / cells.members) - across @ across.T)
    kept = weight > FAINT * weight[-1]
    contrasts = (vectors.T @ (np.bincount(cells.group, root * left) / size))[kept] ** 2 / weight[kept]
    between = share * float(contrasts.sum()), share * int(kept.sum()), share * float(weight[kept].sum())
    return Noise((share * within, share * free_within), between, cells.rows, cells.group, cells.members)


def _as_least_squares(residual: np.ndarray, delta: float) -> tuple[np.ndarray, float]:
    """Errors of least squares to which a robust fit's amount, and the part of degrees of freedom that remains."""
    if not np.isfinite(delta):
        return residual, 1.0
    from scipy.special import ndtr

    # a sum of absolute errors passes through as many points as it has unknowns: those say nothing of the scale
    kept = np.sort(np.abs(residual))[min(UNKNOWNS, len(residual) // 3)]
    live = residual[np.abs(residual) >= kept]
    scale = quarter(live) * len(residual) / (len(residual) + 0.45 * UNKNOWNS)
    if not scale > 0:
        return residual, 1.0
    errors = np.clip(residual, -delta, delta) / (2 * ndtr(delta / scale) - 1)
    if delta >= scale:
        return errors, 1.0
    return errors * (1 - LESS * min(1.0, MANY / len(residual))), ROBUST


def quarter(values: np.ndarray) -> float:
    """Rousseeuw and Croux's Qn: the standard deviation by the lower quarter of all differences."""
    count = len(values)
    if count > LARGEST:
        values = np.sort(values)[np.linspace(0, count - 1, LARGEST).astype(int)]
    some = len(values)
    differences = np.abs(values[:, None] - values)[np.triu_indices(some, 1)]
    half = some // 2 + 1
    place = half * (half - 1) // 2 - 1
    if len(differences) <= place or place < 0:
        return 0.0
    factor = 1.0 if count > LARGEST else some / (some + (1.4 if some % 2 else 3.8))
    return float(2.2219 * factor * np.partition(differences, place)[place])


def _basis(columns: np.ndarray) -> np.ndarray:
    """An orthonormal basis of columns that are not numerically dependent."""
    size = np.sqrt((columns**2).sum(0))
    columns = columns[:, size > 1e-9 * max(size.max(initial=0.0), 1e-300)]
    if not columns.shape[1]:
        return columns
    u, s, _ = np.linalg.svd(columns / np.sqrt((columns**2).sum(0)), full_matrices=False)
    return u[:, s > 1e-7 * s[0]]
