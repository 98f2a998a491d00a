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


def attention(q_BTND: jax.Array, k_BSND: jax.Array, v_BSND: jax.Array, mask_BS: jax.Array | None = None,
              implementation: Implementation | None = None) -> jax.Array:
    """softmax(q k^T / sqrt(D)) v in the layout [B, T, N, D], softmax in float32.

    mask_BS is True for keys that count; where none does, all count alike and the scores have no gradient. The
    implementation is the argument, else the layout's, else "auto": cuDNN on a GPU for 16-bit heads that it takes,
    splash on a TPU, XLA elsewhere. Where tokens are split over `context`, these gather keys and values; "ring" passes
    them round and "ulysses" exchanges tokens for heads, both only where queries and keys are the same tokens (a text's
    few keys are gathered).
    """
    layout = current()
    name = implementation or (layout.attention if layout else "auto")
    kernel = _kernel(name, q_BTND.dtype, q_BTND.shape[-1])
    if mask_BS is not None:
        # kernels differ in what they make of an example whose keys are all masked: none is given such
        some_B = mask_BS.any(1)
        q_BTND, mask_BS = jnp.where(some_B[:, None, None, None], q_BTND, 0), mask_BS | ~some_B[:, None]
    if layout is not None and layout.mesh.size > 1:
        return _on_mesh(layout, name, kernel, q_BTND, k_BSND, v_BSND, mask_BS)
    return checkpoint_name(kernel(q_BTND, k_BSND, v_BSND, mask_BS), "attention")


def _kernel(name: Implementation, dtype, width: int):
    """What computes attention on one device, of heads of that width."""
    if name in ("auto", "ring", "ulysses"):
        # wider heads (an autoencoder's one of 512, 160 in U-Nets of 8 heads) are few or attend to few keys
        fused = dtype in (jnp.bfloat16, jnp.float16) and width <= CUDNN_WIDTH and width % 8 == 0
        name = {"gpu": "cudnn" if fused else "xla", "tpu": "splash"}.get(platform(), "xla")
    if name == "splash":
        from lgm.models.splash import splash

        return functools.partial(splash, interpret=platform() != "tpu")
    if name not in ("xla", "cudnn"):
        raise ValueError(f"attention {name!r} is unknown; there are {', '.join(IMPLEMENTATIONS)}")
    return _cudnn if name == "cudnn" else _xla


def _on_mesh(layout: Layout, name: str, kernel, q, k, v, mask) -> jax.Array:
    """Attention of each device's examples, heads and queries to all keys, which devices along `context` exchange."""
    shares, count = layout.size("context"), q.shape[1]
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
    return attended if exchanged and name == "ring" else checkpoint_name(attended, "attention")


def _count(layout: Layout, axis: str | None) -> int:
    return 1 if axis is None else layout.size(axis)


def _xla(q_BTND, k_BSND, v_BSND, mask_BS):
    scores_BNTS = jnp.einsum("btnd,bsnd->bnts", q_BTND * q_BTND.shape[-1] ** -0.5, k_BSND,
                             preferred_element_type=jnp.float32)
    if mask_BS is not None:
        scores_BNTS += jnp.where(mask_BS, 0.0, MASKED)[:, None, None, :]
    weights_BNTS = jax.nn.softmax(scores_BNTS, axis=-1).astype(q_BTND.dtype)
    return jnp.einsum("bnts,bsnd->btnd", weights_BNTS, v_BSND)


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
