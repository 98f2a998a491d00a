"""Splash attention, the Pallas kernel for TPUs that JAX carries, with any lengths and a mask of keys."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

BLOCKS = (512, 384, 256, 128)  # tokens of queries and keys that the kernel takes at a time, multiples of 128 lanes


def splash(q_BTND: jax.Array, k_BSMD: jax.Array, v_BSMD: jax.Array, mask_BS: jax.Array | None = None, *,
           causal: bool = False, scale: float | None = None, interpret: bool = False) -> jax.Array:
    """softmax(scale q k^T) v, [B, T, N, D], as `attention` has it; `interpret` runs its program without a TPU.

    Lengths are padded to whole blocks; padded keys, and those where mask_BS is False, are of another segment than all
    queries and do not count.
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
    kernel = _kernel(n, q.shape[2], k.shape[2], block_q, block_k, causal, interpret)
    attended_BNTD = jax.vmap(kernel)(q, k, v, segments)
    return attended_BNTD.transpose(0, 2, 1, 3)[:, :t]


def _block(length: int) -> int:
    """The block that pads `length` least, and of those the largest."""
    return min(BLOCKS, key=lambda block: (-length % block, -block))


def _kernel(heads: int, queries: int, keys: int, block_q: int, block_k: int, causal: bool, interpret: bool):
    sizes = kernels.BlockSizes(
        block_q=block_q, block_kv=block_k, block_kv_compute=block_k, block_q_dkv=block_q, block_kv_dkv=block_k,
        block_kv_dkv_compute=block_k, use_fused_bwd_kernel=True,
    )  # fmt: skip
    mask = masks.MultiHeadMask([(masks.CausalMask if causal else masks.FullMask)((queries, keys))] * heads)
    make = functools.partial(kernels.make_splash_mha, head_shards=1, q_seq_shards=1)
    return make(mask, block_sizes=sizes, residual_checkpoint_name="attention", interpret=interpret)
