"""The optimizers: Muon's updates of hidden matrices are orthogonal, and all else is AdamW's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lgm import config as schema
from lgm.models import build
from lgm.parallel import make_layout
from lgm.train import in_place
from lgm.train.muon import RMS, Matrix, hidden_matrices
from lgm.train.optimizer import build_optimizer, decaying, learning_rate
from lgm.train.placing import state_shardings
from lgm.train.state import init_state

MMDIT = dict(family="mmdit", channels=4, width=32, depth=3, heads=2, text_dim=16, pooled_dim=16)
UNET = dict(family="unet", channels=4, block_channels=(32, 64), layers_per_block=1, transformer_depth=(0, 1),
            heads=(2, 2), text_dim=16)


def parsed(model, **optimizer):
    values = dict(name="o", batch_size=4, total_images=400, model=model, optimizer=dict(lr=1e-2, **optimizer))
    return schema.from_dict(values)


def flat(tree, is_leaf=None):
    pairs = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in pairs}


def numbers(model):
    """name -> how Muon reads it, or None, of a system that trains `model` alone."""
    params = {"denoiser": build(parsed(model).model).abstract()}
    whole = lambda node: node is None or isinstance(node, Matrix)
    return flat(hidden_matrices(params), is_leaf=whole)


def test_muon_takes_hidden_matrices_and_leaves_the_border_norms_and_biases():
    table = numbers(MMDIT)
    muon = {name for name, value in table.items() if value is not None}
    assert all(name.endswith("/kernel") for name in muon)
    assert {"denoiser/blocks/image/joint/qkv/kernel", "denoiser/last/text/joint/qkv/kernel",
            "denoiser/time/fc1/kernel"} <= muon
    assert not {f"denoiser/{name}/kernel" for name in ("patches", "text", "modulation", "out")} & muon
    assert table["denoiser/blocks/image/mlp/fc1/kernel"] == Matrix(1, 1)  # stacked blocks
    unet = numbers(UNET)
    assert unet["denoiser/middle/residual/conv1/kernel"] == Matrix(0, 3)  # its window is of the inputs
    assert unet["denoiser/shifts/kernel"] == Matrix(0, 1) and unet["denoiser/conv_in/kernel"] is None


@pytest.mark.slow
def test_a_convolutions_update_is_as_large_beside_its_first_weights_as_a_matrixs():
    config = parsed(UNET, name="muon", clip_norm=0.0)
    params = {"denoiser": build(config.model).init(jax.random.key(0))}
    optimizer = build_optimizer(config)
    gradients = jax.tree.map(lambda p: jax.random.normal(jax.random.key(1), p.shape), params)
    updates, weights = flat(jax.jit(optimizer.update)(gradients, optimizer.init(params), params)[0]), flat(params)
    rms = lambda a: float(jnp.sqrt(jnp.mean(jnp.square(a))))
    share = lambda name: rms(updates[name]) / rms(weights[name])
    convolution = share("denoiser/down/0/resample/kernel")  # 3 x 3 of 32 channels
    matrix = share("denoiser/time/fc1/kernel")  # of 32 features
    # both RMS sqrt(inputs), of weights drawn as 1 / sqrt(inputs); small singular values of a square matrix get less
    np.testing.assert_allclose(convolution / matrix, 1.0, atol=0.25)


def test_muons_updates_are_orthogonal_of_adamws_size_and_the_rest_is_adamw():
    config = parsed(MMDIT, name="muon", b2=0.99, clip_norm=0.0)
    params = {"denoiser": build(config.model).init(jax.random.key(0))}
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    gradients = structure.unflatten([jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)])
    optimizer = build_optimizer(config)
    updates = flat(jax.jit(optimizer.update)(gradients, optimizer.init(params), params)[0])
    o = config.optimizer
    adamw = optax.adamw(learning_rate(config), o.b1, o.b2, weight_decay=0.0, nesterov=True)
    plain = flat(jax.jit(adamw.update)(gradients, adamw.init(params), params)[0])
    for name, matrices in numbers(MMDIT).items():
        if matrices is None:
            np.testing.assert_allclose(updates[name], plain[name], rtol=1e-6, err_msg=name)
            continue
        for update, gradient in zip(*(x.reshape(-1, *x.shape[-2:]) for x in (updates[name], flat(gradients)[name])),
                                    strict=True):
            u, _, vt = np.linalg.svd(np.asarray(gradient, np.float64), full_matrices=False)
            scaled = -np.asarray(update, np.float64) / (1e-2 * RMS * max(gradient.shape) ** 0.5)
            along = np.einsum("ia,ij,aj->a", u, scaled, vt)  # the singular values, if the vectors are the gradient's
            # five Newton-Schulz steps bring them near 1, not to it (Jordan 2024: about 0.7 to 1.2); the directions of
            # a random square matrix's smallest ones get less
            assert 0.6 < np.median(along) < 1.3 and along.max() < 1.3 and along.min() > 0.0
            off = scaled - (u * along) @ vt
            assert np.linalg.norm(off) < 1e-2 * np.linalg.norm(scaled)


@pytest.mark.parametrize("nesterov", [False, True])
def test_adamw_is_optaxs_with_the_same_state_and_holds_still_where_a_step_is_not_finite(nesterov):
    params = {"a": {"kernel": jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)}, "b": {"bias": jnp.ones(3)}}
    words = (lambda step: 0.1 / (1 + step), 0.9, 0.99, 1e-8)
    theirs = optax.adamw(*words, weight_decay=0.1, mask=decaying, nesterov=nesterov)
    ours = in_place.adamw(*words, 0.1, decaying, nesterov)
    state, other = ours.init(params), theirs.init(params)
    for i in range(3):
        gradients = jax.tree.map(lambda p, i=i: jnp.sin(3 * p + i), params)
        mine, state = ours.update(gradients, state, params)
        wanted, other = theirs.update(gradients, other, params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), (mine, state), (wanted, other))
    assert jax.tree.structure(state) == jax.tree.structure(other)
    _, kept = ours.update(jax.tree.map(lambda p: p * jnp.nan, params), state, params, finite=jnp.bool_(False))
    jax.tree.map(np.testing.assert_array_equal, kept, state)


def test_muon_learns_a_linear_map_sooner_than_it_forgets():
    config = parsed(MMDIT, name="muon", warmup_images=0, schedule="constant")
    optimizer = build_optimizer(config)
    target = jax.random.normal(jax.random.key(0), (32, 32)) / 32**0.5
    params = {"denoiser": {"time": {"fc1": {"kernel": jnp.zeros((32, 32))}}}}
    loss = lambda p: jnp.mean(jnp.square(p["denoiser"]["time"]["fc1"]["kernel"] - target))

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    start = loss(params)
    for _ in range(200):
        params, state = step(params, state)
    assert loss(params) < 0.05 * start


def test_muons_momentum_lies_where_its_parameter_does():
    config = parsed(MMDIT, name="muon")
    model, optimizer = build(config.model), build_optimizer(config)
    state = jax.eval_shape(lambda: init_state({"denoiser": model.init(jax.random.key(0))}, optimizer))
    layout = make_layout(dict(data=1), devices=jax.devices()[:1])
    places = state_shardings(layout, state, {"denoiser": model.logical_axes()}, config)
    assert jax.tree.structure(places.opt_state) == jax.tree.structure(state.opt_state)
    name = "denoiser/blocks/image/joint/qkv/kernel"
    parameter = flat(places.params)[name]
    momenta = [place for key, place in flat(places.opt_state).items() if key.endswith(name)]
    assert momenta and all(place == parameter for place in momenta)
