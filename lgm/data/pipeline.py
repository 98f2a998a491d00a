"""Batches without end: shuffled by seed and epoch, split over processes, resumable at any step.

Batch n is a function of (seed, n): the order of all examples is one sequence of permutations, batch n is its n-th
slice of `batch_size`, and each process serves its own share of that slice. The iterator's state is n.
"""

from __future__ import annotations

from collections.abc import Mapping

import grain
import numpy as np


class _Source:
    """A random-access source for grain: record i is {name: array[i]}, with "index" i."""

    def __init__(self, arrays: Mapping[str, np.ndarray], lazy=None):
        self.arrays, self.lazy = dict(arrays), lazy
        self.length = len(next(iter(self.arrays.values())))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index) -> dict[str, np.ndarray]:
        index = int(index)
        record = {name: array[index] for name, array in self.arrays.items()} | {"index": np.int64(index)}
        return record | {"image": self.lazy(index)} if self.lazy else record


def batches(arrays: Mapping[str, np.ndarray], *, batch_size: int, seed: int, image=None, process_index: int = 0,
            process_count: int = 1, threads: int = 4):
    """A grain iterator over dicts of arrays [batch_size / process_count, ...]; it never ends.

    arrays: equally long arrays, one record a row. image: an optional `index -> uint8 [H, W, 3]` that is read by
    `threads` reader threads as batches are needed. `get_state()` and `set_state()` make it resumable.
    Raises ValueError when the batch is larger than the set or does not divide over the processes.
    """
    source = _Source(arrays, image)
    if batch_size > len(source):
        raise ValueError(f"config.batch_size={batch_size} is larger than the {len(source)} images; give at most that")
    if batch_size % process_count:
        raise ValueError(f"config.batch_size={batch_size} is not divisible by {process_count} processes; give a "
                         f"multiple of {process_count}")
    share = batch_size // process_count
    first = process_index * share
    dataset = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    # the global order is cut into batches first and each batch into shares, so it does not depend on process_count
    if process_count > 1:
        dataset = _Share(dataset, batch_size, first, share)
    options = grain.ReadOptions(num_threads=threads if image else 0, prefetch_buffer_size=4 * share)
    return iter(dataset.batch(share, drop_remainder=True).to_iter_dataset(options))


class _Share(grain.MapDataset):
    """Of every `batch_size` consecutive records, those from `first` to `first + share`."""

    def __init__(self, parent: grain.MapDataset, batch_size: int, first: int, share: int):
        super().__init__(parent)
        self.batch_size, self.first, self.share = batch_size, first, share

    def __len__(self) -> int:
        return len(self._parent) // self.batch_size * self.share

    def __getitem__(self, index: int):
        batch, place = divmod(index, self.share)
        return self._parent[batch * self.batch_size + self.first + place]
