"""The one front door of attention: which kernel computes it depends on the platform, what it computes does not."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from lgm.parallel import platform

Implementation = Literal["auto", "xla", "cudnn"]


def attention(q_BTND: jax.Array, k_BSND: jax.Array, v_BSND: jax.Array, mask_BS: jax.Array | None = None,
              implementation: Implementation = "auto") -> jax.Array:
    """softmax(q k^T / sqrt(D)) v in the layout [B, T, N, D], softmax in float32.

    mask_BS is True for keys that count. "auto" takes cuDNN on a GPU for 16-bit inputs, XLA elsewhere; cuDNN is given
    lengths padded to a multiple of 64, because it refuses odd ones in training.
    """
    if implementation == "auto":
        sixteen_bits = q_BTND.dtype in (jnp.bfloat16, jnp.float16)
        implementation = "cudnn" if platform() == "gpu" and sixteen_bits else "xla"
    if implementation == "cudnn":
        return _cudnn(q_BTND, k_BSND, v_BSND, mask_BS)
    return _xla(q_BTND, k_BSND, v_BSND, mask_BS)


def _xla(q_BTND, k_BSND, v_BSND, mask_BS):
    scores_BNTS = jnp.einsum("btnd,bsnd->bnts", q_BTND * q_BTND.shape[-1] ** -0.5, k_BSND,
                             preferred_element_type=jnp.float32)
    if mask_BS is not None:
        scores_BNTS += jnp.where(mask_BS, 0.0, -1e30)[:, None, None, :]
    weights_BNTS = jax.nn.softmax(scores_BNTS, axis=-1).astype(q_BTND.dtype)
    return jnp.einsum("bnts,bsnd->btnd", weights_BNTS, v_BSND)


def _cudnn(q_BTND, k_BSND, v_BSND, mask_BS):
    t, s = q_BTND.shape[1], k_BSND.shape[1]
    pad = lambda x: jnp.pad(x, ((0, 0), (0, -x.shape[1] % 64), (0, 0), (0, 0)))
    if mask_BS is None and s % 64:
        mask_BS = jnp.ones((len(k_BSND), s), bool)
    mask = None if mask_BS is None else jnp.pad(mask_BS, ((0, 0), (0, -s % 64)))[:, None, None, :]
    y = jax.nn.dot_product_attention(pad(q_BTND), pad(k_BSND), pad(v_BSND), mask=mask, implementation="cudnn")
    return y[:, :t]
