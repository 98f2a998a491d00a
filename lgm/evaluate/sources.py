"""Where feature networks come from: kinds of files and folders, and what each makes of one."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from lgm.evaluate.networks.efficientnet import EfficientNet, EfficientNetConfig, efficientnet_rules
from lgm.evaluate.preparation import Preparation
from lgm.files import local
from lgm.interop.components import read_json
from lgm.interop.tensor_files import load, open_weights
from lgm.models.base import Model
from lgm.parsing import ConfigError, near_miss


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


def source_of(name: str) -> tuple[str, str]:
    """(kind, path) of a name as `features` lists them. Raises ConfigError, one line."""
    kind, colon, path = name.partition(":")
    if kind in SOURCES and bool(colon) == (kind not in SHIPPED):
        return kind, path
    if colon and re.fullmatch(r"\w+", kind) and not path.startswith("//"):
        raise ConfigError(f"features={name} is of no kind that is known{near_miss(kind, SOURCES)}")
    path = local(name)
    if path.is_dir() and (path / "config.json").is_file():
        said = str(read_json(path / "config.json").get("model_type"))
        if (kind := said.partition("_")[0]) in SOURCES:
            return kind, name
        raise ConfigError(f"features={name}: model_type={said!r} is of no feature network; give a folder of a "
                          "CLIPModel or a Dinov2Model")
    if path.suffix == ".safetensors" and path.is_file():
        return "inception", name
    raise ConfigError(f"features={name} is neither a .safetensors file nor a folder with config.json"
                      f"{near_miss(name, SOURCES)}")


def _efficientnet(path: str) -> Source:
    model = Model(EfficientNetConfig(), EfficientNet)
    folder = Path(str(resources.files("lgm.weights") / "efficientnet_lite0"))
    params = _loaded(efficientnet_rules(), model, folder)
    return _classifier(model, params, Preparation(224, "bicubic_pillow", True, mean=(127.0,) * 3, std=(128.0,) * 3))


def _loaded(rules: list, model: Model, path: str | Path) -> Any:
    """Float32 parameters of a file or folder, without what torch counts batches by."""
    weights = open_weights(path).renamed(lambda name: None if name.endswith("num_batches_tracked") else name)
    return load(rules, model.abstract(), weights, dtype=np.float32)


def _classifier(model: Model, params: Any, preparation: Preparation, bias: bool = True) -> Source:
    last = params["classes"]
    classes = last["kernel"], last["bias"] if bias else np.zeros_like(last["bias"])
    return Source(len(last["kernel"]), preparation, params, model.apply, classes)


SHIPPED = ("efficientnet_lite0",)
SOURCES: dict[str, Callable[[str], Source]] = {"efficientnet_lite0": _efficientnet}
