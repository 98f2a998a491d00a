"""Weights that come with the package, and loading of autoencoders from a folder: config.json and safetensors.

A folder has the configuration of `AutoencoderConfig` (or of another "family") as JSON under its own names and one
tensor a parameter, named by its path; a diffusers folder of an AutoencoderKL or its like is read through `lgm.interop`.
"""

import dataclasses
import hashlib
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from lgm.casting import cast
from lgm.files import local, place, read_json, write_atomically, write_json
from lgm.interop import keymap
from lgm.interop.components import AUTOENCODERS, load_component, read_config
from lgm.models import Model, Params, build, families, family_of
from lgm.models.autoencoder import AutoencoderConfig
from lgm.parsing import ConfigError, as_dict, parse
from lgm.untrusted import shown

SHIPPED = ("emoji64",)
WEIGHTS, CONFIG = "autoencoder.safetensors", "config.json"


def load_autoencoder(source: str) -> tuple[Model, Params]:
    """(model, float32 parameters) of a shipped autoencoder or of a folder. Raises ConfigError, one line.

    The folder is one that `lgm export` wrote, one of diffusers' AutoencoderKL, or one of a pipeline with its vae.
    """
    folder = locate(source)
    if is_diffusers(folder):
        return load_component(folder, _class_of(folder))
    model = autoencoder_of(source)
    path = folder / WEIGHTS
    try:
        flat = safetensors.numpy.load_file(path)
    except FileNotFoundError:
        raise ConfigError(f"{path} is not there; export an autoencoder's run with `lgm export`") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); the file is damaged") from None
    return model, unflatten(model, flat, str(path))


def autoencoder_of(source: str) -> Model:
    """The model of `load_autoencoder` alone, of which no weight is read."""
    folder = locate(source)
    if is_diffusers(folder):
        return build(read_config(folder, _class_of(folder)))
    return build(_own(folder))


def _class_of(folder: Path) -> str:
    """diffusers' class of the autoencoder in a folder."""
    name = read_json(folder / CONFIG)["_class_name"]
    if name not in AUTOENCODERS:
        raise ConfigError(f"{folder / CONFIG}: _class_name={shown(name)} is no autoencoder that is known here; there "
                          f"are {', '.join(AUTOENCODERS)}")
    return name


def _own(folder: Path) -> Any:
    """The configuration in a folder of our own kind."""
    path = folder / CONFIG
    values = read_json(path)
    kinds = {found.name: found.config for found in families("autoencoder")}
    name = values.pop("family", "autoencoder") if isinstance(values, dict) else "autoencoder"
    if name not in kinds:
        raise ConfigError(f"{path}: family={shown(name)} is no autoencoder's; there are {', '.join(kinds)}")
    return parse(kinds[name], values, f"{path}")


def save_autoencoder(folder: str | Path, config: AutoencoderConfig, params: Params, dtype=np.float16) -> None:
    """Write both files; the weights as `dtype`, the configuration last, so that a folder with one is whole.

    Raises ValueError, one line, for a tensor that is not finite in it."""
    folder = place(folder)
    leaves = keymap.flatten(params)
    flat = {name: np.ascontiguousarray(cast(name, np.asarray(leaf), dtype)) for name, leaf in leaves.items()}
    write_atomically(folder / WEIGHTS, safetensors.numpy.save(flat))
    name = family_of(config).name
    values = as_dict(config) | ({} if name == "autoencoder" else {"family": name})
    write_json(folder / CONFIG, values)


def fingerprint(source: str) -> str:
    """A short hash of an autoencoder's weights and config: which latents belong to it."""
    folder = locate(source)
    files = sorted(folder.glob("*.safetensors")) if is_diffusers(folder) else [folder / WEIGHTS]
    digest = hashlib.sha256()
    for file in [*files, folder / CONFIG]:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def unflatten(model: Model, flat: dict[str, np.ndarray], name: str) -> Params:
    """Named tensors as the model's tree; one missing, left over or of the wrong shape is named."""
    abstract = model.abstract()
    wanted = keymap.flatten(abstract)
    if missing := sorted(wanted.keys() - flat.keys()):
        raise ConfigError(f"{name} lacks {missing[0]} ({len(missing)} missing); it belongs to another architecture")
    if extra := sorted(flat.keys() - wanted.keys()):
        raise ConfigError(f"{name} holds {extra[0]}, which the model has not ({len(extra)} left over)")
    for key, leaf in wanted.items():
        if flat[key].shape != leaf.shape:
            raise ConfigError(f"{name}: {key} has shape {flat[key].shape}, the model's is {leaf.shape}")
    return keymap.unflatten(abstract, {key: flat[key].astype(np.float32) for key in wanted})


def locate(source: str) -> Path:
    """The folder of an autoencoder, shipped or not. Raises ConfigError where there is none."""
    folder = Path(str(resources.files("lgm.weights") / source)) if source in SHIPPED else local(source)
    if (folder / "model_index.json").is_file():
        folder = folder / "vae"
    if not (folder / CONFIG).is_file():
        known = ", ".join(SHIPPED)
        raise ConfigError(f"config.autoencoder={source!r} is not there; give {known} or an exported folder")
    return folder


def is_diffusers(folder: Path) -> bool:
    """Whether the folder of an autoencoder is one of diffusers'."""
    return "_class_name" in read_json(folder / CONFIG)


def standardized(config: AutoencoderConfig, latents: np.ndarray) -> AutoencoderConfig:
    """`config` with the latents' own statistics, a channel each: to the denoiser every channel has unit variance.

    One deviation for all channels would leave the fine ones, which draw eyes and mouths, drowned in noise until its
    last traces: a small denoiser then learns shapes and colours but no features.
    """
    flat = latents.reshape(-1, latents.shape[-1]).astype(np.float64)
    floats = lambda values: tuple(float(np.float32(v)) for v in values)
    return dataclasses.replace(config, latents_mean=floats(flat.mean(0)), latents_std=floats(flat.std(0)))
