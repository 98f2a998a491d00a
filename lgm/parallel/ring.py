"""Attention over tokens that are split over a mesh axis; to be called inside `shard_map`, on each device's share.

`ring` passes keys and values round (Liu et al. 2023, 2310.01889) and never holds those of more than one device;
`ulysses` exchanges tokens for heads (Jacobs et al. 2023, 2309.14509), so that any kernel does the rest.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

MASKED = -1e30  # the score of a key that does not count


def ulysses(kernel, q_BTND: jax.Array, k_BTND: jax.Array, v_BTND: jax.Array, mask_BT, axis: str) -> jax.Array:
    """`kernel(q, k, v, mask)` over all tokens and this device's share of the heads; [B, T, N, D] as q."""
    to_heads = lambda x: lax.all_to_all(x, axis, 2, 1, tiled=True)
    mask_BS = None if mask_BT is None else lax.all_gather(mask_BT, axis, axis=1, tiled=True)
    attended = kernel(to_heads(q_BTND), to_heads(k_BTND), to_heads(v_BTND), mask_BS)
    return lax.all_to_all(attended, axis, 1, 2, tiled=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def ring(q_BTND: jax.Array, k_BSND: jax.Array, v_BSND: jax.Array, bias_BS: jax.Array, axis: str, size: int):
    """softmax(q k^T / sqrt(D)) v over the tokens of all `size` devices along `axis`, [B, T, N, D] as q.

    bias_BS (0 or `MASKED`) is added to the scores of a key. Softmax is in float32 and runs along with the ring; the
    backward pass goes round again with the gradients of keys and values, from the output and its log-sum-exp.
    """
    return _forward(q_BTND, k_BSND, v_BSND, bias_BS, axis, size)[0]


def _forward(q, k, v, bias, axis, size):
    b, t, n, d = q.shape
    top = jnp.full((b, n, t), -jnp.inf, jnp.float32)
    total, out = jnp.zeros((b, n, t), jnp.float32), jnp.zeros((b, n, t, d), jnp.float32)
    kept = k, v, bias
    for turn in range(size):
        scores = _scores(q, kept[0], kept[2])
        higher = jnp.maximum(top, scores.max(-1))
        weights, shrink = jnp.exp(scores - higher[..., None]), jnp.exp(top - higher)
        total = total * shrink + weights.sum(-1)
        out = out * shrink[..., None] + _product("bnts,bsnd->bntd", weights.astype(v.dtype), kept[1])
        top = higher
        kept = _turn(kept, axis, size) if turn < size - 1 else kept
    out = (out / total[..., None]).transpose(0, 2, 1, 3).astype(q.dtype)
    return out, top + jnp.log(total)


def _with_residuals(q, k, v, bias, axis, size):
    out, normalizer = _forward(q, k, v, bias, axis, size)
    out, normalizer = checkpoint_name(out, "flash"), checkpoint_name(normalizer, "flash")
    return out, (q, k, v, bias, out, normalizer)


def _backward(axis, size, residuals, d_out):
    q, k, v, bias, out, normalizer_BNT = residuals
    scale = q.shape[-1] ** -0.5
    mean_BNT = jnp.einsum("btnd,btnd->bnt", d_out.astype(jnp.float32), out.astype(jnp.float32))
    dq = jnp.zeros(q.shape, jnp.float32)
    kept = k, v, bias, jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    for _ in range(size):
        k, v, bias, dk, dv = kept
        weights = jnp.exp(_scores(q, k, bias) - normalizer_BNT[..., None])
        d_weights = _product("btnd,bsnd->bnts", d_out, v)
        d_scores = (weights * (d_weights - mean_BNT[..., None]) * scale).astype(q.dtype)
        dv += _product("bnts,btnd->bsnd", weights.astype(q.dtype), d_out)
        dk += _product("bnts,btnd->bsnd", d_scores, q)
        dq += _product("bnts,bsnd->btnd", d_scores, k)
        kept = _turn((k, v, bias, dk, dv), axis, size)
    *_, dk, dv = kept
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), jnp.zeros_like(bias)


ring.defvjp(_with_residuals, _backward)


def _scores(q_BTND, k_BSND, bias_BS):
    return _product("btnd,bsnd->bnts", q_BTND * q_BTND.shape[-1] ** -0.5, k_BSND) + bias_BS[:, None, None]


def _product(equation: str, *arrays):
    return jnp.einsum(equation, *arrays, preferred_element_type=jnp.float32)


def _turn(arrays, axis: str, size: int):
    """Everything one device further round the ring."""
    return jax.tree.map(lambda x: lax.ppermute(x, axis, [(i, (i + 1) % size) for i in range(size)]), arrays)
