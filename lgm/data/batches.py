"""Batches without end: shuffled by seed and epoch, split over processes, resumable at any step.

Batch n is a function of (seed, n): the order of all examples is one sequence of permutations, batch n is its n-th
slice of `batch_size`, and each process serves its own share of that slice. The iterator's state is n, so a run goes on
unchanged when it is resumed on another number of processes.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grain
import numpy as np

from lgm.data.order import grouped, shuffled
from lgm.data.quarantine import Quarantine
from lgm.data.shares import mixed
from lgm.processes.affinity import allowed

AHEAD = 2  # batches that background threads make ready; the state counts only those handed out


def cores() -> int:
    """Processor cores that this process may run on: Pillow decodes on as many at once, and cluster managers give the
    processes of one machine cores of their own."""
    return len(allowed())


def batches(
    arrays: Mapping[str, Any],
    *,
    batch_size: int,
    seed: int,
    image: Callable[..., np.ndarray] | None = None,
    derived: Callable[..., Mapping[str, np.ndarray]] | None = None,
    serving: bool = False,
    bad: Quarantine | None = None,
    groups: np.ndarray | None = None,
    parts: np.ndarray | None = None,
    weights: Sequence[float] = (),
    length: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    threads: int | None = None,
) -> grain.DatasetIterator:
    """A grain iterator over dicts of arrays [batch_size / process_count, ...], with "index" int64 [B]; it never ends.

    arrays: equally long arrays, one record a row, taken by `array[indices]`; without any, `length` says how many
    records there are. derived: more of them, made of a batch's indices, as tokens of captions are. image: a function of
    an index that gives uint8 [H, W, 3]; `threads` threads, by default one a core, read the images of a batch, which is
    served as "image". serving: both are also given serving numbers, n x batch_size and on, of which they may draw what
    is random: `image(index, serving)`, `derived(indices, servings)`. bad: where a record is noted whose image or
    caption cannot be read; the next good one of its group stands in for it, in every epoch and on every number of
    processes. Without it the error is raised.
    groups: a label of every record; a batch then holds records of one label (images of one shape, say), the same for
    all processes; every record is served as often as any other, those of a label with fewer than a batch's more than
    once in a batch. Without groups every record is served exactly once an epoch, and a batch may span the end of one.
    parts: the number of every record's source; they are served by their `weights` (`lgm.data.shares`), and each one's
    records once in each of its own epochs.
    `get_state()` and `set_state()` make it resumable.
    Raises ValueError when lengths differ, the batch is larger than the set, or it does not divide over the processes.
    """
    groups = None if groups is None else np.asarray(groups)
    lengths = {name: len(array) for name, array in arrays.items()} | ({} if groups is None else {"groups": len(groups)})
    lengths |= {} if length is None else {"length": length}
    lengths |= {} if parts is None else {"parts": len(parts)}
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
    alike = groups  # records of which one may stand in for another
    if parts is not None:
        whole = mixed(parts, weights, batch_size, seed, groups)
        mine = lambda n: whole(n)[first : first + share]
        alike = parts if groups is None else groups.astype(np.int64) * len(weights) + parts
    elif groups is None:
        mine = lambda n: shuffled(n * batch_size + first, n * batch_size + first + share, count, seed)
    else:
        whole = grouped(groups, batch_size, seed)
        mine = lambda n: whole(n)[first : first + share]
    threads = threads or cores()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="read") if image else None

    given = (lambda *words: words) if serving else (lambda *words: words[:1])
    derived = derived or (lambda *words: {})

    def record(index: int, number: int) -> tuple[int, np.ndarray, Mapping[str, np.ndarray]]:
        return index, image(*given(index, number)), derived(*given(np.array([index]), np.array([number])))

    def whole_record(index: int, number: int) -> tuple[int, np.ndarray, Mapping[str, np.ndarray]]:
        """(a record, its image, what is derived of it): the one asked for or, where that is bad, the next of its group
        that is not."""
        if bad is None:
            return record(index, number)
        same = range(count) if alike is None else np.flatnonzero(alike == alike[index])
        first = index if alike is None else int(np.searchsorted(same, index))
        for step in range(len(same)):
            other = int(same[(first + step) % len(same)])
            try:
                return record(other, number)
            except ValueError as error:
                bad.note(other, str(error))
        raise ValueError(f"none of {len(same)} images of a group can be read; see {bad.path}")

    def gather(n: int) -> dict[str, np.ndarray]:
        indices, made = mine(n), {}
        numbers = n * batch_size + first + np.arange(share)
        if image:
            found, pixels, rows = zip(*pool.map(whole_record, indices.tolist(), numbers.tolist()), strict=True)
            indices, made = np.array(found, np.int64), {"image": np.stack(pixels)}
            made |= {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        else:
            made |= derived(*given(indices, numbers))
        if bad is not None:
            bad.write()
        return {name: np.asarray(array[indices]) for name, array in arrays.items()} | made | {"index": indices}

    dataset = grain.MapDataset.source(_Endless(gather))
    # several batches at once, or threads would wait for a batch's last image, and a share smaller than the cores leave
    # some without any
    ahead = max(AHEAD, -(-threads // share) + 1) if image else AHEAD
    return iter(dataset.to_iter_dataset(grain.ReadOptions(ahead if image else 1, ahead)))


class _Endless:
    """A random-access source for grain: record n is `make(n)`, for any n."""

    def __init__(self, make: Callable[[int], Any]):
        self.make = make

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, n) -> Any:
        return self.make(int(n))
