"""A small image-text model of our own: EfficientNet-Lite0's features, a head that is trained, a text tower that is.

Trained as CLIP is (Radford et al. 2021, 2103.00020) by `tools/train_contrastive.py`. A folder has config.json, a
`ContrastiveConfig`, and model.safetensors, a tensor for each parameter of head and text tower, named by its path.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from lgm.bounds import Count
from lgm.data import Tokenizer
from lgm.evaluate.networks.efficientnet import EfficientNetConfig, efficientnet, efficientnet_preparation
from lgm.evaluate.networks.source import Source
from lgm.files import local, read_json
from lgm.interop.tensor_files import open_weights
from lgm.models import build
from lgm.models.base import Model
from lgm.models.clip_text import CLIPTextConfig
from lgm.models.keys import Keys
from lgm.models.layers import MLP, LayerNorm
from lgm.parsing import parse
from lgm.weights import unflatten


@dataclasses.dataclass(frozen=True)
class ContrastiveConfig:
    """The side that images are resized to, the head's inner width, text tower and tokenizer; `training` is for the
    record. The embeddings' width is the text tower's `projection_dim`."""

    text: CLIPTextConfig
    side: Count = 96
    hidden: Count = 512
    tokenizer: str = "emoji64"
    training: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.text.projection_dim is None:
            raise ValueError("text.projection_dim=None leaves embeddings without a width; give one, as 128")


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """Widths of what comes in, within and of the embeddings."""

    inputs: int
    hidden: int
    outputs: int


class Head(nnx.Module):
    """Features [B, 1280] to embeddings [B, D]."""

    def __init__(self, config: HeadConfig, *, rngs: Keys):
        self.norm = LayerNorm(config.inputs, 1e-5)
        self.mlp = MLP(config.inputs, config.hidden, config.outputs, jax.nn.gelu, rngs=rngs)

    def __call__(self, features_BD: jax.Array) -> jax.Array:
        return self.mlp(self.norm(features_BD))


def trained(config: ContrastiveConfig) -> dict[str, Model]:
    """The parts that a folder has weights of."""
    head = HeadConfig(EfficientNetConfig().features, config.hidden, config.text.projection_dim)
    return {"head": Model(head, Head), "text": build(config.text)}


def contrastive(path: str | Path) -> Source:
    """The model in a folder. Raises ConfigError, one line, for a folder of anything else."""
    folder = local(path)
    config = parse(ContrastiveConfig, read_json(folder / "config.json"), str(folder / "config.json"))
    weights = open_weights(folder)
    below = lambda name: {key.removeprefix(name): np.asarray(weights.get(key)) for key in weights.names
                          if key.startswith(name)}  # fmt: skip
    parts = trained(config)
    params = {name: unflatten(model, below(f"{name}/"), str(weights.path)) for name, model in parts.items()}
    images, trunk = efficientnet()
    tokenizer = Tokenizer(config.tokenizer, config.text.max_length, truncate=True)

    def image(params: Any, x_BHWC: jax.Array) -> jax.Array:
        return parts["head"].apply(params["head"], images.apply(params["trunk"], x_BHWC))

    def tokenize(captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return tokenizer.encode(captions)

    pooled = lambda params, tokens, mask: parts["text"].apply(params, tokens, mask)[1]
    return Source(config.text.projection_dim, efficientnet_preparation(config.side),
                  {"trunk": trunk, "head": params["head"]}, image,
                  text=(pooled, params["text"], tokenize))  # fmt: skip
