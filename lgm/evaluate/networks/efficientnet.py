"""EfficientNet-Lite0 (Tan & Le 2019, 1905.11946; the Lite form has ReLU6 and no squeeze-and-excitation)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from flax import nnx

from lgm.evaluate.networks.convolution import ConvNorm, conv_norm
from lgm.evaluate.networks.source import loaded, shipped_weights
from lgm.evaluate.preparation import Preparation
from lgm.interop.keymap import Extra, Rule, linear
from lgm.models.base import Model
from lgm.models.keys import Keys
from lgm.models.layers import Linear

# (blocks, kernel, stride of the first, expansion, channels) of every stage, after a stem of 32 channels
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
          (1, 3, 1, 6, 320))  # fmt: skip
STEM = 32


@dataclasses.dataclass(frozen=True)
class EfficientNetConfig:
    """Widths of the features and of the classes."""

    features: int = 1280
    classes: int = 1000


class Block(nnx.Module):
    """Expansion, a depthwise convolution and a projection, added to the input where shapes allow."""

    def __init__(self, inputs, outputs, size, stride, expansion, *, rngs: Keys):
        inner = inputs * expansion
        self.expand = ConvNorm(inputs, inner, rngs=rngs) if expansion > 1 else None
        self.depthwise = ConvNorm(inner, inner, size, stride=stride, padding="SAME", depthwise=True, rngs=rngs)
        self.project = ConvNorm(inner, outputs, rngs=rngs)
        self.residual = stride == 1 and inputs == outputs

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        y = x_BHWC if self.expand is None else jax.nn.relu6(self.expand(x_BHWC))
        y = self.project(jax.nn.relu6(self.depthwise(y)))
        return x_BHWC + y if self.residual else y


class EfficientNet(nnx.Module):
    """Images [B, 224, 224, 3] as (x - 127) / 128 to features [B, 1280]; other sides work as well."""

    def __init__(self, config: EfficientNetConfig, *, rngs: Keys):
        self.stem = ConvNorm(3, STEM, 3, stride=2, padding="SAME", rngs=rngs)
        blocks, inputs = [], STEM
        for count, size, stride, expansion, outputs in STAGES:
            for i in range(count):
                blocks.append(Block(inputs, outputs, size, stride if i == 0 else 1, expansion, rngs=rngs))
                inputs = outputs
        self.blocks = nnx.List(blocks)
        self.head = ConvNorm(inputs, config.features, rngs=rngs)
        self.classes = Linear(config.features, config.classes, (None, None), rngs=rngs)

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        x = jax.nn.relu6(self.stem(x_BHWC))
        for block in self.blocks:
            x = block(x)
        return jax.nn.relu6(self.head(x)).mean((1, 2))


def efficientnet() -> tuple[Model, Any]:
    """The network and the weights that come with the package."""
    model = Model(EfficientNetConfig(), EfficientNet)
    return model, loaded(efficientnet_rules(), model, shipped_weights("efficientnet_lite0"))


def efficientnet_preparation(side: int) -> Preparation:
    """How images become its input."""
    return Preparation(side, "bicubic_pillow", True, mean=(127.0,) * 3, std=(128.0,) * 3)


def efficientnet_rules() -> list[Rule | Extra]:
    """The names that the PyTorch ports of EfficientNet give their tensors."""
    rules = conv_norm("stem", "_conv_stem", "_bn0")
    expansions = [stage[3] for stage in STAGES for _ in range(stage[0])]
    for i, expansion in enumerate(expansions):
        parts = [("depthwise", "_depthwise_conv", "_bn1"), ("project", "_project_conv", "_bn2")]
        parts += [("expand", "_expand_conv", "_bn0")] if expansion > 1 else []
        for ours, conv, norm in parts:
            rules += conv_norm(f"blocks/{i}/{ours}", f"_blocks.{i}.{conv}", f"_blocks.{i}.{norm}")
    return [*rules, *conv_norm("head", "_conv_head", "_bn1"), *linear("classes", "_fc")]
