"""What is exported by itself, of a LoRA's run or an autoencoder's, in files that others read."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from lgm import files
from lgm.interop.components import component, save_component
from lgm.interop.lora_export import Form, save_lora
from lgm.interop.single_file import original_of
from lgm.models import Params
from lgm.models.autoencoder import AutoencoderConfig
from lgm.models.lora import Adapter, LoRAConfig


def export_lora(out: str, place: str, name: str, config: Any, adapter: Adapter, lora: LoRAConfig, form: Form,
                original_names: bool) -> None:
    """Write the LoRA of a network of class `name` at a place of its system. In the form of kohya's scripts modules are
    named as in the original layout or, without `original_names`, as by diffusers."""
    original = original_of(place, name, config) if original_names else None
    adapters = {place: (component(name).rules(config), jax.device_get(adapter))}
    files.write_folder(out, lambda folder: save_lora(folder, adapters, lora, form, original))


def export_autoencoder(folder: str, config: AutoencoderConfig, params: Params, latents: np.ndarray) -> str:
    """Write an AutoencoderKL whose scale is that of `latents`; returns one line on what was written."""
    config = dataclasses.replace(config, scale=float(1.0 / np.std(latents)), shift=0.0)
    files.write_folder(folder, lambda path: save_component(path, "AutoencoderKL", config, params))
    return f"wrote {folder}, an AutoencoderKL that diffusers and config.autoencoder read"
