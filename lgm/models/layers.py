"""The layers that transformers share: products with weights, norms, modulation, tables of embeddings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from lgm.models.keys import Keys
from lgm.parallel import constrain, current, gathered, platform

INNER = ("mlp", "heads", "conv")  # logical axes of features that stay split between two products
EPSILON = 1e-6  # of norms that do not say
TOKENS, PIXELS = ("tokens",), ("height", None)  # logical axes between the batch and the features


class Linear(nnx.Module):
    """x W (+ b) over the last axis, in the input's dtype; `axes` names the two logical axes of W, `over` those of x
    between the batch and the features, as many as there are; an x of batch and features alone is one of every kind.

    Where the features that come out are of several `parts` (queries, keys and values from one product), the result is
    [..., parts, features a part]; with `parts_in` those that go in are [..., parts_in, features a part]. W is one
    matrix all the same; a mesh splits within every part.
    """

    def __init__(self, in_features, out_features, axes, *, parts=1, parts_in=1, over=TOKENS, bias=True, zero=False,
                 rngs: Keys):  # fmt: skip
        init = nnx.initializers.zeros_init() if zero else nnx.initializers.lecun_normal()
        self.axes, self.parts, self.parts_in, self.over = axes, parts, parts_in, over
        stored = ("fused", None) if parts > 1 else (None, "fused") if parts_in > 1 else axes
        self.kernel = nnx.Param(init(rngs.params(), (in_features, out_features)), axes=stored)
        self.bias_axes = axes[1:] if parts == 1 else ("fused",)
        self.bias = nnx.Param(jnp.zeros(out_features), axes=self.bias_axes) if bias else None
        self.adapter = None  # a low-rank change, where `lgm.models.lora` adds one

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self._product(x)
        if self.bias is not None:
            bias = gathered(self.bias[...].astype(x.dtype), self.bias_axes)
            y = y + (bias.reshape(self.parts, -1) if self.parts > 1 else bias)
        if self.adapter is not None:
            y = y + self.adapter(self._flat(x)).reshape(y.shape)
        between = y.ndim - 2 - (self.parts > 1)
        if between not in (0, len(self.over)):
            raise ValueError(f"a product over {self.over} was given {x.shape}: say with `over` what lies between the "
                             "batch and the features")
        places = self.over if between else ()
        y = constrain(y, "batch", *places, *(None,) * (self.parts > 1), self.axes[1])
        return y if self.axes[1] in INNER else constrain(y, *("batch", *places, *(None,) * (y.ndim - 1 - len(places))))

    def apart(self, x: jax.Array) -> list[jax.Array]:
        """The `parts` as arrays [..., features a part].

        On a TPU, each from a product of its own, for parts of one product are copied apart there: SD3-medium's step on
        v5e has 0.14 s less of copies and the like, of 1.69, by the compiler's cycles. One is faster elsewhere.
        """
        if platform() != "tpu":
            y = self(x)
            return [y[..., i, :] for i in range(self.parts)]
        kernel = self._by_parts(self.kernel[...].astype(x.dtype))
        made = [x @ kernel[:, i] for i in range(self.parts)]
        if self.bias is not None:
            bias = gathered(self.bias[...].astype(x.dtype), self.bias_axes).reshape(self.parts, -1)
            made = [y + b for y, b in zip(made, bias, strict=True)]
        if self.adapter is not None:
            made = [y + change for y, change in zip(made, jnp.split(self.adapter(x), self.parts, -1), strict=True)]
        places = self.over if x.ndim > 2 else ()
        return [constrain(y, "batch", *places, self.axes[1]) for y in made]

    def _flat(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-2], -1) if self.parts_in > 1 else x

    def _product(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...].astype(x.dtype)
        if current() is not None and current().mesh.size > 1:
            return self._split_product(x, kernel)
        x = self._flat(x)
        if platform() == "cpu":
            # one matrix of all tokens: the weights' gradient then contracts one axis, which XLA:CPU does without the
            # transposed copies it makes for two (measured in a small MMDiT's train step: a third less time)
            y = (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])
        else:
            y = x @ kernel
        return y.reshape(*y.shape[:-1], self.parts, -1) if self.parts > 1 else y

    def _by_parts(self, kernel: jax.Array) -> jax.Array:
        """[in, parts, features a part], as a product uses it."""
        kernel = kernel.reshape(len(kernel), self.parts, -1)
        return gathered(kernel, ("fused", None, None), (self.axes[0], None, self.axes[1]))

    def _split_product(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """The product on a mesh, where a part's features and not those of all parts together are what is split."""
        inputs, outputs = self.axes
        if self.parts > 1:
            kernel = self._by_parts(kernel)
        elif self.parts_in > 1:
            kernel = kernel.reshape(self.parts_in, -1, kernel.shape[-1])
            kernel = gathered(kernel, (None, None, "fused"), (None, inputs, outputs))
        else:
            kernel = gathered(kernel, self.axes)
        return jnp.tensordot(x, kernel, 2 if self.parts_in > 1 else 1)


class MLP(nnx.Module):
    """Linear, activation, linear; with `zero` it says nothing before it is trained."""

    def __init__(self, inputs: int, hidden: int, outputs: int, activation, *, bias: bool = True, zero: bool = False,
                 rngs: Keys):  # fmt: skip
        self.activation = activation
        self.fc1 = Linear(inputs, hidden, ("embed", "mlp"), bias=bias, rngs=rngs)
        self.fc2 = Linear(hidden, outputs, ("mlp", "embed"), bias=bias, zero=zero, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(once(self.activation(self.fc1(x))))


def once(x: jax.Array) -> jax.Array:
    """x, computed before the product that reads it. On a TPU the product would compute an activation again for every
    tile of its output: one of SD3-medium's on v5e took 6.2 ms for 1.6, by the compiler's cycles."""
    return jax.lax.optimization_barrier(x) if platform() == "tpu" else x


class RMSNorm(nnx.Module):
    """x / rms(x) times a learned scale, over the last axis in float32 (Zhang & Sennrich 2019, 1910.07467)."""

    def __init__(self, width: int, epsilon: float = EPSILON, axes: tuple[str | None] = (None,)):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones(width), axes=axes)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + self.epsilon)
        return (y * self.scale[...]).astype(x.dtype)


def modulated(x_BTD: jax.Array, shift_BD: jax.Array, scale_BD: jax.Array) -> jax.Array:
    """Layer norm without parameters of its own, then (1 + scale) and shift from the conditioning (adaLN)."""
    x = x_BTD.astype(jnp.float32)
    mean = x.mean(-1, keepdims=True)
    variance = jnp.mean(jnp.square(x), -1, keepdims=True) - jnp.square(mean)
    y = (x - mean) * jax.lax.rsqrt(jnp.maximum(variance, 0.0) + EPSILON)
    return (y * (1.0 + scale_BD[:, None]) + shift_BD[:, None]).astype(x_BTD.dtype)


class Embedding(nnx.Module):
    """A table [entries, width]; called with integers it gives their rows in `dtype`."""

    def __init__(self, entries: int, width: int, axes: tuple[str | None, str], *, std: float = 0.02, rngs: Keys):
        init = nnx.initializers.normal(std)
        self.axes = axes
        self.table = nnx.Param(init(rngs.params(), (entries, width)), axes=axes)

    def __call__(self, indices: jax.Array, dtype) -> jax.Array:
        return gathered(self.table[...], self.axes)[indices].astype(dtype)


class LayerNorm(nnx.Module):
    """Layer normalization (Ba et al. 2016, 1607.06450) of the last axis with float32 statistics."""

    def __init__(self, width: int, epsilon: float):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones(width), axes=("embed",))
        self.bias = nnx.Param(jnp.zeros(width), axes=("embed",))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon)
        scale, bias = (gathered(part[...], ("embed",)) for part in (self.scale, self.bias))
        return (y * scale + bias).astype(x.dtype)
