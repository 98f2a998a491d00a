"""Where feature networks come from: kinds of files and folders, and what each makes of one."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lgm.evaluate.networks import folders
from lgm.evaluate.networks.contrastive import contrastive
from lgm.evaluate.networks.efficientnet import efficientnet, efficientnet_preparation
from lgm.evaluate.networks.inception import Inception, InceptionConfig, inception_rules
from lgm.evaluate.networks.source import Source, loaded, shipped_weights
from lgm.evaluate.preparation import Filter, Preparation
from lgm.files import local
from lgm.interop.components import read_json
from lgm.interop.tensor_files import PICKLES
from lgm.models.base import Model
from lgm.parsing import ConfigError, near_miss


def source_of(name: str) -> tuple[str, str]:
    """(kind, path) of a name as `features` lists them. Raises ConfigError, one line."""
    kind, colon, path = name.partition(":")
    if kind in SOURCES and bool(colon) == (kind not in SHIPPED):
        return kind, path
    if colon and re.fullmatch(r"\w+", kind) and not path.startswith("//"):
        raise ConfigError(f"features={name} is of no kind that is known{near_miss(kind, SOURCES)}")
    there = local(name)
    if there.is_dir() and (there / "config.json").is_file():
        said = str(read_json(there / "config.json").get("model_type"))
        if (kind := said.partition("_")[0]) in SOURCES:
            return kind, name
        raise ConfigError(f"features={name}: model_type={said!r} is of no feature network; give a folder of a "
                          "CLIPModel or a Dinov2Model")
    if there.suffix == ".safetensors" and there.is_file():
        return "inception", name
    if name in SOURCES:
        raise ConfigError(f"features={name} is read from a file or a folder; give {name}:PATH")
    if there.suffix in PICKLES:
        raise ConfigError(f"features={name} is a pickle, which can run code when read; lgm.evaluate.features has the "
                          "line that converts one to safetensors")
    raise ConfigError(f"features={name} is neither a .safetensors file nor a folder with config.json"
                      f"{near_miss(name, SOURCES)}")


def _efficientnet(path: str) -> Source:
    model, params = efficientnet()
    return _classifier(model, params, efficientnet_preparation(224))


def _inception(filter: Filter) -> Callable[[str], Source]:
    def source(path: str) -> Source:
        model = Model(InceptionConfig(), Inception)
        levels = (127.5,) * 3 if filter == "bilinear_torch" else (128.0,) * 3  # pytorch-fid takes 2 x / 255 - 1
        if Path(path).suffix in PICKLES:
            raise ConfigError(f"{path} is a pickle, which can run code when read; lgm.evaluate.features has the line "
                              "that converts one to safetensors")
        preparation = Preparation(299, filter, mean=levels, std=levels)
        return _classifier(model, loaded(inception_rules(), model, path), preparation, bias=False)

    return source


def _classifier(model: Model, params: Any, preparation: Preparation, bias: bool = True) -> Source:
    last = params["classes"]
    classes = last["kernel"], last["bias"] if bias else np.zeros_like(last["bias"])
    return Source(len(last["kernel"]), preparation, params, model.apply, classes)


SHIPPED = ("efficientnet_lite0", "emoji_contrastive")
SOURCES: dict[str, Callable[[str], Source]] = {
    "efficientnet_lite0": _efficientnet,
    "emoji_contrastive": lambda path: contrastive(shipped_weights("emoji_contrastive")),
    "inception": _inception("bilinear_tf1"),
    "inception_torch": _inception("bilinear_torch"),
    "inception_clean": _inception("bicubic_pillow"),
    "clip": folders.clip,
    "cmmd": folders.cmmd,
    "dinov2": folders.dinov2,
    "contrastive": contrastive,
}
