"""Exported autoencoders and folders of our own kind: nothing is written that is not finite or does not fit."""

import dataclasses
import importlib.util
from types import SimpleNamespace

import diffusers
import jax
import ml_dtypes
import numpy as np
import pytest

from lgm import config as schema
from lgm.exporting import _standard, export_autoencoder, export_run
from lgm.interop.components import save_component
from lgm.models import build
from lgm.models.autoencoder import AutoencoderConfig
from lgm.parsing import ConfigError
from lgm.system import build_system
from lgm.systems import SYSTEMS
from lgm.weights import load_autoencoder, save_autoencoder

SMALL = AutoencoderConfig(latent_channels=2, block_channels=(4, 8), layers_per_block=1, norm_groups=2)
TENSOR = "tensor 'decoder/conv_out/kernel'"


def params_with(value):
    """An autoencoder's parameters, one of which holds `value`."""
    model = build(SMALL)
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float32), model.abstract())
    params["decoder"]["conv_out"]["kernel"].flat[3] = value
    return params


@pytest.mark.parametrize(("dtype", "value", "line"), [
    (np.float16, 7e4, "holds 70000, which float16 cannot; bfloat16 or float32 would do"),
    (np.float16, -np.inf, "holds values that are not finite"),
    (np.float32, np.nan, "holds values that are not finite"),
])  # fmt: skip
def test_an_autoencoder_that_does_not_fit_is_named_and_not_written(tmp_path, dtype, value, line):
    with pytest.raises(ValueError, match=f"{TENSOR} {line}"):
        save_autoencoder(tmp_path / "out", SMALL, params_with(value), dtype)
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_the_largest_numbers_of_float16_are_written_and_read(tmp_path):
    save_autoencoder(tmp_path / "out", SMALL, params_with(65504.0), np.float16)
    _, params = load_autoencoder(str(tmp_path / "out"))
    assert params["decoder"]["conv_out"]["kernel"].max() == 65504.0


def test_an_autoencoder_as_diffusers_has_it_is_finite(tmp_path):
    latents = np.random.default_rng(0).standard_normal((4, 2, 2, 2)).astype(np.float32)
    with pytest.raises(ValueError, match="tensor 'decoder.conv_out.weight' holds values that are not finite"):
        export_autoencoder(str(tmp_path / "out"), SMALL, params_with(np.inf), latents)
    assert not (tmp_path / "out").exists()


def test_latents_standardized_a_channel_are_sdxls_alone(tmp_path):
    """Whose pipeline undoes it by the numbers that are written; the others of diffusers do not look."""
    own = dataclasses.replace(SMALL, latents_mean=(0.1, -0.2), latents_std=(1.5, 0.5))
    system = SimpleNamespace(autoencoder=SimpleNamespace(config=own), config=SimpleNamespace(autoencoder="vae"))
    assert _standard(system, SYSTEMS["StableDiffusionXLPipeline"]) is own
    save_component(tmp_path / "vae", "AutoencoderKL", own, params_with(0.5))
    theirs = diffusers.AutoencoderKL.from_pretrained(tmp_path / "vae").config
    np.testing.assert_array_equal([theirs.latents_mean, theirs.latents_std], [[0.1, -0.2], [1.5, 0.5]])
    with pytest.raises(ConfigError, match="diffusers' StableDiffusionPipeline knows one scale and shift"):
        _standard(system, SYSTEMS["StableDiffusionPipeline"])


@pytest.fixture(scope="module")
def run(tiny_config):
    """(system, the weights of a run, frozen parameters), of zeros."""
    spec = importlib.util.spec_from_file_location("tiny", tiny_config)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    system, frozen = build_system(schema.from_dict(module.get_config().to_dict()))
    shapes = jax.eval_shape(system.init, jax.random.key(0))
    return system, jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes), frozen


@pytest.mark.parametrize("part", ["denoiser", "text", "autoencoder"])
def test_a_folder_of_our_own_is_finite_or_is_not_there(run, tmp_path, part):
    system, trained, frozen = run
    poisoned = jax.tree.map(np.array, {"trained": trained, "frozen": frozen})
    leaves, _ = jax.tree_util.tree_flatten_with_path(
        poisoned["frozen" if part == "autoencoder" else "trained"][part])  # fmt: skip
    leaves[-1][1].flat[0] = np.nan
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="tensor '.*' holds values that are not finite; it is not written"):
        export_run(system, poisoned["trained"], poisoned["frozen"], str(out))
    assert not out.exists() and not list(tmp_path.iterdir())


def test_a_run_in_bfloat16_keeps_its_values(run, tmp_path):
    """What trains in 16 bits is written in float32, in which all of them lie."""
    system, trained, frozen = run
    largest = float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)
    narrow = jax.tree.map(lambda leaf: np.full(leaf.shape, largest, ml_dtypes.bfloat16), trained)
    export_run(system, narrow, frozen, str(tmp_path / "out"))
    from safetensors.numpy import load_file

    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert all(t.dtype == np.float32 and (t == np.float32(largest)).all() for t in tensors.values())
