"""Between the host and all devices: results back whole, and what every process has out to its places."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from lgm.parallel.layout import Layout


def fetch(array: jax.Array) -> np.ndarray:
    """The whole array as numpy. Of several processes all must ask, and each gets all of it."""
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        return multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def on_first(tree: Any) -> Any:
    """A tree whose arrays the first process can read whole, one fetched after the other; all processes must ask, and
    the others get None in their place. What lies in one process stays as it is."""
    if jax.process_count() == 1:
        return tree
    keep = (lambda array: array) if jax.process_index() == 0 else (lambda array: None)
    return jax.tree.map(lambda leaf: keep(fetch(leaf)), tree)


def put(tree: Any, shardings: Any) -> Any:
    """Host arrays, the same in every process, as arrays of `shardings`: each process sends its devices their parts."""

    def place(leaf, sharding):
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(place, tree, shardings)


def spread(layout: Layout | None, *rows: np.ndarray) -> tuple[jax.Array | np.ndarray, ...]:
    """Host arrays of equally many rows, the same in every process, over the shares of a layout's batch; whole on every
    device where they do not divide, and as they are without a layout."""
    if layout is None or layout.mesh.size == 1:
        return rows
    place = layout.batch if len(rows[0]) % layout.batch_shares == 0 else layout.whole
    return tuple(put(list(rows), [place] * len(rows)))


def even(layout: Layout | None, count: int) -> int:
    """The number of rows, `count` or a little more, that divides over a layout's shares."""
    shares = 1 if layout is None else layout.batch_shares
    return -(-count // shares) * shares


def in_batches(act: Callable[[np.ndarray], jax.Array], count: int, size: int) -> np.ndarray:
    """What `act` gives of rows 0 to `count` - 1, [count, ...]: it is asked for `size` of them each time, the last ones
    repeated, so that one program serves all."""
    found = [fetch(act(np.minimum(np.arange(start, start + size), count - 1)))[: count - start]
             for start in range(0, count, size)]
    return np.concatenate(found)


def agreed(value: int) -> int:
    """The first process's value, in every process: what is decided by looking at a shared folder, whose other views
    may be late."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(value))) if jax.process_count() > 1 else value
