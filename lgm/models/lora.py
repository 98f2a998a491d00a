"""Low-rank adaptation (Hu et al. 2021, 2106.09685) of any model here: W + (alpha / rank) down up, on matrices by name.

An adapter is a small tree of its own. `adapted` is the model that computes x W + scale (x down) up beside the frozen
W, which is never changed: no gradient of its size is made, and in bfloat16 a small change is not lost in its rounding.
`merged` adds the product to W instead, for use elsewhere.
"""

from __future__ import annotations

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
from flax import nnx

from lgm.bounds import Count, Positive
from lgm.models.base import Model, Params
from lgm.models.keys import Keys
from lgm.models.layers import Linear
from lgm.parallel import gathered

Adapter = dict[str, dict[str, jax.Array]]  # path of a matrix -> {"down": [..., in, rank], "up": [..., rank, out]}


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """`targets` are regular expressions of the paths of matrices to adapt, anywhere in "blocks/attn/qkv/kernel"."""

    rank: Count = 16
    alpha: Positive | None = None  # the rank by default
    targets: tuple[str, ...] = (r"/(qkv|q|kv|out)/kernel$",)

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"rank={self.rank} must be at least 1")

    @property
    def scale(self) -> float:
        """What the product of down and up is multiplied by."""
        return (self.rank if self.alpha is None else self.alpha) / self.rank


class LowRank(nnx.Module):
    """scale (x down) up; `layers` is the leading axis of a stack of blocks, if there is one."""

    def __init__(self, layers: tuple[int, ...], inputs: int, outputs: int, axes: tuple, config: LoRAConfig):
        self.scale, self.axes = config.scale, axes
        self.down = nnx.Param(jnp.zeros((*layers, inputs, config.rank)), axes=(axes[0], None))
        self.up = nnx.Param(jnp.zeros((*layers, config.rank, outputs)), axes=(None, axes[1]))

    def __call__(self, x: jax.Array) -> jax.Array:
        down = gathered(self.down[...].astype(x.dtype), (self.axes[0], None))
        up = gathered(self.up[...].astype(x.dtype), (None, self.axes[1]))
        return self.scale * ((x @ down) @ up)


@dataclasses.dataclass(frozen=True)
class AdaptedModule:
    """Builds `module` with low-rank changes beside its targeted matrices; stands where a Model's class stands."""

    module: type[nnx.Module]
    lora: LoRAConfig

    def __call__(self, config, *, rngs: Keys) -> nnx.Module:
        base = Model(config, self.module)
        network = self.module(config, rngs=rngs)
        axes = _flat(base.logical_axes(), lambda leaf: isinstance(leaf, tuple))
        for path, (*layers, inputs, outputs) in targeted(base, self.lora).items():
            linear = _module_at(network, path.split("/")[:-1])
            if not isinstance(linear, Linear):
                raise ValueError(f"targets: {path!r} is no matrix of a linear layer; leave it out")
            linear.adapter = nnx.data(LowRank(tuple(layers), inputs, outputs, axes[path][-2:], self.lora))
        return network


def adapted(model: Model, config: LoRAConfig) -> Model:
    """The model with an adapter beside it; its parameters are `combined(params, adapter)`."""
    return Model(model.config, AdaptedModule(model.module, config))


def combined(params: Params, adapter: Adapter) -> Params:
    """The parameters of `adapted`: those of the plain model with the adapter's in their places."""
    for path, pair in adapter.items():
        params = _with(params, path.split("/")[:-1], pair)
    return params


def targeted(model: Model, config: LoRAConfig) -> dict[str, tuple[int, ...]]:
    """Paths and shapes of the matrices to adapt, stacked ones with their leading axis of layers.

    Raises ValueError, one line, where a target names no matrix.
    """
    axes = _flat(model.logical_axes(), lambda leaf: isinstance(leaf, tuple))
    shapes = {path: tuple(leaf.shape) for path, leaf in _flat(model.abstract()).items()}
    matrices = {path: s for path, s in shapes.items() if len(s) - axes[path].count("layers") == 2}
    for target in config.targets:
        if not any(re.search(target, path) for path in matrices):
            raise ValueError(f"targets: {target!r} matches no matrix of the model, as {max(matrices)!r} is one")
    return {p: s for p, s in matrices.items() if any(re.search(target, p) for target in config.targets)}


def init(model: Model, config: LoRAConfig, key: jax.Array) -> Adapter:
    """An adapter that changes nothing yet: down is random, up is zero."""
    shapes = targeted(model, config)
    adapter = {}
    for path, subkey in zip(shapes, jax.random.split(key, len(shapes)), strict=True):
        *layers, inputs, outputs = shapes[path]
        down = jax.random.normal(subkey, (*layers, inputs, config.rank)) / math.sqrt(inputs)
        adapter[path] = {"down": down, "up": jnp.zeros((*layers, config.rank, outputs))}
    return adapter


def logical_axes(model: Model, config: LoRAConfig) -> dict[str, dict[str, tuple]]:
    """The logical axes of every leaf of an adapter: those of its matrix, the rank is never split."""
    axes = _flat(model.logical_axes(), lambda leaf: isinstance(leaf, tuple))
    found = {}
    for path in targeted(model, config):
        *layers, inputs, outputs = axes[path]
        found[path] = {"down": (*layers, inputs, None), "up": (*layers, None, outputs)}
    return found


def merged(params: Params, adapter: Adapter, config: LoRAConfig) -> Params:
    """`params` with the adapter added, in the dtype of the parameters. Differentiable in both."""

    def add(path, leaf):
        part = adapter.get(_name(path))
        if part is None:
            return leaf
        change = jnp.einsum("...ir,...ro->...io", part["down"], part["up"]) * config.scale
        return leaf + change.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(add, params)


def _module_at(module, parts: list[str]):
    for part in parts:
        module = module[int(part)] if part.isdecimal() else getattr(module, part)
    return module


def _with(node: Params, parts: list[str], pair: dict) -> Params:
    """`node` with {"adapter": pair} in the module at `parts`; nothing is changed in place."""
    if not parts:
        return {**node, "adapter": pair}
    key = int(parts[0]) if parts[0].isdecimal() else parts[0]  # lists are dicts by number
    return {**node, key: _with(node[key], parts[1:], pair)}


def _flat(tree, is_leaf=None) -> dict:
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]
    return {_name(path): leaf for path, leaf in leaves}


def _name(path) -> str:
    return "/".join(str(key.key) for key in path)
