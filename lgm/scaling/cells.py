"""Rows gathered where they tell the same: what draws are fitted to when a table has more rows than they need.

Rows of one run within a few per cent of data, or runs of nearly one size and amount, lie on one point of a law that is
smooth there. Their mean tells as much as they do, and a table of a hundred thousand rows of learning curves is a few
hundred such points. Tables of no more than `MOST` rows stay as they are.
"""

import dataclasses

import numpy as np

from lgm.scaling.table import Runs

MOST = 1000
GROUPS = 200  # runs that are told apart, at most; more are gathered by size


@dataclasses.dataclass(frozen=True)
class Cells:
    """Means of rows.

    Attributes:
      n, d: geometric means [cells]. rows: how many each stands for [cells]. of: [rows] each row's cell.
      group: [cells] integers; cells of one group share the noise of its `members` [groups] training runs.
      shared: whether some group has several cells, so that runs have a noise of their own.
    """

    n: np.ndarray
    d: np.ndarray
    rows: np.ndarray
    of: np.ndarray
    group: np.ndarray
    members: np.ndarray
    shared: bool

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Means [cells] of values [rows]."""
        return np.bincount(self.of, values, len(self.rows)) / self.rows


def each(runs: Runs) -> Cells:
    """Every row a cell of its own."""
    _, run = np.unique(runs.run, return_inverse=True)
    shared = bool(run.max(initial=0) + 1 < len(run))
    group = run if shared else np.arange(len(run))
    ones = np.ones(group.max(initial=-1) + 1)
    return Cells(runs.n, runs.d, np.ones(len(run)), np.arange(len(run)), group, ones, shared)


def gather(runs: Runs) -> Cells:
    """The cells of a family's rows."""
    if len(runs) <= MOST:
        return each(runs)
    _, run = np.unique(runs.run, return_inverse=True)
    shared = run.max(initial=0) + 1 < len(run)
    x, y = np.log(runs.n), np.log(runs.d)
    # runs, or sizes in bands, as narrow as their number allows
    group = run if shared and run.max() < GROUPS else _numbered(_bands(x, GROUPS // 3))
    count = max(MOST // (group.max() + 1), 8)
    of = _numbered(group * (count + 1) + _bands(y, count))
    rows = np.bincount(of)
    mean = lambda values: np.exp(np.bincount(of, values) / rows)
    first = np.unique(of, return_index=True)[1]
    group = _numbered(group[first]) if shared else np.arange(len(rows))
    pairs = np.unique(np.stack([group[of], run]), axis=1)[0] if shared else group
    return Cells(mean(np.log(runs.n)), mean(np.log(runs.d)), rows.astype(float), of, group,
                 np.bincount(pairs).astype(float), bool(shared))


def _bands(values: np.ndarray, count: int) -> np.ndarray:
    """Numbers 0 .. count - 1 of equal bands between the lowest and the highest value."""
    span = np.ptp(values)
    return np.zeros(len(values), int) if span <= 0 else np.minimum(
        ((values - values.min()) / span * count).astype(int), count - 1)


def _numbered(values: np.ndarray) -> np.ndarray:
    """The same partition by numbers 0, 1, ... without gaps."""
    return np.unique(values, return_inverse=True)[1].reshape(-1)
