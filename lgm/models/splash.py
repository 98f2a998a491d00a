"""Splash attention, the Pallas kernel for TPUs that JAX carries, with any lengths and a mask of keys."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from lgm.parallel import device_kind
from lgm.parallel.chips import chip_of
from lgm.parallel.options import own_memory

LANES = 128
BLOCKS = (640, 512, 384, 256, 128)  # tokens of queries and of keys that the kernels compute with at a time
STEP = 64  # tokens whose work a step of a kernel's grid costs besides its own, as weighed against padding
# bytes of a core's own memory that the backward kernel takes for a key, twice what it reads and writes of one, for the
# next are fetched meanwhile (keys, values, their gradients, 32-bit sums of these, segments; narrow heads fill 128
# lanes), and for a pair of a query and a key that are computed with
A_KEY, A_PAIR = 2 * (4 * 2 + 2 * 4 + 4), 4 * 5


def splash(q_BTND: jax.Array, k_BSMD: jax.Array, v_BSMD: jax.Array, mask_BS: jax.Array | None = None, *,
           causal: bool = False, scale: float | None = None, interpret: bool = False) -> jax.Array:
    """softmax(scale q k^T) v, [B, T, N, D], as `attention` has it; `interpret` runs its program without a TPU.

    Lengths are padded to whole blocks; padded keys, and those where mask_BS is False, are of another segment than all
    queries and do not count. What backward reads of it is named "flash".
    """
    b, t, n, d = q_BTND.shape
    s = k_BSMD.shape[1]
    block_q, block_k = _block(t), _block(s)
    pad = lambda x, block: jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), (0, 0), (0, 0))).transpose(0, 2, 1, 3)
    q, k, v = pad(q_BTND * (d**-0.5 if scale is None else scale), block_q), pad(k_BSMD, block_k), pad(v_BSMD, block_k)
    segments = None
    if mask_BS is not None or s % block_k:
        counts_BS = jnp.ones((b, s), bool) if mask_BS is None else mask_BS
        counts_BS = jnp.pad(counts_BS, ((0, 0), (0, -s % block_k)))
        segments = kernels.SegmentIds(jnp.ones((b, q.shape[2]), jnp.int32), counts_BS.astype(jnp.int32))
    forward = backward = block_q, block_k
    if not causal:  # where blocks are left out, these are better small
        few = min(block_q, _side())  # queries, for the backward kernel's code grows with these times the keys at once
        backward = few, _at_once(k.shape[2], few, block_k, d)
    kernel = _kernel(n, q.shape[2], k.shape[2], forward, backward, causal, interpret)
    attended_BNTD = jax.vmap(kernel)(q, k, v, segments)
    return attended_BNTD.transpose(0, 2, 1, 3)[:, :t]


def _block(length: int) -> int:
    """The block of least work: padding against steps of the grid, in whole sides of the chip's matrix unit."""
    sides = [block for block in BLOCKS if block % _side() == 0 and length > LANES] or [LANES]
    return min(sides, key=lambda block: (length + -length % block) * (1 + STEP / block))


def _side() -> int:
    """Of the chip's matrix unit."""
    chip = chip_of(device_kind())
    return chip.mxu if chip and chip.mxu else LANES


def _at_once(keys: int, block_q: int, block_k: int, width: int) -> int:
    """Keys that the backward kernel keeps in a core's own memory: of each so many, gradients of all queries are written
    and summed afterwards, so as many as there is room for."""
    room = own_memory() - A_PAIR * block_q * block_k
    a_key = A_KEY * (width + -width % LANES)
    count = keys // block_k
    return block_k * max((n for n in range(1, count + 1) if count % n == 0 and n * block_k * a_key <= room), default=1)


def _kernel(heads: int, queries: int, keys: int, forward: tuple[int, int], backward: tuple[int, int], causal: bool,
            interpret: bool):  # fmt: skip
    (block_q, block_k), (few, at_once) = forward, backward
    sizes = kernels.BlockSizes(
        block_q=block_q, block_kv=block_k, block_kv_compute=block_k, block_q_dkv=few, block_kv_dkv=at_once,
        block_kv_dkv_compute=block_k, use_fused_bwd_kernel=True,
    )  # fmt: skip
    mask = masks.MultiHeadMask([(masks.CausalMask if causal else masks.FullMask)((queries, keys))] * heads)
    make = functools.partial(kernels.make_splash_mha, head_shards=1, q_seq_shards=1)
    return make(mask, block_sizes=sizes, residual_checkpoint_name="flash", interpret=interpret)
