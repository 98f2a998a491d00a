"""The KL autoencoder against diffusers' with the same random weights."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from lgm.interop.keymap import names_of, to_ours, to_theirs
from lgm.interop.keys_autoencoder import autoencoder_rules
from lgm.models import build
from lgm.models.autoencoder import PRESETS, AutoencoderConfig, standardize, unstandardize

# Norm of the difference over norm of the reference, for each output and for the gradient of all parameters. The
# reference computes in float64, so what is left is our float32 rounding, some 1e-7 an operation over dozens of layers.
# One parameter's gradient may be a small difference of large terms, which loses digits: it has room for that.
TOLERANCE = 1e-5
ONE_PARAMETER = 1e-3


def diffusers_model(config: AutoencoderConfig) -> diffusers.AutoencoderKL:
    levels = len(config.block_channels)
    return diffusers.AutoencoderKL(
        in_channels=config.channels,
        out_channels=config.channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.block_channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
        use_quant_conv=config.use_quant_conv,
        use_post_quant_conv=config.use_post_quant_conv,
        mid_block_add_attention=config.mid_attention,
    )


def randomized(module: torch.nn.Module) -> torch.nn.Module:
    """Float64, every parameter random, and large enough to show in the output."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn_like(p) * (p[0].numel() ** -0.5 if p.ndim > 1 else 0.3) + (p.ndim == 1))
    return module.double()


def params_of(module: torch.nn.Module, rules, model):
    state = {name: tensor.float().numpy() for name, tensor in module.state_dict().items()}
    return to_ours(rules, model.abstract(), state.__getitem__, state)


def assert_close(ours, theirs: torch.Tensor, name: str, tolerance: float = TOLERANCE):
    ours, theirs = np.asarray(ours, np.float64), theirs.detach().numpy()
    assert ours.shape == theirs.shape, name
    assert np.linalg.norm(ours - theirs) <= tolerance * np.linalg.norm(theirs), name


def assert_gradients_close(ours: dict[str, np.ndarray], module: torch.nn.Module):
    theirs = {name: parameter.grad for name, parameter in module.named_parameters()}
    assert set(ours) == set(theirs)
    flat = lambda tree: np.concatenate([np.asarray(tree[name], np.float64).ravel() for name in theirs])
    assert_close(flat(ours), torch.tensor(flat(theirs)), "the whole gradient")
    for name, gradient in theirs.items():
        if not name.endswith("to_k.bias"):  # softmax cancels it: the true gradient is zero
            assert_close(ours[name], gradient, name, ONE_PARAMETER)


def channels_first(x: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.asarray(x, np.float64)).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    "options",
    [
        dict(block_channels=(8, 16, 16), use_quant_conv=True, use_post_quant_conv=True),
        dict(block_channels=(8,), latent_channels=5, mid_attention=False),
    ],
    ids=["with all", "without"],
)
def test_forward_and_gradients_equal_diffusers(options):
    config = AutoencoderConfig(**(dict(layers_per_block=1, norm_groups=4) | options))
    theirs, model, rules = randomized(diffusers_model(config)), build(config), autoencoder_rules(config)
    params = params_of(theirs, rules, model)
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (2, 12, 8, 3)).astype(np.float32)
    z = rng.normal(size=(2, 12 // config.factor, 8 // config.factor, config.latent_channels)).astype(np.float32)
    weight = rng.normal(size=x.shape).astype(np.float32)

    @jax.jit
    def ours(params, x, z):
        def scalar(params, x, z):
            mean, logvar = model.apply(params, x, method="encode")
            image = model.apply(params, z, method="decode")
            return jnp.sum(mean * logvar) + jnp.sum(image * weight), (mean, logvar, image)

        return jax.grad(scalar, argnums=(0, 1, 2), has_aux=True)(params, x, z)

    gradients, (mean, logvar, image) = ours(params, x, z)

    their_x, their_z = channels_first(x).requires_grad_(), channels_first(z).requires_grad_()
    posterior, their_image = theirs.encode(their_x).latent_dist, theirs.decode(their_z).sample
    value = (posterior.mean * posterior.logvar).sum() + (their_image * channels_first(weight)).sum()
    value.backward()

    last = lambda tensor: tensor.permute(0, 2, 3, 1)
    assert_close(mean, last(posterior.mean), "mean")
    assert_close(logvar, last(posterior.logvar), "logvar")
    assert_close(image, last(their_image), "image")
    assert_close(gradients[1], last(their_x.grad), "gradient of x")
    assert_close(gradients[2], last(their_z.grad), "gradient of z")
    assert_gradients_close(to_theirs(rules, gradients[0]), theirs)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_parameters_of_the_originals(name):
    config = AutoencoderConfig(**PRESETS[name])
    with torch.device("meta"):
        theirs = diffusers_model(config)
    model = build(config)
    assert model.count() == sum(p.numel() for p in theirs.parameters())
    assert set(names_of(autoencoder_rules(config), model.abstract())) == set(theirs.state_dict())


def test_standardized_latents_have_the_statistics_they_are_given():
    mean, std = (1.0, -2.0, 0.5, 0.0), (2.0, 0.1, 1.0, 3.0)
    config = AutoencoderConfig(latents_mean=mean, latents_std=std)
    z = np.random.default_rng(0).normal(mean, std, (4, 32, 32, 4)).astype(np.float32)
    standardized = standardize(config, z)
    np.testing.assert_allclose(standardized.mean((0, 1, 2)), 0, atol=0.06)  # four standard errors of 4096 values
    np.testing.assert_allclose(standardized.std((0, 1, 2)), 1, atol=0.05)
    # a round trip costs two roundings of values below 10
    np.testing.assert_allclose(unstandardize(config, standardized), z, atol=2e-6)
    flux = AutoencoderConfig(**PRESETS["flux"])
    np.testing.assert_allclose(standardize(flux, jnp.array(1.1159)), 0.3611, rtol=1e-6)


def test_with_a_linear_skip_a_new_autoencoder_is_linear():
    config = AutoencoderConfig(
        block_channels=(8,), layers_per_block=1, patch_size=2, linear_skip=True, norm_groups=4, mid_attention=False
    )
    model = build(config)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: 0.3 * rng.normal(size=leaf.shape).astype(np.float32), model.abstract())
    for name in ("linear_in", "linear_out"):
        params[name]["bias"] = np.zeros_like(params[name]["bias"])
    starts = jax.jit(lambda key: [model.init(key)[side]["conv_out"] for side in ("encoder", "decoder")])
    params["encoder"]["conv_out"], params["decoder"]["conv_out"] = starts(jax.random.key(0))
    x, y = rng.normal(size=(2, 1, 4, 4, 3)).astype(np.float32)
    reconstruct = lambda x: model.apply(params, x, method="reconstruct")[0]
    together, *parts = jax.jit(jax.vmap(reconstruct))(np.stack([2.0 * x - y, x, y]))
    apart = 2.0 * parts[0] - parts[1]
    np.testing.assert_allclose(together, apart, atol=1e-5)  # a few float32 roundings of values below 10


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: AutoencoderConfig(block_channels=(32, 48)), "norm_groups=32 does not divide"),
        (lambda: AutoencoderConfig(latents_mean=(0.0,) * 4), "go together"),
        (lambda: AutoencoderConfig(latents_mean=(0.0,), latents_std=(1.0,)), "latent_channels=4 are needed"),
    ],
)
def test_impossible_configurations_are_one_line(make, line):
    with pytest.raises(ValueError, match=line) as error:
        make()
    assert "\n" not in str(error.value)


def test_an_image_of_odd_size_is_refused_by_name():
    model = build(AutoencoderConfig(block_channels=(8, 8), norm_groups=4))
    encode = lambda params: model.apply(params, jnp.zeros((1, 9, 8, 3)), method="encode")
    with pytest.raises(ValueError, match="9 x 8 cannot be encoded; use multiples of 2"):
        jax.eval_shape(encode, model.abstract())
