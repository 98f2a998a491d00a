"""Qwen-Image's autoencoder against diffusers' AutoencoderKLQwenImage, for films of one frame."""

import dataclasses

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from lgm import config as schema
from lgm.interop.keymap import names_of, to_ours, to_theirs
from lgm.interop.keys_frame_autoencoder import (
    frame_autoencoder_rules,
    read_frame_autoencoder,
    write_frame_autoencoder,
)
from lgm.models import build
from lgm.models.frame_autoencoder import PRESETS, FrameAutoencoderConfig
from lgm.parsing import ConfigError
from lgm.weights import load_autoencoder, save_autoencoder

TOLERANCE = 1e-5  # of the norm of a float64 reference: float32 sums in another order
TINY = dict(base_channels=8, multipliers=(1, 2, 2), layers_per_block=1, temporal=(False, True), latent_channels=3)


def diffusers_model(config: FrameAutoencoderConfig) -> diffusers.AutoencoderKLQwenImage:
    stated = {} if config.latents_mean is None else dict(latents_mean=config.latents_mean,
                                                         latents_std=config.latents_std)  # fmt: skip
    return diffusers.AutoencoderKLQwenImage(
        base_dim=config.base_channels, z_dim=config.latent_channels, dim_mult=list(config.multipliers),
        num_res_blocks=config.layers_per_block, temperal_downsample=list(config.temporal),
        input_channels=config.channels, **stated,
    )  # fmt: skip


@pytest.fixture(scope="module")
def both():
    """(diffusers' in float64, ours, our parameters, the key map)."""
    config = FrameAutoencoderConfig(**TINY)
    theirs, model, rules = diffusers_model(config), build(config), frame_autoencoder_rules(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            scale = 0.2 if name.endswith(("gamma", "bias")) else p[0].numel() ** -0.5
            p.copy_(torch.randn(p.shape, generator=generator) * scale + name.endswith("gamma"))
    state = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    params = to_ours(rules, model.abstract(), state.__getitem__, state)
    back = to_theirs(rules, params)
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)
    return theirs.double().eval(), model, params, rules


def assert_close(ours, theirs, name, floor=0.0):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, name
    assert np.linalg.norm(ours - theirs) <= TOLERANCE * np.linalg.norm(theirs) + floor, name


def film(x_BHWC) -> torch.Tensor:
    return torch.tensor(np.asarray(x_BHWC, np.float64)).permute(0, 3, 1, 2)[:, :, None]


def picture(x: torch.Tensor) -> np.ndarray:
    return x[:, :, 0].permute(0, 2, 3, 1).detach().numpy()


def test_moments_and_images_equal_diffusers(both):
    theirs, model, params, _ = both
    rng = np.random.default_rng(0)
    x, z = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 8, 12, 3), (2, 2, 3, 3)))
    mean, logvar = jax.jit(lambda p, x: model.apply(p, x, method="encode"))(params, x)
    posterior = theirs.encode(film(x)).latent_dist
    assert_close(mean, picture(posterior.mean), "mean")
    assert_close(logvar, picture(posterior.logvar), "log variance")
    image = jax.jit(lambda p, z: model.apply(p, z, method="decode"))(params, z)
    assert_close(np.clip(image, -1, 1), picture(theirs.decode(film(z)).sample), "image")
    assert np.abs(image).min() < 0.5  # not all of it is clipped


@pytest.mark.slow
def test_gradients_equal_diffusers_and_of_what_joins_frames_are_zero(both):
    theirs, model, params, rules = both
    rng = np.random.default_rng(1)
    x, weight = (rng.normal(size=shape).astype(np.float32) for shape in ((1, 8, 8, 3), (1, 8, 8, 3)))

    def scalar(params, x):
        mean, _ = model.apply(params, x, method="encode")
        return jnp.sum(model.apply(params, 0.1 * mean, method="decode") * weight)

    in_params, in_x = jax.jit(jax.grad(scalar, (0, 1)))(params, x)
    their_x = film(x).requires_grad_()
    theirs.zero_grad()
    z = 0.1 * theirs.encode(their_x).latent_dist.mean
    theirs.clear_cache()
    y = theirs.decoder(theirs.post_quant_conv(z), feat_cache=theirs._feat_map, feat_idx=[0])  # as decode, not clipped
    (y * film(weight)).sum().backward()
    assert_close(in_x, picture(their_x.grad), "gradient of x")
    mine = to_theirs(rules, in_params)
    gradients = {name: np.zeros(p.shape) if p.grad is None else p.grad.numpy()
                 for name, p in theirs.named_parameters()}  # fmt: skip
    whole = np.sqrt(sum(np.square(gradient).sum() for gradient in gradients.values()))
    for name, gradient in gradients.items():
        assert_close(mine[name], gradient, name, 1e-6 * whole)
        if "time_conv" in name:
            assert not mine[name].any()


def test_the_preset_has_the_parameters_of_the_original():
    config = FrameAutoencoderConfig(**PRESETS["qwen_image"])
    with torch.device("meta"):
        theirs = diffusers_model(config)
    model = build(config)
    assert model.count() == sum(p.numel() for p in theirs.parameters())
    assert set(names_of(frame_autoencoder_rules(config), model.abstract())) == set(theirs.state_dict())
    assert read_frame_autoencoder(write_frame_autoencoder(config)) == config == read_frame_autoencoder({})
    assert read_frame_autoencoder(dict(theirs.config)) == config


@pytest.mark.parametrize(("options", "line"), [
    (dict(temporal=(True,)), r"temporal=\(True,\) must have one value fewer than multipliers=\(1, 2, 4, 4\)"),
    (dict(base_channels=3, multipliers=(1, 1), temporal=(True,)), "must be even, for the decoder halves them"),
    (dict(latents_mean=(0.0,) * 16), "latents_mean and latents_std go together"),
])  # fmt: skip
def test_impossible_configurations_are_one_line(options, line):
    with pytest.raises(ValueError, match=line):
        FrameAutoencoderConfig(**options)
    with pytest.raises(ValueError, match="has no scale and shift; scale=2.0 and shift=0.0 cannot be exported"):
        write_frame_autoencoder(dataclasses.replace(FrameAutoencoderConfig(), scale=2.0))
    with pytest.raises(ValueError, match=r"attn_scales=\[0.5\] has no equal here"):
        read_frame_autoencoder({"attn_scales": [0.5]})


def test_it_is_a_configs_autoencoder_as_diffusers_folder_and_as_our_own(both, tmp_path):
    theirs, model, params, _ = both
    stated = dataclasses.replace(model.config, latents_mean=(0.5, -1.0, 0.0), latents_std=(1.0, 2.0, 3.0))
    diffusers_model(stated).save_pretrained(tmp_path / "theirs")
    assert load_autoencoder(str(tmp_path / "theirs"))[0].config == stated
    save_autoencoder(tmp_path / "ours", model.config, params, np.float32)
    again, loaded = load_autoencoder(str(tmp_path / "ours"))
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    path = tmp_path / "theirs" / "config.json"
    path.write_text(path.read_text().replace("AutoencoderKLQwenImage", "AutoencoderDC"))
    with pytest.raises(ConfigError, match="_class_name='AutoencoderDC' is no autoencoder that is known here"):
        load_autoencoder(str(tmp_path / "theirs"))
    path = tmp_path / "ours" / "config.json"
    path.write_text(path.read_text().replace("frame_autoencoder", "unet"))
    with pytest.raises(ConfigError, match="family='unet' is no autoencoder's; there are autoencoder, frame_autoenc"):
        load_autoencoder(str(tmp_path / "ours"))
    with pytest.raises(ConfigError, match="family='frame_autoencoder' cannot be trained here; choose autoencoder"):
        schema.from_dict(dict(name="x", batch_size=1, total_images=1, model=dict(family="frame_autoencoder", **TINY)))
