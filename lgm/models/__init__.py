"""Functional model definitions: `build(config)` gives a `Model`, whatever the family."""

from __future__ import annotations

from lgm.models.base import Conditioning, Model, Params, count

# family name -> (configuration class, NNX module class), both importable without building anything
FAMILIES: dict[str, tuple[str, str, str]] = {
    "autoencoder": ("lgm.models.autoencoder", "AutoencoderConfig", "Autoencoder"),
    "clip_text": ("lgm.models.clip_text", "CLIPTextConfig", "CLIPText"),
    "t5": ("lgm.models.t5", "T5Config", "T5Encoder"),
    "bert": ("lgm.models.bert", "BERTConfig", "BERT"),
    "unet": ("lgm.models.unet", "UNetConfig", "UNet"),
    "mmdit": ("lgm.models.mmdit", "MMDiTConfig", "MMDiT"),
}


def classes(family: str) -> tuple[type, type]:
    """(configuration class, module class) of a family. Raises ValueError that names the families there are."""
    import importlib

    if family not in FAMILIES:
        raise ValueError(f"unknown model family {family!r}; there are {', '.join(FAMILIES)}")
    module, config, network = FAMILIES[family]
    module = importlib.import_module(module)
    return getattr(module, config), getattr(module, network)


def build(config) -> Model:
    """The model of a configuration dataclass; no arrays are made."""
    for family in FAMILIES:
        config_class, network = classes(family)
        if isinstance(config, config_class):
            return Model(config, network)
    raise TypeError(f"{type(config).__name__} is no model configuration; there are {', '.join(FAMILIES)}")


__all__ = ["Conditioning", "FAMILIES", "Model", "Params", "build", "classes", "count"]
