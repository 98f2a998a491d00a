"""The functional handle: a model is a configuration, a pytree of parameters and pure functions of them.

Networks are Flax NNX modules; outside `lgm/models` only `Model` is seen. Every parameter carries its logical axes as
metadata of our own (`axes=("embed", "mlp")`); a parameter with one dimension more than its axes is a stack of blocks,
whose leading axis is named "layers".
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lgm.models.keys import Keys

Params = Any  # a nested dict of arrays


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Conditioning:
    """What a denoiser is told besides x and t; one type for every family, absent parts are None.

    text: [B, L, D] token features. text_mask: [B, L] bool, True where a token counts. pooled: [B, P].
    label: [B] int32 class. micro: [B, K] float (SDXL's six time ids). guidance: [B] distilled guidance scale.
    jump: [B] the time t - s that a mean velocity spans. beside: [B, H, W, K] channels that stand next to x.
    """

    text: jax.Array | None = None
    text_mask: jax.Array | None = None
    pooled: jax.Array | None = None
    label: jax.Array | None = None
    micro: jax.Array | None = None
    guidance: jax.Array | None = None
    jump: jax.Array | None = None
    beside: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Model:
    """A model without arrays: a frozen configuration and the NNX class that `module(config, rngs=...)` builds."""

    config: Any
    module: type[nnx.Module]

    def init(self, key: jax.Array) -> Params:
        """Float32 parameters drawn from `key`, as a nested dict. Jit it with out_shardings to create them sharded."""
        return nnx.to_pure_dict(nnx.state(self.module(self.config, rngs=Keys(key)), nnx.Param))

    def apply(self, params: Params, *args, method: str = "__call__", **kwargs):
        """Pure: denoisers take (x [B, H, W, C], t [B] in [0, 1], cond) and return the prediction, shaped like x.

        `method` names another method of the module, as an autoencoder's "encode" and "decode".
        """
        return getattr(nnx.merge(_split(self)[0], params), method)(*args, **kwargs)

    def abstract(self) -> Params:
        """The tree of `jax.ShapeDtypeStruct` that `init` would return; builds no array."""
        return nnx.to_pure_dict(_split(self)[1])

    def logical_axes(self) -> Params:
        """For every parameter the tuple of its logical axis names, or None where a dimension is never split."""

        def axes(variable):
            names = tuple(variable.get_metadata().get("axes", (None,) * len(variable.shape)))
            extra = len(variable.shape) - len(names)
            if extra not in (0, 1):
                raise ValueError(f"axes {names} do not fit a parameter of shape {variable.shape}")
            return ("layers",) * extra + names

        is_variable = lambda v: isinstance(v, nnx.Variable)
        flat = jax.tree.map(axes, _split(self)[1], is_leaf=is_variable)
        return nnx.to_pure_dict(flat)

    def count(self) -> int:
        """The number of parameters."""
        return count(self.abstract())

    def flops(self, *args, executed: bool = False, **kwargs) -> float:
        """Floating-point operations of the products and convolutions of one forward pass on abstract `args`.

        The standard count of the model or, with `executed`, of what is computed (`flops.count_flops`). Counted from the
        traced program with scanned bodies multiplied by their length (XLA's own count is not).
        """
        from lgm.models.flops import count_flops

        forward = lambda params, *a: self.apply(params, *a, **kwargs)
        return count_flops(forward, self.abstract(), *args, executed=executed)


@functools.cache
def _split(model: Model):
    """(graphdef, abstract state) of a model's module, built once a configuration."""
    return nnx.split(nnx.eval_shape(lambda: model.module(model.config, rngs=Keys(0))))


def count(tree: Params) -> int:
    """Number of elements in a tree of arrays or abstract arrays."""
    return sum(math.prod(jnp.shape(p)) for p in jax.tree.leaves(tree))
