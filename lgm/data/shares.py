"""Sources served by weight: which record comes when, as arithmetic of (seed, n), stored nowhere.

Turns come in blocks. When e blocks of M are over, whoever has the share s of all turns has had floor(e M s) of them, in
exact arithmetic: so shares are realised to within a block, however long the run, and never drift. Within a block the
turns are shuffled. A source's turns serve its own endless sequence of permutations, so that each of its images comes
exactly once in each of its own epochs.
"""

import functools
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np

from lgm.data.order import shuffled

LARGEST = 1 << 16  # turns of a block, of shares so small that they have none in many


class Turns:
    """Whose the n-th turn is, of several with `shares` that sum to 1, in blocks of `unit` turns or of as many as give
    the smallest share one."""

    def __init__(self, shares: Sequence[Fraction], unit: int, seed: Sequence[int]):
        self.shares, self.seed = list(shares), tuple(seed)
        self.length = max(unit, min(int(-(-1 // min(shares))), LARGEST))
        self.block = functools.lru_cache(maxsize=4)(self._block)  # a batch may span the end of one

    def had(self, blocks: int) -> list[int]:
        """How many turns each has had after so many blocks."""
        return [blocks * self.length * share.numerator // share.denominator for share in self.shares]

    def __call__(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """(whose turn it is, which of theirs) for turns [start, stop): int64 each."""
        low, high = 0, start // self.length + len(self.shares) + 1
        while sum(self.had(high)) <= start:  # shares below one turn a block may leave blocks empty
            high *= 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if sum(self.had(middle)) <= start else (low, middle)
        found, at = [], start
        while at < stop:
            first = sum(self.had(low))
            turns = self.block(low)[:, at - first : stop - first]
            found.append(turns)
            at, low = at + turns.shape[1], low + 1
        return tuple(np.concatenate(found, 1))

    def _block(self, number: int) -> np.ndarray:
        before, after = np.array(self.had(number)), np.array(self.had(number + 1))
        counts = after - before
        whose = np.random.default_rng((*self.seed, number)).permutation(np.repeat(np.arange(len(counts)), counts))
        places = np.argsort(whose, kind="stable")
        which = np.empty(len(whose), np.int64)
        which[places] = np.arange(len(whose)) - np.repeat(np.cumsum(counts) - counts - before, counts)
        return np.stack([whose.astype(np.int64), which])


def mixed(parts: np.ndarray, weights: Sequence[float], size: int, seed: int, groups: np.ndarray | None = None
          ) -> Callable[[int], np.ndarray]:  # fmt: skip
    """`order(n) -> int64 [size]`: batch n of records of which `parts` say the source, served by the sources' `weights`.

    With `groups`, a label of every record, a batch holds records of one; a source's records are then served as often as
    each other to within one in every group.
    """
    groups = np.zeros(len(parts), np.int64) if groups is None else np.asarray(groups)
    weight = [Fraction(repr(float(one))) for one in weights]
    counts = np.bincount(parts, minlength=len(weights)).tolist()
    total = sum(one for one, count in zip(weight, counts, strict=True) if count)
    members: list[list[np.ndarray]] = []
    shares: list[list[Fraction]] = []
    for label in np.unique(groups):
        inside = [np.flatnonzero((groups == label) & (parts == part)) for part in range(len(weights))]
        there = [part for part, places in enumerate(inside) if len(places)]
        members.append([inside[part] for part in there])
        shares.append([weight[part] / total * Fraction(len(inside[part]), counts[part]) for part in there])
    sums = list(map(sum, shares))
    group_of = Turns(sums, 1, (seed, 1))
    turns = [Turns([share / of for share in some], size, (seed, 2, group))
             for group, (some, of) in enumerate(zip(shares, sums, strict=True))]
    number = lambda *words: int(np.random.SeedSequence((seed, 3, *words)).generate_state(1, np.uint64)[0])
    seeds = [[number(group, part) for part in range(len(some))] for group, some in enumerate(members)]

    def order(n: int) -> np.ndarray:
        (group,), (k,) = (row.tolist() for row in group_of(n, n + 1))
        whose, which = turns[group](k * size, (k + 1) * size)
        found = np.empty(size, np.int64)
        for part in np.unique(whose):
            mine = whose == part
            records, start = members[group][part], int(which[mine][0])
            found[mine] = records[shuffled(start, start + int(mine.sum()), len(records), seeds[group][part])]
        return found

    return order
