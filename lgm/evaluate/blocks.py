"""Work cut into blocks of one size, each done on one device by a program of its own: the same bits on any mesh.

A block is the same program on the same rows wherever it is computed, and rows come back in their order: so nothing that
is made of them depends on how many devices or processes there were. Over a batch that is split among devices it would:
products of other sizes are summed in other orders.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

Act = Callable[[Any, np.ndarray], Sequence[np.ndarray]]


def in_blocks(act: Act, count: int, size: int, together: bool = False) -> list[np.ndarray]:
    """What `act(device, rows [size])` gives of rows 0 to `count` - 1, in their order: arrays [count, ...], whole in
    every process, all of which must ask.

    `act` returns arrays [size, ...]; the last block's rows repeat the last. Blocks go to all devices of all processes
    in turn; those of one process are done side by side, each under its device as JAX's default. `together`: all
    processes do every block, on no device of its own (None), for networks that are split over all of them.
    """
    starts, devices = list(range(0, count, size)), jax.local_devices()
    rows_of = lambda start: np.minimum(np.arange(start, start + size), count - 1)
    if together:
        blocks = [act(None, rows_of(start)) for start in starts]
        return [np.concatenate(parts)[:count] for parts in zip(*blocks, strict=True)]
    processes = jax.process_count()
    mine = starts[jax.process_index() :: processes]

    def work(number: int) -> list[tuple[int, Sequence[np.ndarray]]]:
        device, done = devices[number], []
        with jax.default_device(device):
            for start in mine[number :: len(devices)]:
                done.append((start, [np.asarray(part) for part in act(device, rows_of(start))]))
        return done

    with ThreadPoolExecutor(len(devices)) as pool:
        done = [pair for pairs in pool.map(work, range(len(devices))) for pair in pairs]
    blocks = [parts for _, parts in sorted(done, key=lambda pair: pair[0])]
    if processes == 1:
        return [np.concatenate(parts)[:count] for parts in zip(*blocks, strict=True)]
    return [_gathered([block[i] for block in blocks], len(starts), count) for i in range(_width(blocks))]


def _width(blocks: list) -> int:
    """How many arrays a block is; a process that got no block hears it from another."""
    return int(multihost_utils.process_allgather(np.int32(len(blocks[0]) if blocks else 0)).max())


def _gathered(blocks: list[np.ndarray], count: int, rows: int) -> np.ndarray:
    """The blocks of all processes, [rows, ...]: block i is the (i // processes)-th of process i % processes."""
    processes = jax.process_count()
    known = np.zeros(10, np.int64)  # a block's shape and type, for a process without one
    if blocks:
        known[:2] = blocks[0].ndim, ord(blocks[0].dtype.char)
        known[2 : 2 + blocks[0].ndim] = blocks[0].shape
    known = multihost_utils.process_allgather(known.astype(np.int32)).reshape(processes, -1).max(0)
    shape, dtype = tuple(known[2 : 2 + known[0]]), np.dtype(chr(known[1]))
    own = np.zeros((-(-count // processes), *shape), dtype)
    for place, block in enumerate(blocks):
        own[place] = block
    # as bytes, whatever they are of: without 64-bit types JAX would halve them
    whole = multihost_utils.process_allgather(np.frombuffer(own.tobytes(), np.uint8))
    whole = np.frombuffer(whole.tobytes(), dtype).reshape(processes, *own.shape)
    return np.concatenate([whole[i % processes, i // processes] for i in range(count)])[:rows]
