"""Pipeline parallelism over a stack of blocks (GPipe, Huang et al. 2019, 1811.06965): the stages have a part each, and
parts of the batch follow each other through them. Backward is its transpose: the same pipeline run the other way."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from lgm.parallel.layout import Layout, active_mesh
from lgm.parallel.rules import AXES, partition


def pipeline(layout: Layout, run: Callable[[Any, Any, Any], Any], blocks: Any, x: Any, cond: Any) -> Any:
    """`run(blocks, x, cond)` with the stacked `blocks` divided among the devices along `stage`.

    x and cond are trees of arrays with a leading batch; x is what the blocks change, cond what they all read. The
    batch goes through in `layout.microbatches` parts, and of as many ticks and one less than there are stages, the
    latter are idle. A stack that the stages do not divide is filled up with blocks of zeros, which change nothing: a
    residual block with zero weights is the identity. Raises ValueError where the parts do not divide the batch.
    """
    stages = layout.size("stage")
    parts = layout.microbatches or stages
    batch = len(jax.tree.leaves(x)[0])
    if batch % parts:
        raise ValueError(f"a batch of {batch} does not divide into config.mesh.microbatches={parts}; give a divisor")
    filled = lambda p: jnp.pad(p, ((0, -len(p) % stages), *((0, 0),) * (p.ndim - 1)))
    blocks = jax.tree.map(filled, blocks)
    x, cond = (jax.tree.map(lambda a: _in_parts(layout, a, parts), tree) for tree in (x, cond))

    def stage(blocks, x_parts, cond_parts):
        place = lax.axis_index("stage")
        pick = lambda tree, i: jax.tree.map(lambda a: a[jnp.clip(i, 0, parts - 1)], tree)

        def tick(came, time):
            first = pick(x_parts, time)
            x = jax.tree.map(lambda a, b: jnp.where(place == 0, a, b), first, came)
            x = run(blocks, x, pick(cond_parts, time - place))
            send = lambda a: lax.ppermute(a, "stage", [(i, i + 1) for i in range(stages - 1)])
            return jax.tree.map(send, x), x

        start = jax.tree.map(lambda a: jnp.zeros_like(a[0]), x_parts)
        _, left = lax.scan(tick, start, jnp.arange(parts + stages - 1))
        # what the last stage gave, on all of them
        done = lambda a: lax.psum(jnp.where(place == stages - 1, a[stages - 1 :], 0), "stage")
        return jax.tree.map(done, left)

    mesh, _ = active_mesh(layout)
    whole = PartitionSpec()
    staged = jax.shard_map(stage, mesh=mesh, in_specs=(PartitionSpec("stage"), whole, whole), out_specs=whole,
                           axis_names={"stage"}, check_vma=False)  # fmt: skip
    return jax.tree.map(lambda a: _whole(layout, a), staged(blocks, x, cond))


def _in_parts(layout: Layout, x: jax.Array, parts: int) -> jax.Array:
    """[B, ...] -> [parts, B / parts, ...], each part with its share of every device's examples."""
    x = _on_all_stages(layout, x, 0).reshape(-1, parts, *x.shape[1:])
    return _on_all_stages(layout, jnp.moveaxis(x, 1, 0), 1)


def _whole(layout: Layout, parts: jax.Array) -> jax.Array:
    """The inverse of `_in_parts`."""
    return _on_all_stages(layout, jnp.moveaxis(parts, 0, 1).reshape(-1, *parts.shape[2:]), 0)


def _on_all_stages(layout: Layout, x: jax.Array, batch: int) -> jax.Array:
    """x with the examples of dimension `batch` split over every axis of theirs but `stage`."""
    axes = [axis for axis in AXES if axis != "stage"]
    split = partition(x.shape[batch : batch + 1], ("batch",), layout.mesh.shape, layout.rules, axes)
    spec = [PartitionSpec.UNCONSTRAINED] * x.ndim
    spec[: batch + 1] = [None] * batch + list(split)
    return lax.with_sharding_constraint(x, NamedSharding(layout.mesh, PartitionSpec(*spec)))
