"""Key map and configuration of Flux.2's autoencoder, in the layout of diffusers' AutoencoderKLFlux2: a KL autoencoder
whose latents a batch norm standardizes, for each channel and place in patches of 2 x 2; its original names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from lgm.interop.diffusers_configs import read_autoencoder, write_autoencoder
from lgm.interop.fields import CARRIED, Table, check, fixed
from lgm.interop.keymap import Extra, Rule
from lgm.interop.keys_autoencoder import autoencoder_rules
from lgm.interop.original_names import Layouts, Original, autoencoder, replaced, same
from lgm.interop.tables import AUTOENCODER
from lgm.interop.tensor_files import Weights
from lgm.models.autoencoder import PRESETS, AutoencoderConfig, side

_PATCH, _EPSILON = 2, 1e-4
_MEAN, _VARIANCE, _COUNT = "bn.running_mean", "bn.running_var", "bn.num_batches_tracked"
_OF_ONE_SCALE = ("force_upcast", "latents_mean", "latents_std", "scaling_factor", "shift_factor")
AUTOENCODER_FLUX2: Table = {key: kind for key, kind in AUTOENCODER.items() if key not in _OF_ONE_SCALE} | {
    "batch_norm_eps": fixed(_EPSILON),
    "batch_norm_momentum": CARRIED,  # of training
    "decoder_block_out_channels": fixed(None),  # of a decoder that is narrower than its encoder
    "patch_size": fixed((_PATCH, _PATCH)),
}
_DEFAULTS = {"block_out_channels": PRESETS["flux2"]["block_channels"], "layers_per_block": 2, "latent_channels": 32,
             "scaling_factor": 1.0}  # fmt: skip


def autoencoder_flux2_rules(config: AutoencoderConfig) -> list[Rule | Extra]:
    """AutoencoderKLFlux2, whose statistics are of the configuration here."""
    return [
        *autoencoder_rules(config),
        Extra(_MEAN, lambda: _statistics(config)[0].astype(np.float32)),
        Extra(_VARIANCE, lambda: _statistics(config)[1].astype(np.float32)),
        Extra(_COUNT, lambda: np.zeros((), np.int64)),  # of batches in training, which nothing reads
    ]


def original(config: AutoencoderConfig) -> Original:
    """The names of the original file."""
    inside = autoencoder(config)
    moved = {"quant_conv": "encoder.quant_conv", "post_quant_conv": "decoder.post_quant_conv"}
    return lambda name: inside(replaced(name, moved))


AUTOENCODER_FLUX2_LAYOUTS: Layouts = (("", original), ("vae.", original), ("first_stage_model.", original), ("", same))


def _statistics(config: AutoencoderConfig) -> np.ndarray:
    """Mean and variance, less the norm's epsilon, [2, channels x 4] in float64, that standardize as `config` does."""
    zeros, ones = (0.0,) * config.latent_channels, (1.0,) * config.latent_channels
    mean, std = np.asarray([config.latents_mean or zeros, config.latents_std or ones], np.float64)
    mean, std = mean + config.shift * std, std / config.scale
    if (patch := side(config)) not in (1, _PATCH):
        raise ValueError(f"diffusers' AutoencoderKLFlux2 standardizes patches of 2 x 2; one of {patch} x {patch} "
                         "cannot be exported")  # fmt: skip
    both = np.stack([mean, np.square(std) - _EPSILON])
    if (both[1] < 0).any():
        raise ValueError(f"diffusers' AutoencoderKLFlux2 has deviations of at least {_EPSILON**0.5}; latents_std="
                         f"{std.min():g} cannot be exported")
    return both if patch == _PATCH else np.repeat(both, _PATCH**2, 1)


def with_statistics(config: AutoencoderConfig, weights: Weights) -> AutoencoderConfig:
    """The configuration with the statistics that stand with the weights. Raises ValueError, one line, where there are
    none that could be."""
    found = []
    for name in (_MEAN, _VARIANCE):
        if name not in weights.entries:
            raise ValueError(f"{weights.path} lacks {name!r}; is it of another architecture?")
        values, count = np.asarray(weights.get(name), np.float64), config.latent_channels * _PATCH**2
        if values.shape != (count,) or not np.isfinite(values).all() or name == _VARIANCE and (values < 0).any():
            raise ValueError(f"{weights.path}: {name!r} should be {count} finite numbers, of variances none below 0")
        found.append(values)
    mean, variance = found
    std = np.sqrt(variance + _EPSILON)
    return dataclasses.replace(config, latents_mean=tuple(mean.tolist()), latents_std=tuple(std.tolist()))


def read_autoencoder_flux2(config: Mapping[str, Any]) -> AutoencoderConfig:
    """AutoencoderConfig of an AutoencoderKLFlux2, without its statistics."""
    check(config, AUTOENCODER_FLUX2)
    known = {key: value for key, value in config.items() if key in AUTOENCODER_FLUX2}
    return read_autoencoder(_DEFAULTS | known)


def write_autoencoder_flux2(config: AutoencoderConfig) -> dict[str, Any]:
    """config.json of an AutoencoderKLFlux2."""
    plain = dataclasses.replace(config, scale=1.0, shift=0.0, latents_mean=None, latents_std=None)
    written = {key: value for key, value in write_autoencoder(plain).items() if key not in _OF_ONE_SCALE}
    return written | {"_class_name": "AutoencoderKLFlux2", "batch_norm_eps": _EPSILON, "batch_norm_momentum": 0.1,
                      "patch_size": [_PATCH, _PATCH]}  # fmt: skip
