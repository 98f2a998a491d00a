"""Vision transformers (Dosovitskiy et al. 2021, 2010.11929): CLIP's (2103.00020) and DINOv2 (2304.07193)."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from lgm.evaluate.preparation import matrix
from lgm.interop.keymap import Extra, Rule, conv, linear, norm, prefixed, rearrange
from lgm.models.blocks import stack
from lgm.models.keys import Keys
from lgm.models.layers import Embedding, LayerNorm, Linear
from lgm.models.text_layers import ACTIVATIONS, SelfAttention, run


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Images [B, S, S, 3] to the class token's features [B, projection or width].

    side: what the positions are stated for, in patches; of other images they are resized. kind: "clip" has norms before
    the blocks and no bias of the patches; "dinov2" scales what each block adds. registers: tokens that no position has;
    with any, positions are resized with antialiasing. gated: SwiGLU instead of an MLP. projection: width of a last
    product, None for none.
    """

    kind: Literal["clip", "dinov2"] = "clip"
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int = 3072
    patch: int = 32
    side: int = 7
    activation: str = "quick_gelu"
    gated: bool = False
    registers: int = 0
    projection: int | None = None

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a width of {self.width}")

    @property
    def epsilon(self) -> float:
        """Of every layer norm."""
        return 1e-5 if self.kind == "clip" else 1e-6


class Block(nnx.Module):
    """Pre-norm attention and feed-forward network, each added to its input, in DINOv2 by a learned scale."""

    def __init__(self, config: ViTConfig, *, rngs: Keys):
        width, inner = config.width, config.mlp_width
        self.config = config
        self.norm1, self.norm2 = LayerNorm(width, config.epsilon), LayerNorm(width, config.epsilon)
        self.attn = SelfAttention(width, config.heads, rngs=rngs)
        self.fc1 = Linear(width, inner * (1 + config.gated), ("embed", "mlp"), rngs=rngs)
        self.fc2 = Linear(inner, width, ("mlp", "embed"), rngs=rngs)
        scaled = config.kind == "dinov2"
        self.scale1, self.scale2 = (nnx.Param(jnp.ones(width), axes=("embed",)) if scaled else None for _ in range(2))

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        scaled = lambda y, scale: y if scale is None else y * scale[...]
        x = x_BTD + scaled(self.attn(self.norm1(x_BTD)), self.scale1)
        h = self.fc1(self.norm2(x))
        if self.config.gated:
            gate, h = jnp.split(h, 2, -1)
            h = jax.nn.silu(gate) * h
        else:
            h = ACTIVATIONS[self.config.activation](h)
        return x + scaled(self.fc2(h), self.scale2)


class Patches(nnx.Module):
    """A product of every patch x patch x 3 pixels."""

    def __init__(self, config: ViTConfig, *, rngs: Keys):
        shape = (config.patch, config.patch, 3, config.width)
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(config.width)) if config.kind == "dinov2" else None

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        size = self.kernel.shape[0]
        y = jax.lax.conv_general_dilated(x_BHWC, self.kernel[...], (size, size), "VALID",
                                         dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return y if self.bias is None else y + self.bias[...]


class ViT(nnx.Module):
    """Prepared images to features; see `ViTConfig`."""

    def __init__(self, config: ViTConfig, *, rngs: Keys):
        self.config, width = config, config.width
        self.patches = Patches(config, rngs=rngs)
        self.positions = Embedding(1 + config.side**2, width, (None, "embed"), rngs=rngs)
        self.first = Embedding(1 + config.registers, width, (None, "embed"), rngs=rngs)  # class token, registers
        self.norm_in = LayerNorm(width, config.epsilon) if config.kind == "clip" else None
        self.blocks = stack(lambda key: Block(config, rngs=Keys(key)), config.depth, rngs)
        self.norm = LayerNorm(width, config.epsilon)
        axes, size = ("embed", "heads"), config.projection
        self.projection = Linear(width, size, axes, bias=False, rngs=rngs) if size else None

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        patches = self.patches(x_BHWC)
        batch, rows, columns, width = patches.shape
        table, first = self.positions.table[...], self.first.table[...]
        placed = patches.reshape(batch, -1, width) + self._resized(table[1:], rows, columns)
        front = jnp.broadcast_to(first.at[0].add(table[0]), (batch, *first.shape))
        x = jnp.concatenate([front, placed], 1)
        x = x if self.norm_in is None else self.norm_in(x)
        x = self.norm(run(self.blocks, x, lambda block, x: block(x))[:, 0])
        return x if self.projection is None else self.projection(x)

    def _resized(self, table_PD: jax.Array, rows: int, columns: int) -> jax.Array:
        side = self.config.side
        if (rows, columns) == (side, side):
            return table_PD
        name = "bicubic_pillow" if self.config.registers else "bicubic_torch"  # antialiased or not
        down, across = (jnp.asarray(matrix(name, side, size), jnp.float32) for size in (rows, columns))
        grid = jnp.einsum("rh,cw,hwd->rcd", down, across, table_PD.reshape(side, side, -1))
        return grid.reshape(rows * columns, -1)


def clip_rules(config: ViTConfig) -> list[Rule | Extra]:
    """The image tower of a CLIPModel or CLIPVisionModelWithProjection."""
    layer = "encoder.layers.{layer}."
    inside = [
        Rule("first/table", "embeddings.class_embedding", rearrange("d -> 1 d")),
        Rule("patches/kernel", "embeddings.patch_embedding.weight", rearrange("o i h w -> h w i o")),
        Rule("positions/table", "embeddings.position_embedding.weight"),
        Extra("embeddings.position_ids"),
        *norm("norm_in", "pre_layrnorm"),
        *norm("blocks/norm1", f"{layer}layer_norm1"),
        *linear("blocks/attn/qkv", tuple(f"{layer}self_attn.{part}_proj" for part in "qkv")),
        *linear("blocks/attn/out", f"{layer}self_attn.out_proj"),
        *norm("blocks/norm2", f"{layer}layer_norm2"),
        *linear("blocks/fc1", f"{layer}mlp.fc1"),
        *linear("blocks/fc2", f"{layer}mlp.fc2"),
        *norm("norm", "post_layernorm"),
    ]
    return prefixed(inside, theirs="vision_model.") + linear("projection", "visual_projection", bias=False)


def dinov2_rules(config: ViTConfig) -> list[Rule | Extra]:
    """A Dinov2Model or Dinov2WithRegistersModel."""
    layer = "encoder.layer.{layer}."
    first = ("embeddings.cls_token", *(("embeddings.register_tokens",) if config.registers else ()))
    names = ("weights_in", "weights_out") if config.gated else ("fc1", "fc2")
    qkv = tuple(f"{layer}attention.attention.{part}" for part in ("query", "key", "value"))
    return [
        Rule("first/table", first, rearrange("1 t d -> t d"), axis=-2, sizes=(1, config.registers)[: len(first)]),
        Rule("positions/table", "embeddings.position_embeddings", rearrange("1 t d -> t d")),
        Extra("embeddings.mask_token"),
        *conv("patches", "embeddings.patch_embeddings.projection"),
        *norm("blocks/norm1", f"{layer}norm1"),
        *linear("blocks/attn/qkv", qkv),
        *linear("blocks/attn/out", f"{layer}attention.output.dense"),
        Rule("blocks/scale1", f"{layer}layer_scale1.lambda1"),
        *norm("blocks/norm2", f"{layer}norm2"),
        *linear("blocks/fc1", f"{layer}mlp.{names[0]}"),
        *linear("blocks/fc2", f"{layer}mlp.{names[1]}"),
        Rule("blocks/scale2", f"{layer}layer_scale2.lambda1"),
        *norm("norm", "layernorm"),
    ]
