"""Feature networks in folders of transformers: CLIP's two towers and DINOv2, prepared as the folder says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lgm.data.text_tokenizers import read_text_tokenizer
from lgm.evaluate.networks.source import Source, loaded
from lgm.evaluate.networks.vit import ViT, ViTConfig, clip_rules, dinov2_rules
from lgm.evaluate.preparation import Preparation
from lgm.files import local
from lgm.interop import fields, keys_text, tables, text_configs
from lgm.interop.components import TENSORS_A_BLOCK, check_size, read_json
from lgm.interop.fields import CARRIED, COUNT, COUNT_OR_NONE, FLAG, NAME, NUMBERS, fixed
from lgm.interop.tensor_files import Weights, open_weights
from lgm.models import build
from lgm.models.base import Model

_VISION = tables.OUTPUTS | {
    "hidden_act": fixed("quick_gelu", "gelu"), "hidden_size": COUNT.of("width", 768), "image_size": COUNT,
    "intermediate_size": COUNT.of("mlp_width", 3072), "layer_norm_eps": fixed(1e-5), "model_type": NAME,
    "num_attention_heads": COUNT.of("heads", 12), "num_channels": fixed(3),
    "num_hidden_layers": COUNT.of("depth", 12), "patch_size": COUNT.of("patch", 32), "projection_dim": COUNT,
}  # fmt: skip
_CLIP = {"projection_dim": COUNT_OR_NONE, "text_config": tables.CLIP, "vision_config": _VISION}
_DINOV2 = tables.OUTPUTS | {
    "apply_layernorm": CARRIED, "drop_path_rate": CARRIED, "hidden_act": fixed("gelu"),
    "hidden_size": COUNT.of("width", 768), "image_size": COUNT, "layer_norm_eps": fixed(1e-6),
    "layerscale_value": CARRIED, "mlp_ratio": COUNT, "model_type": NAME, "num_attention_heads": COUNT.of("heads", 12),
    "num_channels": fixed(3), "num_hidden_layers": COUNT.of("depth", 12), "num_register_tokens": COUNT,
    "patch_size": COUNT, "qkv_bias": fixed(True), "reshape_hidden_states": CARRIED, "use_mask_token": CARRIED,
    "use_swiglu_ffn": FLAG,
}  # fmt: skip
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def clip(path: str) -> Source:
    """A CLIPModel: projected embeddings of images and captions."""
    return _clip(path, cmmd=False)


def cmmd(path: str) -> Source:
    """A CLIPModel as CMMD's authors use it: both sides become those of the network's images, without antialiasing."""
    return _clip(path, cmmd=True)


def _clip(path: str, cmmd: bool) -> Source:
    folder = local(path)
    config, weights = read_json(folder / "config.json"), open_weights(folder)
    fields.check(config, _CLIP, str(folder / "config.json"))
    width = config.get("projection_dim") or 512
    vision, text = config.get("vision_config") or {}, (config.get("text_config") or {}) | {"projection_dim": width}
    ours = fields.read_fields(vision, _VISION)
    side = vision.get("image_size", 224)
    tower = ViTConfig("clip", side=side // ours["patch"], activation=vision.get("hidden_act", "quick_gelu"),
                      projection=width, **ours)  # fmt: skip
    said = read_json(folder / "preprocessor_config.json") if (folder / "preprocessor_config.json").is_file() else {}
    preparation = _prepared(folder, said, side, side, _CLIP_MEAN, _CLIP_STD)
    if cmmd:
        preparation = Preparation(side, "bicubic_torch", mean=preparation.mean, std=preparation.std)
    images, captions = Model(tower, ViT), build(text_configs.read_clip(text))
    check_size(captions.config, weights, folder / "config.json")
    _check_depth(tower, weights, folder)
    params = loaded(clip_rules(tower), images, weights, "vision_model.|visual_projection.")
    text_params = loaded(keys_text.clip_text(captions.config), captions, weights, "text_model.|text_projection.")
    tokenizer = read_text_tokenizer(folder)
    length = captions.config.max_length

    def tokenize(captions: Sequence[str]) -> tuple[np.ndarray]:
        return (tokenizer.encode(captions, length)[0],)

    pooled = lambda params, tokens: captions.apply(params, tokens)[1]
    return Source(width, preparation, params, images.apply, text=(pooled, text_params, tokenize))


def dinov2(path: str) -> Source:
    """A Dinov2Model, with or without registers: the class token after the last norm."""
    folder = local(path)
    config, weights = read_json(folder / "config.json"), open_weights(folder)
    ours = fields.read_fields(config, _DINOV2)
    registered = config.get("model_type") == "dinov2_with_registers"
    patch, hidden = config.get("patch_size", 16 if registered else 14), ours["width"] * config.get("mlp_ratio", 4)
    gated = config.get("use_swiglu_ffn", False)
    hidden = (hidden * 2 // 3 + 7) // 8 * 8 if gated else hidden
    tower = ViTConfig("dinov2", mlp_width=hidden, patch=patch, side=config.get("image_size", 224) // patch,
                      activation="gelu", gated=gated,
                      registers=config.get("num_register_tokens", 4) if registered else 0, **ours)  # fmt: skip
    said = read_json(folder / "preprocessor_config.json") if (folder / "preprocessor_config.json").is_file() else {}
    preparation = _prepared(folder, said, 224, 256, _IMAGENET_MEAN, _IMAGENET_STD)
    _check_depth(tower, weights, folder)
    model = Model(tower, ViT)
    return Source(tower.width, preparation, loaded(dinov2_rules(tower), model, weights), model.apply)


def _check_depth(tower: ViTConfig, weights: Weights, folder: Path) -> None:
    if tower.depth * TENSORS_A_BLOCK > len(weights.names):
        raise ValueError(f"{folder / 'config.json'}: {tower.depth} blocks need more than the {len(weights.names)} "
                         "tensors beside it")


def _prepared(folder: Path, said: Mapping[str, Any], side: int, short: int, mean: Sequence[float],
              std: Sequence[float]) -> Preparation:  # fmt: skip
    """What preprocessor_config.json says: the shorter side, the square in the middle, mean and deviation.

    Raises ValueError, one line, for a preparation of another form.
    """
    table = {"do_center_crop": fixed(True), "do_normalize": fixed(True), "do_rescale": fixed(True),
             "do_resize": fixed(True), "image_mean": NUMBERS, "image_std": NUMBERS,
             "resample": fixed(3, 2)}  # fmt: skip
    fields.check(said, table, str(folder / "preprocessor_config.json"))
    number = lambda value, key: value[key] if isinstance(value, dict) and key in value else value
    crop = number(said.get("crop_size", side), "height")
    short = number(said.get("size", short), "shortest_edge")
    if not all(isinstance(size, int) and 1 <= size <= fields.LARGEST_SIDE for size in (crop, short)) or crop > short:
        raise ValueError(f"{folder / 'preprocessor_config.json'}: size and crop_size must be a shortest_edge and a "
                         "square no larger")
    filter = "bilinear_pillow" if said.get("resample", 3) == 2 else "bicubic_pillow"
    levels = lambda key, usual: tuple(255 * float(value) for value in said.get(key, usual))
    return Preparation(crop, filter, True, short, levels("image_mean", mean), levels("image_std", std))
