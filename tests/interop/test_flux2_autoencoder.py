"""Flux.2's autoencoder against diffusers' AutoencoderKLFlux2 with the same random weights and statistics."""

import dataclasses
import json

import diffusers
import jax
import numpy as np
import pytest
import safetensors.numpy
import torch

from lgm.interop.components import component, load_component, save_component
from lgm.interop.keymap import names_of
from lgm.models import build
from lgm.models.autoencoder import PRESETS, AutoencoderConfig, standardize, unstandardize
from lgm.weights import load_autoencoder

NAME = "AutoencoderKLFlux2"
TOLERANCE = 1e-5  # of the norm of a float64 reference: float32 sums in another order
SMALL = dict(block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
             up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, norm_num_groups=4, latent_channels=3)
pipeline = diffusers.Flux2KleinPipeline


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """(diffusers' model, its folder)."""
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKLFlux2(**SMALL).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(torch.randn_like(p) * (p[0].numel() ** -0.5 if p.ndim > 1 else 0.3) + (p.ndim == 1))
        theirs.bn.running_mean.copy_(torch.randn(12))
        theirs.bn.running_var.copy_(torch.rand(12) * 3 + 0.1)
    folder = tmp_path_factory.mktemp("vae") / "theirs"
    theirs.save_pretrained(folder)
    return theirs, folder


def relative(ours, theirs):
    theirs = theirs.detach().permute(0, 2, 3, 1).numpy()
    assert ours.shape == theirs.shape
    return np.linalg.norm(np.asarray(ours, np.float64) - theirs) / np.linalg.norm(theirs)


def test_what_the_denoiser_sees_and_the_image_of_it_equal_the_pipelines(small):
    """Rows and columns differ in number, so that no transposition passes."""
    theirs, folder = small
    model, params = load_autoencoder(str(folder))
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (2, 12, 8, 3)).astype(np.float32)
    z = rng.normal(size=(2, 6, 4, 3)).astype(np.float32)
    seen = standardize(model.config, jax.jit(lambda p, x: model.apply(p, x, method="encode")[0])(params, x))
    drawn = jax.jit(lambda p, z: model.apply(p, unstandardize(model.config, z), method="decode"))(params, z)
    wide = diffusers.AutoencoderKLFlux2.from_pretrained(folder).double().eval()
    first = lambda a: torch.tensor(np.asarray(a, np.float64)).permute(0, 3, 1, 2)
    own = object.__new__(pipeline)
    object.__setattr__(own, "vae", wide)
    packed = pipeline._encode_vae_image(own, first(x), None)
    assert relative(seen, pipeline._unpatchify_latents(packed)) < TOLERANCE
    shape = (1, -1, 1, 1)
    std = torch.sqrt(wide.bn.running_var.view(shape) + wide.config.batch_norm_eps)
    packed = pipeline._patchify_latents(first(z)) * std + wide.bn.running_mean.view(shape)
    latents = pipeline._unpatchify_latents(packed)
    assert relative(drawn, wide.decode(latents).sample) < TOLERANCE


def test_a_folder_comes_back_bit_for_bit(small, tmp_path):
    theirs, folder = small
    model, params = load_component(folder, NAME)
    save_component(tmp_path / "ours", NAME, model.config, params)
    before, after = (safetensors.numpy.load_file(path / "diffusion_pytorch_model.safetensors")
                     for path in (folder, tmp_path / "ours"))  # fmt: skip
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(tensor, after[name], err_msg=name)
    assert diffusers.AutoencoderKLFlux2.from_pretrained(tmp_path / "ours").config.batch_norm_eps == 1e-4
    again, _ = load_component(tmp_path / "ours", NAME)
    assert again.config == model.config


@pytest.mark.parametrize("told", [
    dict(scale=0.5, shift=0.25),
    dict(latents_mean=(0.5, -1.0, 2.0), latents_std=(1.5, 0.5, 1.0)),
], ids=["one scale", "a channel"])  # fmt: skip
def test_any_standardization_is_exported_as_a_batch_norms(small, tmp_path, told):
    _, folder = small
    model, params = load_component(folder, NAME)
    own = dataclasses.replace(model.config, **{"latents_mean": None, "latents_std": None} | told)
    save_component(tmp_path / "ours", NAME, own, params)
    again, _ = load_component(tmp_path / "ours", NAME)
    z = np.random.default_rng(0).normal(size=(1, 4, 6, 3)).astype(np.float32)
    np.testing.assert_allclose(standardize(again.config, z), standardize(own, z), rtol=1e-5, atol=1e-6)


def test_the_preset_has_the_parameters_and_names_of_the_original():
    with torch.device("meta"):
        theirs = diffusers.AutoencoderKLFlux2()
    config = AutoencoderConfig(**PRESETS["flux2"])
    kind, model = component(NAME), build(config)
    assert model.count() == sum(p.numel() for p in theirs.parameters()) == 84_046_115
    extras = {name for name in theirs.state_dict() if name.startswith("bn.")}
    assert set(names_of(kind.rules(config), model.abstract())) == set(theirs.state_dict()) - extras
    assert kind.read(dict(theirs.config)) == config == kind.read({}) == kind.read(kind.write(config))


def test_statistics_that_are_not_there_or_could_not_be_are_one_line(small, tmp_path):
    _, folder = small
    tensors = safetensors.numpy.load_file(folder / "diffusion_pytorch_model.safetensors")

    def load(**changed):
        here = {k: v for k, v in {**tensors, **changed}.items() if v is not None}
        safetensors.numpy.save_file(here, tmp_path / "diffusion_pytorch_model.safetensors")
        (tmp_path / "config.json").write_text((folder / "config.json").read_text())
        return load_component(tmp_path, NAME)

    with pytest.raises(ValueError, match=r"lacks 'bn.running_mean'; is it of another architecture"):
        load(**{"bn.running_mean": None})
    for bad in (np.float32([1.0] * 11), np.float32([np.nan] * 12), np.float32([-1.0] * 12)):
        with pytest.raises(ValueError, match=r"'bn.running_var' should be 12 finite numbers, of variances none "):
            load(**{"bn.running_var": bad})
    model, params = load()
    narrow = dataclasses.replace(model.config, latents_std=(1e-3,) * 12)
    with pytest.raises(ValueError, match="deviations of at least 0.01; latents_std=0.001 cannot be exported"):
        save_component(tmp_path / "out", NAME, narrow, params)
    with pytest.raises(ValueError, match="one mean a channel; one for each place in a patch cannot be exported"):
        component("AutoencoderKL").write(model.config)
    with pytest.raises(ValueError, match="latents of 3 x 4 do not divide into patches of 2"):
        standardize(model.config, np.zeros((1, 3, 4, 3)))
    said = json.loads((folder / "config.json").read_text())
    with pytest.raises(ValueError, match=r"decoder_block_out_channels=\[4, 8\] has no equal here"):
        component(NAME).read(said | {"decoder_block_out_channels": [4, 8]})
