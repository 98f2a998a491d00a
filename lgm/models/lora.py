"""Low-rank adaptation (Hu et al. 2021, 2106.09685) of any model here: W + (alpha / rank) down up, on matrices by name.

The adapter is a small tree of its own. `merged` adds it to the frozen parameters inside the differentiated function, so
the models know nothing of it and its gradient is all that a train step needs.
"""

from __future__ import annotations

import dataclasses
import math
import re

import jax
import jax.numpy as jnp

from lgm.models.base import Model, Params

Adapter = dict[str, dict[str, jax.Array]]  # path of a matrix -> {"down": [..., in, rank], "up": [..., rank, out]}


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """`targets` are regular expressions of the paths of matrices to adapt, anywhere in "blocks/attn/qkv/kernel"."""

    rank: int = 16
    alpha: float | None = None  # the rank by default
    targets: tuple[str, ...] = (r"/(qkv|q|kv|out)/kernel$",)

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"rank={self.rank} must be at least 1")

    @property
    def scale(self) -> float:
        """What the product of down and up is multiplied by."""
        return (self.rank if self.alpha is None else self.alpha) / self.rank


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


def merged(params: Params, adapter: Adapter, config: LoRAConfig) -> Params:
    """`params` with the adapter added, in the dtype of the parameters. Differentiable in both."""

    def add(path, leaf):
        part = adapter.get(_name(path))
        if part is None:
            return leaf
        change = jnp.einsum("...ir,...ro->...io", part["down"], part["up"]) * config.scale
        return leaf + change.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(add, params)


def _flat(tree, is_leaf=None) -> dict:
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]
    return {_name(path): leaf for path, leaf in leaves}


def _name(path) -> str:
    return "/".join(str(key.key) for key in path)
