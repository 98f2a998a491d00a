"""Batches without end: shuffled by seed and epoch, split over processes, resumable at any step.

Batch n is a function of (seed, n): the order of all examples is one sequence of permutations, batch n is its n-th
slice of `batch_size`, and each process serves its own share of that slice. The iterator's state is n, so a run goes on
unchanged when it is resumed on another number of processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grain
import numpy as np

from lgm.data.order import grouped, shuffled

AHEAD = 2  # batches that a background thread holds ready; the state counts only those handed out


def cores() -> int:
    """Processor cores that this process may run on: Pillow decodes on as many at once, and cluster managers give the
    processes of one machine cores of their own."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def batches(
    arrays: Mapping[str, Any],
    *,
    batch_size: int,
    seed: int,
    image: Callable[[int], np.ndarray] | None = None,
    groups: np.ndarray | None = None,
    process_index: int = 0,
    process_count: int = 1,
    threads: int | None = None,
) -> grain.DatasetIterator:
    """A grain iterator over dicts of arrays [batch_size / process_count, ...], with "index" int64 [B]; it never ends.

    arrays: equally long arrays, one record a row, taken by `array[indices]`. image: an optional function of an index
    that gives uint8 [H, W, 3]; `threads` threads, by default one a core, read the images of a batch, which is served as
    "image". groups: an optional label of every record; a batch then holds records of one label (images of one shape,
    say), the same for all processes; every record is served as often as any other, those of a label with fewer than a
    batch's more than once in a batch. Without groups every record is served exactly once an epoch, and a batch may span
    the end of one.
    `get_state()` and `set_state()` make it resumable.
    Raises ValueError when lengths differ, the batch is larger than the set, or it does not divide over the processes.
    """
    lengths = {name: len(array) for name, array in arrays.items()} | ({} if groups is None else {"groups": len(groups)})
    if len(set(lengths.values())) != 1:
        raise ValueError(f"batches need arrays of one length; there are {lengths or 'none'}")
    count = next(iter(lengths.values()))
    if not 0 < batch_size <= count:
        raise ValueError(f"config.batch_size={batch_size} must lie between 1 and the data set's {count} images")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index} must lie in [0, process_count={process_count})")
    if batch_size % process_count:
        raise ValueError(f"config.batch_size={batch_size} is not divisible by {process_count} processes; give a "
                         f"multiple of {process_count}")
    if seed < 0:
        raise ValueError(f"config.seed={seed} must be at least 0")
    share = batch_size // process_count
    first = process_index * share
    if groups is None:
        mine = lambda n: shuffled(n * batch_size + first, n * batch_size + first + share, count, seed)
    else:
        whole = grouped(np.asarray(groups), batch_size, seed)
        mine = lambda n: whole(n)[first : first + share]
    pool = ThreadPoolExecutor(threads or cores(), thread_name_prefix="read") if image else None

    def gather(n: int) -> dict[str, np.ndarray]:
        indices = mine(n)
        batch = {name: np.asarray(array[indices]) for name, array in arrays.items()} | {"index": indices}
        return batch | {"image": np.stack(list(pool.map(image, indices.tolist())))} if image else batch

    dataset = grain.MapDataset.source(_Endless(gather))
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=AHEAD)))


class _Endless:
    """A random-access source for grain: record n is `make(n)`, for any n."""

    def __init__(self, make: Callable[[int], Any]):
        self.make = make

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, n) -> Any:
        return self.make(int(n))
