"""The one front door of attention: which kernel computes it depends on platform and mesh, what it computes does not."""

from __future__ import annotations

import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from lgm.parallel import Layout, current, partition, platform
from lgm.parallel.layout import active_mesh
from lgm.parallel.ring import MASKED, ring, ulysses

Implementation = Literal["auto", "xla", "cudnn", "splash", "ring", "ulysses"]
IMPLEMENTATIONS = get_args(Implementation)
CUDNN_WIDTH = 128  # widest head that cuDNN's fused attention takes on every GPU it knows


def attention(q_BTND: jax.Array, k_BSMD: jax.Array, v_BSMD: jax.Array, mask_BS: jax.Array | None = None,
              implementation: Implementation | None = None, *, causal: bool = False,
              bias_NTS: jax.Array | None = None, scale: float | None = None) -> jax.Array:
    """softmax(scale q k^T + bias) v in the layout [B, T, N, D], softmax in float32; `scale` is D^-1/2 by default.

    Keys and values may have fewer heads M than queries: each serves N / M neighbouring ones (Ainslie et al. 2023,
    2305.13245). `causal` hides from the query at t all keys after t. Any of these, as text encoders have them, is
    computed by every device for all tokens, whatever the layout.

    mask_BS is True for keys that count; where none does, all count alike and the scores have no gradient. The
    implementation is the argument, else the layout's, else "auto": cuDNN on a GPU for 16-bit heads that it takes,
    splash on a TPU, XLA elsewhere. Where tokens are split over `context`, these gather keys and values; "ring" passes
    them round and "ulysses" exchanges tokens for heads, both only where queries and keys are the same tokens (a text's
    few keys are gathered).
    """
    layout = current()
    name = implementation or (layout.attention if layout else "auto")
    if causal or bias_NTS is not None or scale is not None or q_BTND.shape[2] != k_BSMD.shape[2]:
        how = dict(causal=causal, scale=q_BTND.shape[-1] ** -0.5 if scale is None else scale)
        return _general(layout, name, q_BTND, k_BSMD, v_BSMD, mask_BS, bias_NTS, how)
    chosen = _chosen(name, q_BTND.dtype, q_BTND.shape[-1])
    if mask_BS is not None:
        # kernels differ in what they make of an example whose keys are all masked: none is given such
        some_B = mask_BS.any(1)
        q_BTND, mask_BS = jnp.where(some_B[:, None, None, None], q_BTND, 0), mask_BS | ~some_B[:, None]
    if layout is not None and layout.mesh.size > 1:
        return _on_mesh(layout, name, chosen, q_BTND, k_BSMD, v_BSMD, mask_BS)
    return _named(_KERNELS[chosen](q_BTND, k_BSMD, v_BSMD, mask_BS), chosen != "splash")


def _named(attended_BTND: jax.Array, own: bool = True) -> jax.Array:
    """Under the name by which a remat policy keeps it; not `own` where a kernel has named the same, in its own order of
    axes, for its backward pass (kept twice, it takes 2 of 115 ms of an SD3-medium block on v5e, and 54 MB)."""
    return checkpoint_name(attended_BTND, "attention") if own else attended_BTND


def _chosen(name: Implementation, dtype, width: int) -> str:
    """"xla", "cudnn" or "splash"."""
    if name in ("auto", "ring", "ulysses"):
        # wider heads (an autoencoder's one of 512, 160 in U-Nets of 8 heads) are few or attend to few keys
        fused = dtype in (jnp.bfloat16, jnp.float16) and width <= CUDNN_WIDTH and width % 8 == 0
        name = {"gpu": "cudnn" if fused else "xla", "tpu": "splash"}.get(platform(), "xla")
    if name not in ("xla", "cudnn", "splash"):
        raise ValueError(f"attention {name!r} is unknown; there are {', '.join(IMPLEMENTATIONS)}")
    return name


def _general(layout: Layout | None, name: str, q, k, v, mask, bias, how: dict) -> jax.Array:
    """Attention with an order of tokens, a bias, a scale of its own or grouped heads."""
    chosen = _chosen(name, q.dtype, q.shape[-1])
    mask = None if mask is None else mask.astype(bool)
    if chosen == "splash" and bias is None:
        kernel = functools.partial(_splash, **how)
    else:  # splash takes no bias
        kernel = functools.partial(_general_cudnn if chosen == "cudnn" else _general_xla, **how)

    def local(q, k, v, mask, bias):
        y = kernel(q, k, v, mask) if bias is None else kernel(q, k, v, mask, bias)
        if mask is None or chosen == "xla":
            return y
        # as XLA has it where a query finds no key that counts: all do alike, those that the order hides too
        some_BT = jnp.cumsum(mask, 1) > 0 if how["causal"] else mask.any(1, keepdims=True)
        mean = jnp.repeat(v.astype(jnp.float32).mean(1, keepdims=True), q.shape[2] // v.shape[2], 2)
        return jnp.where(some_BT[:, :, None, None], y, mean.astype(y.dtype))

    if layout is None or layout.mesh.size == 1:
        return _named(local(q, k, v, mask, bias))
    mesh, axes = active_mesh(layout)
    q_spec, k_spec = (partition(x.shape, ("batch", None, "heads", None), layout.mesh.shape, layout.used, axes)
                      for x in (q, k))  # fmt: skip
    if q_spec[2] != k_spec[2]:  # more devices than heads of keys: each has those of its own queries
        k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], 2) for x in (k, v))
        k_spec = q_spec
    mask_spec = None if mask is None else PartitionSpec(q_spec[0], None)
    bias_spec = None if bias is None else PartitionSpec(q_spec[2], None, None)
    mapped = jax.shard_map(local, mesh=mesh, in_specs=(q_spec, k_spec, k_spec, mask_spec, bias_spec), out_specs=q_spec,
                           axis_names=set(axes), check_vma=False)  # fmt: skip
    return _named(mapped(q, k, v, mask, bias))


def _on_mesh(layout: Layout, name: str, chosen: str, q, k, v, mask) -> jax.Array:
    """Attention of each device's examples, heads and queries to all keys, which devices along `context` exchange."""
    shares, count, kernel = layout.size("context"), q.shape[1], _KERNELS[chosen]
    if name in ("ring", "ulysses") and count == k.shape[1] and (extra := -count % shares):
        mask = jnp.ones(q.shape[:2], bool) if mask is None else mask
        mask = jnp.pad(mask, ((0, 0), (0, extra)))
        q, k, v = (jnp.pad(x, ((0, 0), (0, extra), (0, 0), (0, 0))) for x in (q, k, v))
    mesh, axes = active_mesh(layout)
    q_spec, k_spec = (partition(x.shape, ("batch", "tokens", "heads", None), layout.mesh.shape, layout.used, axes)
                      for x in (q, k))  # fmt: skip
    mask_spec = None if mask is None else PartitionSpec(*k_spec[:2])
    exchanged = k_spec[1] is not None  # else the keys are too few to be split: every device has all
    if exchanged and name == "ulysses" and (q.shape[2] // _count(layout, q_spec[2])) % shares:
        raise ValueError(f"config.attention='ulysses' cannot share {q.shape[2]} heads among tensor x context = "
                         f"{_count(layout, q_spec[2]) * shares}; make that a divisor, or use config.attention='ring'")

    def local(q, k, v, mask):
        if not exchanged:
            return kernel(q, k, v, mask)
        if name == "ring":
            bias = jnp.zeros(k.shape[:2], jnp.float32) if mask is None else jnp.where(mask, 0.0, MASKED)
            return ring(q, k, v, bias, "context", shares)
        if name == "ulysses":
            return ulysses(kernel, q, k, v, mask, "context")
        gather = lambda x: None if x is None else jax.lax.all_gather(x, "context", axis=1, tiled=True)
        return kernel(q, gather(k), gather(v), gather(mask))

    mapped = jax.shard_map(local, mesh=mesh, in_specs=(q_spec, k_spec, k_spec, mask_spec), out_specs=q_spec,
                           axis_names=set(axes), check_vma=False)  # fmt: skip
    attended = mapped(q, k, v, mask)[:, :count]
    inside = name == "ring" if exchanged and name in ("ring", "ulysses") else chosen == "splash"
    return _named(attended, not inside)


def _count(layout: Layout, axis: str | None) -> int:
    return 1 if axis is None else layout.size(axis)


def _xla(q_BTND, k_BSND, v_BSND, mask_BS):
    scores_BNTS = jnp.einsum("btnd,bsnd->bnts", q_BTND * q_BTND.shape[-1] ** -0.5, k_BSND,
                             preferred_element_type=jnp.float32)
    if mask_BS is not None:
        scores_BNTS += jnp.where(mask_BS, 0.0, MASKED)[:, None, None, :]
    weights_BNTS = jax.nn.softmax(scores_BNTS, axis=-1).astype(q_BTND.dtype)
    return jnp.einsum("bnts,bsnd->btnd", weights_BNTS, v_BSND)


def _general_xla(q_BTND, k_BSMD, v_BSMD, mask_BS, bias_NTS=None, *, causal, scale):
    return jax.nn.dot_product_attention(
        q_BTND, k_BSMD, v_BSMD, bias=None if bias_NTS is None else bias_NTS[None],
        mask=None if mask_BS is None else mask_BS[:, None, None], scale=scale, is_causal=causal, implementation="xla",
    )  # fmt: skip


def _general_cudnn(q_BTND, k_BSMD, v_BSMD, mask_BS, bias_NTS=None, *, causal, scale):
    """cuDNN's, with the keys that count as a mask of scores, for their order matters; lengths padded as `_cudnn` does.
    """
    b, t, s = *q_BTND.shape[:2], k_BSMD.shape[1]
    pad = lambda x: jnp.pad(x, ((0, 0), (0, -x.shape[1] % 64), (0, 0), (0, 0)))
    more_t, more_s = -t % 64, -s % 64
    if mask_BS is None and more_s:
        mask_BS = jnp.ones((b, s), bool)
    if mask_BS is not None:
        mask_BS = jnp.pad(mask_BS, ((0, 0), (0, more_s)))[:, None, None]
        mask_BS = jnp.broadcast_to(mask_BS, (b, 1, t + more_t, s + more_s))
    if bias_NTS is not None:
        bias_NTS = jnp.pad(bias_NTS.astype(q_BTND.dtype), ((0, 0), (0, more_t), (0, more_s)))[None]
    y = jax.nn.dot_product_attention(pad(q_BTND), pad(k_BSMD), pad(v_BSMD), bias=bias_NTS, mask=mask_BS, scale=scale,
                                     is_causal=causal, implementation="cudnn")  # fmt: skip
    return y[:, :t]


def _splash(*arrays, **how):
    from lgm.models.splash import splash

    return splash(*arrays, **how, interpret=platform() != "tpu")


def _cudnn(q_BTND, k_BSND, v_BSND, mask_BS):
    """cuDNN's fused attention over the keys that count, brought to the front and told by their number.

    The order of keys changes nothing, a mask of scores would be as large as they are. Lengths are padded to a multiple
    of 64, because training with odd ones is refused.
    """
    b, t, s = *q_BTND.shape[:2], k_BSND.shape[1]
    pad = lambda x: jnp.pad(x, ((0, 0), (0, -x.shape[1] % 64), (0, 0), (0, 0)))
    lengths_B = jnp.full(b, s, jnp.int32) if s % 64 else None
    if mask_BS is not None:
        lengths_B = mask_BS.sum(1, dtype=jnp.int32)
        order_BS = jnp.argsort(~mask_BS, axis=1, stable=True)
        k_BSND, v_BSND = (_reordered(x, order_BS) for x in (k_BSND, v_BSND))
    y = jax.nn.dot_product_attention(pad(q_BTND), pad(k_BSND), pad(v_BSND), key_value_seq_lengths=lengths_B,
                                     implementation="cudnn")  # fmt: skip
    return y[:, :t]


@jax.custom_vjp
def _reordered(x_BSND, order_BS):
    """x[b, order[b, s]]; its gradient is the inverse permutation's gather, for a scatter is slow on a GPU."""
    return jnp.take_along_axis(x_BSND, order_BS[:, :, None, None], axis=1)


def _reordered_forward(x, order):
    return _reordered(x, order), order


def _reordered_backward(order, gradient):
    return _reordered(gradient, jnp.argsort(order, axis=1)), None


_reordered.defvjp(_reordered_forward, _reordered_backward)

_KERNELS = {"xla": _xla, "cudnn": _cudnn, "splash": _splash}  # what computes attention on one device
