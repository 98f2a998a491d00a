"""What the tensors of a diffusers folder are called in the original, single-file checkpoints.

For each kind of network a function of its configuration gives a function of a diffusers name: the `Source` of that
tensor. Original files fuse what diffusers keeps apart (q, k and v), so a source may be some rows of a tensor.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from lgm.models.autoencoder import AutoencoderConfig
from lgm.models.unet import UNetConfig


@dataclasses.dataclass(frozen=True)
class Source:
    """A tensor of the original: `rows` (first, last, of) are its rows from first / of to last / of of their number.

    `change` "swap" exchanges the halves of the rows (the original keeps shift before scale), "transpose" turns a matrix
    round, "squeeze" drops the spatial axes of a 1 x 1 convolution, "identity" is the identity in a matrix's stead.
    """

    name: str
    rows: tuple[int, int, int] | None = None
    change: Literal["swap", "transpose", "squeeze", "identity"] | None = None


Original = Callable[[str], Source]
Layouts = Sequence[tuple[str, Callable[[Any], Original]]]  # (prefix in single files, layout below it)

QKV = {"q": (0, 1, 3), "k": (1, 2, 3), "v": (2, 3, 3)}

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def unet(config: UNetConfig) -> Original:
    """The U-Net of Stable Diffusion 1, 2 and XL, below model.diffusion_model."""
    per_level, levels = config.layers_per_block + 1, len(config.block_channels)
    places = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }
    for i in range(levels):
        for j in range(config.layers_per_block):
            block = f"input_blocks.{1 + i * per_level + j}"
            places |= {f"down_blocks.{i}.resnets.{j}": f"{block}.0", f"down_blocks.{i}.attentions.{j}": f"{block}.1"}
        places[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{(i + 1) * per_level}.0.op"
        for j in range(per_level):
            block = f"output_blocks.{i * per_level + j}"
            places |= {f"up_blocks.{i}.resnets.{j}": f"{block}.0", f"up_blocks.{i}.attentions.{j}": f"{block}.1"}
        after = 2 if config.transformer_depth[levels - 1 - i] else 1
        places[f"up_blocks.{i}.upsamplers.0.conv"] = f"{block}.{after}.conv"
    return by_place(places, {"resnets": _RESNET})


def autoencoder(config: AutoencoderConfig) -> Original:
    """The KL autoencoder, below first_stage_model."""
    levels, places = len(config.block_channels), {}
    for side in ("encoder", "decoder"):
        places |= {
            f"{side}.conv_norm_out": f"{side}.norm_out",
            f"{side}.mid_block.resnets.0": f"{side}.mid.block_1",
            f"{side}.mid_block.resnets.1": f"{side}.mid.block_2",
            f"{side}.mid_block.attentions.0": f"{side}.mid.attn_1",
        }
    for i in range(levels):
        down, up = f"encoder.down.{i}", f"decoder.up.{levels - 1 - i}"
        places[f"encoder.down_blocks.{i}.downsamplers.0.conv"] = f"{down}.downsample.conv"
        places[f"decoder.up_blocks.{i}.upsamplers.0.conv"] = f"{up}.upsample.conv"
        for j in range(config.layers_per_block + 1):
            places[f"encoder.down_blocks.{i}.resnets.{j}"] = f"{down}.block.{j}"
            places[f"decoder.up_blocks.{i}.resnets.{j}"] = f"{up}.block.{j}"
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    inner = {"resnets": {"conv_shortcut": "nin_shortcut"}, "attentions": attention}
    find = by_place(places, inner)

    def original(name: str) -> Source:
        projects = "attentions" in name and "group_norm" not in name and name.endswith("weight")
        return Source(find(name).name, change="squeeze" if projects else None)

    return original


def same(_: Any) -> Original:
    """A network whose names the single files share with the library: CLIP below what leads to text_model, T5, ..."""
    return Source


def clip_text_bare(_: Any) -> Original:
    """CLIP-L as transformers saves it since its fifth version, without text_model."""
    return lambda name: Source(name.removeprefix("text_model."))


def unprojected(layout: Callable[[Any], Original]) -> Callable[[Any], Original]:
    """CLIP-L's `layout` in SD3's files: its pooled vector is not projected, which diffusers' folders say by an
    identity."""

    def of(config: Any) -> Original:
        original = layout(config)
        square = dataclasses.replace(original("text_model.encoder.layers.0.self_attn.q_proj.weight"), change="identity")
        return lambda name: square if name == "text_projection.weight" else original(name)

    return of


_OPEN_CLIP = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm": "ln_final",
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "text_model.encoder.layers": "transformer.resblocks",
}


def open_clip_text(_: Any) -> Original:
    """A text encoder of OpenCLIP in its own layout, which fuses q, k and v and multiplies by text_projection."""

    def original(name: str) -> Source:
        if name == "text_projection.weight":
            return Source("text_projection", change="transpose")
        fused = re.fullmatch(r"(.*)\.self_attn\.([qkv])_proj\.(weight|bias)", name)
        if fused:
            block, part, kind = fused.groups()
            return Source(f"{replaced(block, _OPEN_CLIP)}.attn.in_proj_{kind}", QKV[part])
        return Source(replaced(name, _OPEN_CLIP))

    return original


_SD3 = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn.to_add_out": "context_block.attn.proj",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.to_out.0": "x_block.attn.proj",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "attn2.to_out.0": "x_block.attn2.proj",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "transformer_blocks": "joint_blocks",
}


def sd3(config: Any) -> Original:
    """SD3's transformer, below model.diffusion_model."""
    last = f"transformer_blocks.{config.depth - 1}."

    def original(name: str) -> Source:
        if name.startswith("proj_out."):
            return Source(f"final_layer.linear.{name.removeprefix('proj_out.')}")
        fused = re.fullmatch(r"transformer_blocks\.(\d+)\.(attn2?)\.(to|add)_([qkv])(?:_proj)?\.(weight|bias)", name)
        if fused:
            block, attention, kind, part, end = fused.groups()
            stream = "x_block" if kind == "to" else "context_block"
            return Source(f"joint_blocks.{block}.{stream}.{attention}.qkv.{end}", QKV[part])
        swapped = name.startswith(("norm_out.linear", f"{last}norm1_context.linear"))
        return Source(replaced(name, _SD3), change="swap" if swapped else None)

    return original


_FLUX = {
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "context_embedder": "txt_in",
    "x_embedder": "img_in",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "norm1_context.linear": "txt_mod.lin",
    "norm1.linear": "img_mod.lin",
    "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
    "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
    "attn.to_add_out": "txt_attn.proj",
    "attn.to_out.0": "img_attn.proj",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
}
_FLUX_DOUBLE = _FLUX | {
    "attn.norm_q.weight": "img_attn.norm.query_norm.scale",
    "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
    "transformer_blocks": "double_blocks",
}
_FLUX_SINGLE = {
    "attn.norm_q.weight": "norm.query_norm.scale",
    "attn.norm_k.weight": "norm.key_norm.scale",
    "proj_out": "linear2",
    "norm.linear": "modulation.lin",
    "single_transformer_blocks": "single_blocks",
}
_FLUX_PARTS = {"attn.to_q": (0, 1, 7), "attn.to_k": (1, 2, 7), "attn.to_v": (2, 3, 7), "proj_mlp": (3, 7, 7)}


def flux(_: Any) -> Original:
    """Flux.1's transformer. Its single blocks fuse q, k, v and the feed-forward network's four widths in one."""

    def original(name: str) -> Source:
        if name.startswith("proj_out."):
            return Source(f"final_layer.linear.{name.removeprefix('proj_out.')}")
        if fused := re.fullmatch(r"single_transformer_blocks\.(\d+)\.(attn\.to_[qkv]|proj_mlp)\.(weight|bias)", name):
            block, part, end = fused.groups()
            return Source(f"single_blocks.{block}.linear1.{end}", _FLUX_PARTS[part])
        if name.startswith("single_transformer_blocks."):
            return Source(replaced(name, _FLUX_SINGLE))
        if fused := re.fullmatch(r"transformer_blocks\.(\d+)\.attn\.(to|add)_([qkv])(?:_proj)?\.(weight|bias)", name):
            block, kind, part, end = fused.groups()
            return Source(f"double_blocks.{block}.{'img' if kind == 'to' else 'txt'}_attn.qkv.{end}", QKV[part])
        return Source(replaced(name, _FLUX_DOUBLE), change="swap" if name.startswith("norm_out.") else None)

    return original


_DIT = {
    "pos_embed.proj": "x_embedder.proj",
    "proj_out_1": "final_layer.adaLN_modulation.1",
    "proj_out_2": "final_layer.linear",
    "norm1.linear": "adaLN_modulation.1",
    "attn1.to_out.0": "attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
    "transformer_blocks": "blocks",
}
_DIT_EMBEDDERS = {
    "timestep_embedder.linear_1": "t_embedder.mlp.0",
    "timestep_embedder.linear_2": "t_embedder.mlp.2",
    "class_embedder.embedding_table": "y_embedder.embedding_table",
}


def dit(_: Any) -> Original:
    """DiT and SiT, whose blocks share the embedders of which diffusers keeps a copy in each."""

    def original(name: str) -> Source:
        if copied := re.fullmatch(r"transformer_blocks\.\d+\.norm1\.emb\.(.*)", name):
            return Source(replaced(copied[1], _DIT_EMBEDDERS))
        if fused := re.fullmatch(r"transformer_blocks\.(\d+)\.attn1\.to_([qkv])\.(weight|bias)", name):
            block, part, end = fused.groups()
            return Source(f"blocks.{block}.attn.qkv.{end}", QKV[part])
        return Source(replaced(name, _DIT))

    return original


def in_model(_: Any) -> Original:
    """A language model in a file of one that writes, below "model."."""
    return lambda name: Source(f"model.{name}")


def by_place(places: Mapping[str, str], inner: Mapping[str, Mapping[str, str]]) -> Original:
    """Names that begin with a place of `places`; what follows it is renamed by the table of its kind in `inner`."""
    ordered = sorted(places, key=len, reverse=True)

    def original(name: str) -> Source:
        place = next((p for p in ordered if name.startswith(p + ".")), None)
        if place is None:
            return Source(name)
        rest = name.removeprefix(place + ".")
        for kind, table in inner.items():
            if f"{kind}." in place + ".":
                rest = replaced(rest, table)
        return Source(f"{places[place]}.{rest}")

    return original


def replaced(name: str, table: Mapping[str, str]) -> str:
    """`name` with every entry of the table that stands in it, from dot to dot, replaced."""
    for old, new in table.items():
        name = re.sub(rf"(^|\.){re.escape(old)}(?=\.|$)", rf"\g<1>{new}", name)
    return name
