"""The order of examples: for every epoch another permutation, computed where it is asked for and stored nowhere.

A Feistel network over the bits of a position is a bijection whatever its round function; walking its cycle until the
result falls below `count` makes it one of [0, count) (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
So an order over a billion records costs no memory and no pause at an epoch's start. A small set, whose cycles would be
long beside it, is ordered by hashes of its places.
"""

import functools

import numpy as np

ROUNDS = 8
SMALL = 256


def permuted(positions: np.ndarray, count: int, seed: int, epoch: int) -> np.ndarray:
    """Where the permutation of (seed, epoch) sends `positions`: int64, both in [0, count)."""
    keys = np.random.SeedSequence((seed, epoch)).generate_state(ROUNDS, np.uint64)
    if count <= SMALL:
        return np.argsort(_mix(_mix(np.arange(count, dtype=np.uint64) + keys[0]) + keys[1]))[positions]
    half = np.uint64(-(-(count - 1).bit_length() // 2))  # of a position's bits
    mask = np.uint64((1 << int(half)) - 1)
    x = np.array(positions, np.uint64)
    walking = np.arange(len(x))
    while len(walking):
        left, right = x[walking] >> half, x[walking] & mask
        for key in keys:
            left, right = right, left ^ (_mix(right + key) & mask)
        x[walking] = left << half | right
        walking = walking[x[walking] >= count]
    return x.astype(np.int64)


def shuffled(start: int, stop: int, count: int, seed: int) -> np.ndarray:
    """Elements [start, stop) of the endless sequence of all epochs' permutations: int64 [stop - start]."""
    epochs, positions = np.divmod(np.arange(start, stop), count)
    parts = [permuted(positions[epochs == epoch], count, seed, int(epoch)) for epoch in np.unique(epochs)]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def grouped(groups: np.ndarray, size: int, seed: int):
    """`order(n) -> int64 [size]`, records of one group each time, every record as often as any other.

    The records of a group are one endless sequence of its own permutations, cut into batches: a batch may span the end
    of one, and one of a group of fewer records holds some of them twice. After e epochs, of as many records as there
    are, a group has had all of its batches that are whole by then; those that an epoch adds come in shuffled order.
    Which batches these are is arithmetic, so that any n costs the same.
    """
    members = [np.flatnonzero(groups == label) for label in np.unique(groups)]
    lengths = np.array([len(group) for group in members], np.int64)
    seeds = [int(np.random.SeedSequence((seed, i)).generate_state(1, np.uint64)[0]) for i in range(len(members))]
    whole = lambda epochs: epochs * lengths // size  # [groups], batches after so many epochs

    def plan(epoch: int) -> np.ndarray:
        """(group, number of its batch) of every batch that an epoch adds."""
        first, last = whole(epoch), whole(epoch + 1)
        added = [(group, k) for group in range(len(members)) for k in range(first[group], last[group])]
        return np.random.default_rng((seed, epoch)).permutation(np.array(added, np.int64).reshape(-1, 2))

    def order(n: int) -> np.ndarray:
        low, high = 0, n * size // len(groups) + size  # the last epoch with at most n batches before it lies between
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if whole(middle).sum() <= n else (low, middle)
        group, k = planned(low)[n - whole(low).sum()]
        return members[group][shuffled(k * size, (k + 1) * size, len(members[group]), seeds[group])]

    planned = functools.lru_cache(maxsize=2)(plan)  # a batch read ahead may lie in the next epoch
    return order


def _mix(x: np.ndarray) -> np.ndarray:
    """A hash of 64 bits in which every bit of the input turns half of the output's: the finalizer of SplitMix64."""
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)
