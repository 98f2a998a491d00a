"""A feature network as it comes out of a file or folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from lgm.evaluate.preparation import Preparation
from lgm.interop.tensor_files import Weights, load, open_weights
from lgm.models.base import Model


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A network's parts.

    image: (params, prepared images [B, S, S, 3]) -> features [B, dim]. classes: (kernel [dim, C], bias [C]) of its
    classifier. text: (function of (text_params, *arrays), text_params, captions -> arrays).
    """

    dim: int
    preparation: Preparation
    params: Any
    image: Callable
    classes: tuple[np.ndarray, np.ndarray] | None = None
    text: tuple[Callable, Any, Callable] | None = None


def loaded(rules: list, model: Model, weights: Weights | str | Path, only: str = "") -> Any:
    """Float32 parameters from those tensors whose names begin with one of `only` (words with a | between), without what
    torch counts batches by."""
    weights = weights if isinstance(weights, Weights) else open_weights(weights)
    kept = lambda name: name.startswith(tuple(only.split("|"))) and not name.endswith("num_batches_tracked")
    return load(rules, model.abstract(), weights.renamed(lambda name: name if kept(name) else None), dtype=np.float32)


def shipped_weights(name: str) -> Path:
    """The folder of weights that come with the package."""
    return Path(str(resources.files("lgm.weights") / name))
