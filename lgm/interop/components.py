"""The parts of a diffusers folder: for each class, its configuration both ways, its key map and its file of weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from lgm.files import write_atomically
from lgm.interop import diffusers_configs as configs
from lgm.interop import keys_text, text_configs
from lgm.interop.keymap import Extra, iterate_theirs, names_of
from lgm.interop.keys_autoencoder import autoencoder_rules, autoencoder_weights
from lgm.interop.keys_dit import dit_rules, read_dit, read_sit, write_dit, write_sit
from lgm.interop.keys_flux import flux_rules, read_flux, write_flux
from lgm.interop.keys_sd3 import read_sd3, sd3_rules, with_positions_of, write_sd3
from lgm.interop.keys_unet import unet_rules
from lgm.interop.scaled import descaled
from lgm.interop.weights import Weights, load, open_weights, save
from lgm.models import Model, Params, build
from lgm.parsing import near_miss


@dataclasses.dataclass(frozen=True)
class Component:
    """One class of diffusers or transformers, or of ours in a folder like theirs.

    `prepare` renames what some versions of the library name otherwise; `refine` is for a configuration that the weights
    must complete.
    """

    library: str
    read: Callable[[Mapping[str, Any]], Any]
    write: Callable[[Any], dict[str, Any]]
    rules: Callable[[Any], list]
    prepare: Callable[[Weights], Weights] = lambda weights: weights
    refine: Callable[[Any, Weights], Any] | None = None

    @property
    def stem(self) -> str:
        """The name of its weights without ending."""
        return "model" if self.library == "transformers" else "diffusion_pytorch_model"


def _clip(projected: bool) -> Component:
    def read(config):
        ours = text_configs.read_clip(config)
        return ours if projected else dataclasses.replace(ours, projection_dim=None)

    return Component("transformers", read, text_configs.write_clip, keys_text.clip_text, keys_text.clip_text_weights)


COMPONENTS: dict[str, Component] = {
    "AutoencoderKL": Component(
        "diffusers", configs.read_autoencoder, configs.write_autoencoder, autoencoder_rules, autoencoder_weights
    ),
    "BertModel": Component("transformers", text_configs.read_bert, text_configs.write_bert, keys_text.bert),
    "CLIPTextModel": _clip(projected=False),
    "CLIPTextModelWithProjection": _clip(projected=True),
    "DiTTransformer2DModel": Component("diffusers", read_dit, write_dit, dit_rules),
    "FluxTransformer2DModel": Component("diffusers", read_flux, write_flux, flux_rules),
    "SD3Transformer2DModel": Component("diffusers", read_sd3, write_sd3, sd3_rules, refine=with_positions_of),
    "SiTTransformer2DModel": Component("lgm", read_sit, write_sit, dit_rules),
    "T5EncoderModel": Component(
        "transformers", text_configs.read_t5, text_configs.write_t5, keys_text.t5, keys_text.t5_weights
    ),
    "UNet2DConditionModel": Component("diffusers", configs.read_unet, configs.write_unet, unet_rules),
}


def component(name: str) -> Component:
    """The component of a class name; ValueError, one line, for one that has no equal here."""
    if name not in COMPONENTS:
        raise ValueError(f"{name} has no equal here{near_miss(name, COMPONENTS)}")
    return COMPONENTS[name]


def read_config(folder: str | Path, name: str, **changes) -> Any:
    """Our configuration of the component `name` in a folder with config.json, with fields of ours changed."""
    path, kind = Path(folder) / "config.json", component(name)
    config = read_json(path)
    try:
        config = dataclasses.replace(kind.read(config), **changes)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is no configuration of a {name} ({error!r})") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    has_weights = kind.refine is not None and any(path.parent.glob("*.safetensors"))
    return kind.refine(config, open_weights(folder)) if has_weights else config


def load_component(
    folder: str | Path,
    name: str,
    *,
    held_in: Any = None,
    shard: Callable[[Model], Any] | None = None,
    weights: Weights | None = None,
    adapt: Callable[[Weights], Weights] = lambda weights: weights,
    **changes,
) -> tuple[Model, Params]:
    """(model, parameters) of a component's folder; `changes` are fields of our configuration to set.

    Parameters are cast to the dtype `held_in` (float32 by default) and built straight into the shardings that
    `shard(model)` gives; without it they are numpy arrays. `weights` take the place of the folder's, `adapt` changes
    them before, as by merging a LoRA. Raises ValueError, one line, for whatever does not fit.
    """
    config, kind = read_config(folder, name, **changes), component(name)
    if weights is not None and kind.refine is not None:
        config = kind.refine(config, weights)
    model = build(config)
    weights = adapt(kind.prepare(descaled(open_weights(folder)) if weights is None else weights))
    shardings = None if shard is None else shard(model)
    return model, load(kind.rules(model.config), model.abstract(), weights, dtype=held_in, shardings=shardings)


def names_in_library(name: str, config: Any) -> list[str]:
    """Every tensor that the library's checkpoint of a component may have."""
    rules = component(name).rules(config)
    extras = [rule.theirs for rule in rules if isinstance(rule, Extra) and rule.make is not None]
    return names_of(rules, build(config).abstract()) + extras


def save_component(folder: str | Path, name: str, config: Any, params: Params, dtype: Any = None) -> None:
    """Write config.json and the weights, cast to `dtype` where given, as the library's `save_pretrained` does."""
    kind = component(name)
    written = kind.write(config)
    tensors = iterate_theirs(kind.rules(config), params)
    if dtype is not None:
        wide = lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
        tensors = ((key, wide(np.asarray(tensor))) for key, tensor in tensors)
    save(tensors, folder, kind.stem)
    write_json(Path(folder) / "config.json", written)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ValueError, one line, where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is not there") from None
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is no JSON object; download it again")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` whole or not at all."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())
