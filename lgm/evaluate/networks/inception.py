"""Inception-v3 (Szegedy et al. 2015, 1512.00567) as FID has it: TensorFlow's network of 2015-12-05 with 1008 classes.

It differs from other Inception-v3s in its pools: averages leave the padding out, and the last block takes a maximum.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx

from lgm.evaluate.networks.convolution import ConvNorm, conv_norm
from lgm.interop.keymap import Rule, linear
from lgm.models.keys import Keys
from lgm.models.layers import Linear

# A convolution is (channels, rows, columns), with a stride of 2 where a fourth number says so; a pair in a list stands
# side by side on one input. Strided ones have no padding.
STEM = {"conv2d_1a_3x3": (32, 3, 3, 2), "conv2d_2a_3x3": (32, 3, 3), "conv2d_2b_3x3": (64, 3, 3),
        "conv2d_3b_1x1": (80, 1, 1), "conv2d_4a_3x3": (192, 3, 3)}  # fmt: skip
UNPADDED, POOLED = ("conv2d_1a_3x3", "conv2d_2a_3x3", "conv2d_4a_3x3"), ("conv2d_2b_3x3", "conv2d_4a_3x3")


def _a(pooled):
    return {"branch1x1": [(64, 1, 1)], "branch5x5": [(48, 1, 1), (64, 5, 5)],
            "branch3x3dbl": [(64, 1, 1), (96, 3, 3), (96, 3, 3)], "branch_pool": [(pooled, 1, 1)]}  # fmt: skip


def _c(inner):
    return {"branch1x1": [(192, 1, 1)], "branch7x7": [(inner, 1, 1), (inner, 1, 7), (192, 7, 1)],
            "branch7x7dbl": [(inner, 1, 1), (inner, 7, 1), (inner, 1, 7), (inner, 7, 1), (192, 1, 7)],
            "branch_pool": [(192, 1, 1)]}  # fmt: skip


_PAIR = [(384, 1, 3), (384, 3, 1)]
_E = {"branch1x1": [(320, 1, 1)], "branch3x3": [(384, 1, 1), _PAIR],
      "branch3x3dbl": [(448, 1, 1), (384, 3, 3), _PAIR], "branch_pool": [(192, 1, 1)]}  # fmt: skip

# block: (its pool, its branches); a pool with a stride is the last branch itself
BLOCKS = {
    "mixed_5b": ("average", _a(32)), "mixed_5c": ("average", _a(64)), "mixed_5d": ("average", _a(64)),
    "mixed_6a": ("strided", {"branch3x3": [(384, 3, 3, 2)], "branch3x3dbl": [(64, 1, 1), (96, 3, 3), (96, 3, 3, 2)]}),
    "mixed_6b": ("average", _c(128)), "mixed_6c": ("average", _c(160)), "mixed_6d": ("average", _c(160)),
    "mixed_6e": ("average", _c(192)),
    "mixed_7a": ("strided", {"branch3x3": [(192, 1, 1), (320, 3, 3, 2)],
                             "branch7x7x3": [(192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3, 2)]}),
    "mixed_7b": ("average", _E), "mixed_7c": ("maximum", _E),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class InceptionConfig:
    """How many classes the last layer tells apart."""

    classes: int = 1008


class Mixed(nnx.Module):
    """Branches of convolutions on one input, joined along channels."""

    def __init__(self, inputs: int, pool: str, branches: dict, *, rngs: Keys):
        self.pool, self.outputs = pool, inputs if pool == "strided" else 0
        for branch, steps in branches.items():
            width = inputs
            for names, convolutions in _named(branch, steps):
                for name, (outputs, rows, columns, *stride) in zip(names, convolutions, strict=True):
                    setattr(self, name, ConvNorm(width, outputs, (rows, columns), stride=stride[0] if stride else 1,
                                                 padding="VALID" if stride else "SAME", rngs=rngs))  # fmt: skip
                width = sum(convolution[0] for convolution in convolutions)
            self.outputs += width
        self.steps = tuple((branch, tuple(names for names, _ in _named(branch, steps)))
                           for branch, steps in branches.items())  # fmt: skip

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        found = []
        for branch, steps in self.steps:
            y = _pool(x_BHWC, self.pool) if branch == "branch_pool" else x_BHWC
            for names in steps:
                y = jnp.concatenate([jax.nn.relu(getattr(self, name)(y)) for name in names], -1)
            found.append(y)
        return jnp.concatenate(found + ([_pool(x_BHWC, "strided")] if self.pool == "strided" else []), -1)


class Inception(nnx.Module):
    """Images [B, 299, 299, 3] as (x - 128) / 128 to the 2048 features of the last pool; smaller sides work as well."""

    def __init__(self, config: InceptionConfig, *, rngs: Keys):
        inputs = 3
        for name, (outputs, rows, columns, *stride) in STEM.items():
            setattr(self, name, ConvNorm(inputs, outputs, (rows, columns), stride=stride[0] if stride else 1,
                                         padding="VALID" if name in UNPADDED else "SAME", rngs=rngs))  # fmt: skip
            inputs = outputs
        for name, (pool, branches) in BLOCKS.items():
            block = Mixed(inputs, pool, branches, rngs=rngs)
            setattr(self, name, block)
            inputs = block.outputs
        self.classes = Linear(inputs, config.classes, (None, None), rngs=rngs)

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        x = x_BHWC
        for name in STEM:
            x = jax.nn.relu(getattr(self, name)(x))
            x = _pool(x, "strided") if name in POOLED else x
        for name in BLOCKS:
            x = getattr(self, name)(x)
        return x.mean((1, 2))


def _named(branch: str, steps: list) -> Iterator[tuple[list[str], list]]:
    """(names, convolutions) of each step of a branch, as torch's modules name them: branch_1, branch_2a, ..."""
    for number, step in enumerate(steps, 1):
        name = branch if len(steps) == 1 else f"{branch}_{number}"
        yield ([f"{name}a", f"{name}b"], step) if isinstance(step, list) else ([name], [step])


def _pool(x_BHWC: jax.Array, kind: str) -> jax.Array:
    """3 x 3 pools: the maximum with stride 2 and no padding, or with stride 1 that or the average of what is there."""
    window, stride = (1, 3, 3, 1), (1, 2, 2, 1) if kind == "strided" else (1, 1, 1, 1)
    padding = "VALID" if kind == "strided" else "SAME"
    if kind != "average":
        return jax.lax.reduce_window(x_BHWC, -jnp.inf, jax.lax.max, window, stride, padding)
    total = lambda x: jax.lax.reduce_window(x, 0.0, jax.lax.add, window, stride, padding)
    return total(x_BHWC) / total(jnp.ones((1, *x_BHWC.shape[1:3], 1)))


def inception_rules() -> list[Rule]:
    """The names of the public files of torch-fidelity and of pytorch-fid, which are those of torchvision's module."""
    place = lambda path, name: conv_norm(path, f"{name}.conv", f"{name}.bn")
    rules = [rule for name in STEM for rule in place(name, name.replace("conv", "Conv", 1))]
    for block, (_, branches) in BLOCKS.items():
        for branch, steps in branches.items():
            for names, _ in _named(branch, steps):
                rules += [r for name in names for r in place(f"{block}/{name}", f"{block.capitalize()}.{name}")]
    return [*rules, *linear("classes", "fc")]
