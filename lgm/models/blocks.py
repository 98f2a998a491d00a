"""Stacks of blocks: how they are made, run over, recomputed in backward, and passed from stage to stage."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax import checkpoint_policies as policies
from jax.ad_checkpoint import checkpoint_name

from lgm.models.keys import Keys
from lgm.parallel import current
from lgm.parallel.pipeline import pipeline

Remat = Literal["none", "full", "attention", "dots", "offload"]

# What backward finds of a block's forward pass; it recomputes the rest. The input of a block is always kept.
POLICIES = {
    "none": None,  # everything
    "full": policies.nothing_saveable,  # nothing
    "attention": policies.save_only_these_names("attention", "flash"),  # what attention gave, the dearest to recompute
    # what products with weights gave, and kernels of attention that compute all in one
    "dots": policies.save_from_both_policies(
        policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names("flash")),
    # as "attention", with the inputs of the blocks in the host's memory until they are needed
    "offload": policies.save_and_offload_only_these_names(
        names_which_can_be_saved=["attention", "flash"], names_which_can_be_offloaded=["block"], offload_src="device",
        offload_dst="pinned_host",
    ),
}  # fmt: skip
assert set(POLICIES) == set(get_args(Remat))


def stack(make: Callable[[jax.Array], nnx.Module], depth: int, rngs: Keys) -> nnx.Module:
    """`depth` blocks `make(key)` as one module whose parameters have a leading axis of layers."""
    return jax.vmap(make)(jax.random.split(rngs.params(), depth))


def unstacked(blocks: Any, depth: int) -> list[Any]:
    """The blocks of a stack, cut at once: the gradient is one concatenation, of separate indices the sum of `depth`
    padded arrays."""
    parts = jax.tree.map(lambda p: [part[0] for part in jax.lax.split(p, [1] * depth)], blocks)
    return [jax.tree.map(lambda _, part: part[i], blocks, parts) for i in range(depth)]


def recomputed(fn: Callable, remat: Remat) -> Callable:
    """`fn` under the remat policy of that name."""
    return fn if POLICIES[remat] is None else jax.checkpoint(fn, policy=POLICIES[remat])


def run_blocks(blocks: Any, x: Any, step: Callable[[Any, Any, Any], Any], config, cond: Any = None,
               skip: Collection[int] = ()) -> Any:
    """x <- step(block, x, cond) over stacked blocks, but those of the numbers `skip`.

    x and cond are trees of arrays with a leading batch: what the blocks change, and what all of them read. Blocks run
    under a scan of `config.group` at a time, or all laid out when one group holds them, with `config.remat`; where the
    mesh has stages that the stack can fill, through the pipeline.
    """

    if skip:  # a number that is carried beside each block: to leave parts of a stack out would copy the rest
        made, depth = step, len(jax.tree.leaves(blocks)[0])
        blocks = blocks, jnp.asarray([i not in skip for i in range(depth)])
        step = lambda pair, x, cond: jax.lax.cond(pair[1], lambda: made(pair[0], x, cond), lambda: x)

    def block_step(block, x, cond):
        return step(block, jax.tree.map(lambda a: checkpoint_name(a, "block"), x), cond)

    body = recomputed(block_step, config.remat)

    def run(blocks, x, cond):
        depth = len(jax.tree.leaves(blocks)[0])
        if config.group >= depth:
            for block in unstacked(blocks, depth):
                x = body(block, x, cond)
            return x
        return jax.lax.scan(lambda x, block: (body(block, x, cond), None), x, blocks, unroll=config.group)[0]

    layout = current()
    if layout is not None and 1 < layout.size("stage") <= len(jax.tree.leaves(blocks)[0]):
        return pipeline(layout, run, blocks, x, cond)
    return run(blocks, x, cond)
