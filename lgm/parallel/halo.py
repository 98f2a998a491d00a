"""Convolutions of feature maps whose rows are split over `context`: each device gets the rows beyond its border from
its neighbours (a halo) and convolves what it then has. XLA's own partitioning of convolutions by rows is not used:
where channels are split too, it was found to add up contributions several times."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from lgm.parallel.layout import active_mesh, current


def convolve_rows(convolve: Callable, x_BHWC: jax.Array, kernel: jax.Array, stride: int, padding) -> jax.Array:
    """`convolve(x, kernel, stride, padding)`, on each device's rows where these are split.

    padding is ((above, below), (left, right)), zeros. Rows stay whole where they do not divide, or where an output row
    would need more than a neighbour has.
    """
    layout = current()
    shares = 1 if layout is None else layout.size("context")
    size, (above, end) = kernel.shape[0], padding[0]
    below = size - stride - above  # rows that the last output row of a share needs of the next one
    height, rows = x_BHWC.shape[1], x_BHWC.shape[1] // shares
    as_many = (height + above + end - size) // stride + 1 == height // stride
    fits = height % (shares * stride) == 0 and as_many and 0 <= below <= rows and above <= rows
    if shares == 1 or not fits or "context" not in layout.rules["height"]:
        return convolve(x_BHWC, kernel, stride, padding)

    def share(x, kernel):
        upper = lax.ppermute(x[:, rows - above :], "context", [(i, i + 1) for i in range(shares - 1)])
        lower = lax.ppermute(x[:, :below], "context", [(i, i - 1) for i in range(1, shares)])
        halo = [part for part, count in ((upper, above), (x, 1), (lower, below)) if count]
        return convolve(jnp.concatenate(halo, 1), kernel, stride, ((0, 0), padding[1]))  # nothing came: zeros

    mesh, _ = active_mesh(layout)
    split = PartitionSpec(None, "context")
    return jax.shard_map(share, mesh=mesh, in_specs=(split, PartitionSpec()), out_specs=split, axis_names={"context"},
                         check_vma=False)(x_BHWC, kernel)  # fmt: skip
