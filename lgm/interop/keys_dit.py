"""Key map and configuration of DiT and SiT, in the layout of diffusers' DiTTransformer2DModel.

diffusers spaces the 128 frequencies of time over 127 and has epsilon 1e-5 before the feed-forward networks; the
released code, which the weights were trained with, spaces them over 128 and has 1e-6, and so has the network here.
diffusers has no SiT: its folders are those of a DiT whose transformer is a SiTTransformer2DModel and whose scheduler is
a flow's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lgm.interop.fields import check, expect
from lgm.interop.keymap import Extra, Rule, linear, prefixed, rearrange
from lgm.interop.keys_sd3 import TABLE_ROUNDING
from lgm.interop.tables import DIT, DIT_FIXED
from lgm.interop.tensor_files import Weights
from lgm.models import Params
from lgm.models.dit import DiTConfig
from lgm.models.embeddings import sincos_2d

TABLES = ("pos_embed.pos_embed", "pos_embed")  # of positions: a buffer that older versions saved, and original files
NORM_EPS = 1e-6  # as released; folders say diffusers' default, whatever the weights are made for


def dit_rules(config: DiTConfig) -> list[Rule | Extra]:
    """DiTTransformer2DModel, every block of which has embedders of its own."""
    if config.embedders == "shared":
        raise ValueError("diffusers keeps DiT's embedders a block; take `per_block` of the configuration and weights")
    block = "transformer_blocks.{layer}."
    patches = rearrange("o c p q -> (p q c) o", c=config.channels, p=config.patch_size, q=config.patch_size)
    return [
        *map(Extra, TABLES),
        *linear("patches", "pos_embed.proj", transform=patches),
        *prefixed(embedders(), "blocks/embedders/", f"{block}norm1.emb."),
        *linear("blocks/modulation", f"{block}norm1.linear"),
        *linear("blocks/qkv", tuple(f"{block}attn1.to_{part}" for part in "qkv")),
        *linear("blocks/out", f"{block}attn1.to_out.0"),
        *linear("blocks/mlp/fc1", f"{block}ff.net.0.proj"),
        *linear("blocks/mlp/fc2", f"{block}ff.net.2"),
        *linear("modulation", "proj_out_1"),
        *linear("out", "proj_out_2"),
    ]


def embedders() -> list[Rule]:
    """CombinedTimestepLabelEmbeddings."""
    return [
        *linear("time/fc1", "timestep_embedder.linear_1"),
        *linear("time/fc2", "timestep_embedder.linear_2"),
        Rule("label/table", "class_embedder.embedding_table.weight"),
    ]


def per_block(config: DiTConfig, params: Params | None) -> tuple[DiTConfig, Params | None]:
    """The same network with a copy of the shared embedders in every block, as diffusers keeps them."""
    if config.embedders == "per_block" or params is None:
        return dataclasses.replace(config, embedders="per_block"), params
    copies = jax.tree.map(lambda p: jnp.broadcast_to(p, (config.depth, *p.shape)), params["embedders"])
    rest = {name: value for name, value in params.items() if name != "embedders"}
    rest["blocks"] = {**params["blocks"], "embedders": copies}
    return dataclasses.replace(config, embedders="per_block"), rest


def read_dit(config: Mapping[str, Any]) -> DiTConfig:
    """DiTConfig of a DiTTransformer2DModel."""
    check(config, DIT)
    channels, patch = config.get("in_channels", 4), config.get("patch_size", 2)
    out = expect(config, "out_channels", channels, 2 * channels, None)
    return DiTConfig(
        channels=channels,
        patch_size=patch,
        width=config.get("num_attention_heads", 16) * config.get("attention_head_dim", 72),
        depth=config.get("num_layers", 28),
        heads=config.get("num_attention_heads", 16),
        classes=config.get("num_embeds_ada_norm", 1000),
        learned_sigma=out == 2 * channels,
        base_size=config.get("sample_size", 32) // patch,
        embedders="per_block",
    )


def with_positions(config: DiTConfig, weights: Weights) -> DiTConfig:
    """`config`, whose positions are those of the table in the checkpoint, where it has one.

    Raises ValueError, one line, for another table: of a network that was trained at another size.
    """
    side = config.base_size
    known = sincos_2d(config.width, side, side, side, side)
    for name in (table for table in TABLES if table in weights.names):
        shape = weights.shape(name)
        if shape != (1, *known.shape) or np.abs(weights.get(name)[0].astype(np.float64) - known).max() > TABLE_ROUNDING:
            raise ValueError(f"{weights.path}: {name!r} {list(shape)} is not the table of {side} x {side} positions "
                             f"that sample_size={side * config.patch_size} means; give the folder of the size that the "
                             "network was trained at")  # fmt: skip
    return config


def position_table(config: DiTConfig) -> dict[str, np.ndarray]:
    """The table [1, T, width] of positions, a buffer that the original's files hold."""
    side = config.base_size
    return {TABLES[1]: sincos_2d(config.width, side, side, side, side).astype(np.float32)[None]}


def write_dit(config: DiTConfig) -> dict[str, Any]:
    """config.json of a DiTTransformer2DModel. Raises ValueError for a network that is told another time."""
    if config.time != "steps":
        raise ValueError(f"DiTTransformer2DModel is told 1000 t; a network with time={config.time!r} is no such one")
    return DIT_FIXED | {
        "norm_eps": NORM_EPS,
        "_class_name": "DiTTransformer2DModel",
        "in_channels": config.channels,
        "out_channels": config.out_channels,
        "patch_size": config.patch_size,
        "num_layers": config.depth,
        "num_attention_heads": config.heads,
        "attention_head_dim": config.width // config.heads,
        "num_embeds_ada_norm": config.classes,
        "sample_size": config.base_size * config.patch_size,
    }


def read_sit(config: Mapping[str, Any]) -> DiTConfig:
    """DiTConfig of a SiTTransformer2DModel, which is a DiT told the time from noise to data."""
    return dataclasses.replace(read_dit(config), time="reversed")


def write_sit(config: DiTConfig) -> dict[str, Any]:
    """config.json of a SiTTransformer2DModel. Raises ValueError for a network that is told another time."""
    if config.time != "reversed":
        raise ValueError(f"SiTTransformer2DModel is told 1 - t; a network with time={config.time!r} is no such one")
    return write_dit(dataclasses.replace(config, time="steps")) | {"_class_name": "SiTTransformer2DModel"}
