"""The order of examples: for every epoch another permutation, computed where it is asked for and stored nowhere.

A Feistel network over the bits of a position is a bijection whatever its round function; walking its cycle until the
result falls below `count` makes it one of [0, count) (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
So an order over a billion records costs no memory and no pause at an epoch's start.
"""

from __future__ import annotations

import functools

import numpy as np

ROUNDS = 8


def permuted(positions: np.ndarray, count: int, seed: int, epoch: int) -> np.ndarray:
    """Where the permutation of (seed, epoch) sends `positions`: int64, both in [0, count)."""
    # half of a position's bits; with fewer than 4 the permutations of tiny sets are not equally likely
    half = np.uint64(max(4, -(-(count - 1).bit_length() // 2)))
    mask = np.uint64((1 << int(half)) - 1)
    keys = np.random.SeedSequence((seed, epoch)).generate_state(ROUNDS, np.uint64)
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
    """`order(n) -> int64 [size]`, records of one group each time, and the number of such batches in an epoch.

    Each epoch shuffles every group, cuts it into whole batches and shuffles those; what is left over of a group waits
    for another epoch's shuffle.
    """
    members = [np.flatnonzero(groups == label) for label in np.unique(groups)]
    per_epoch = sum(len(group) // size for group in members)

    @functools.lru_cache(maxsize=2)  # a batch read ahead may lie in the next epoch
    def plan(epoch: int) -> np.ndarray:
        rng = np.random.default_rng((seed, epoch))
        whole = [rng.permutation(group)[: len(group) // size * size] for group in members]
        return rng.permutation(np.concatenate(whole).reshape(-1, size))

    return lambda n: plan(n // per_epoch)[n % per_epoch], per_epoch


def _mix(x: np.ndarray) -> np.ndarray:
    """A hash of 64 bits in which every bit of the input turns half of the output's: the finalizer of SplitMix64."""
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)
