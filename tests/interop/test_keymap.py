"""Key maps: what goes in comes out again, bit for bit, and every misfit is named in one line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lgm.interop.keymap import (
    CONV_AS_LINEAR,
    Extra,
    Rule,
    conv,
    linear,
    names_of,
    norm,
    prefixed,
    rearrange,
    to_ours,
    to_theirs,
)

DEPTH, WIDTH = 4, 8

RULES = [
    *linear("blocks/qkv", tuple(f"h.{{layer}}.{n}" for n in "qkv")),
    *linear("blocks/joint", ("h.{layer}.a", "h.{layer}.b"), sizes=(1, 3)),
    *linear("late/mlp", "h.{layer}.mlp", layers=range(1, 4), bias=False),
    *conv("down/0/conv", "down.0.conv"),
    Rule("down/1/kernel", "down.1.weight", CONV_AS_LINEAR),
    *prefixed(linear("modulate", "linear", transform=rearrange("o i -> i o", order=(1, 0))), "out/", "norm_out."),
    Rule("heads", "heads", rearrange("(n h) i -> i n h", n=2)),
    *norm("norm", "ln"),
    Extra("position_ids", lambda: np.arange(4)),
    Extra("unused"),
]


def theirs():
    rng = np.random.default_rng(0)
    new = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    tensors = {}
    for i in range(DEPTH):
        for name, n in [("q", WIDTH), ("k", WIDTH), ("v", WIDTH), ("a", 2), ("b", 6)]:
            tensors |= {f"h.{i}.{name}.weight": new(n, 4), f"h.{i}.{name}.bias": new(n)}
        if i:
            tensors[f"h.{i}.mlp.weight"] = new(16, WIDTH)
    tensors |= {"down.0.conv.weight": new(6, 4, 3, 3), "down.0.conv.bias": new(6), "down.1.weight": new(6, 4, 1, 1)}
    tensors |= {"norm_out.linear.weight": new(10, 4), "norm_out.linear.bias": new(10), "heads": new(6, 5)}
    return tensors | {"ln.weight": new(5), "ln.bias": new(5), "position_ids": np.arange(4)}


def abstract():
    leaf = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    return {
        "blocks": {
            "qkv": {"kernel": leaf(DEPTH, 4, 3 * WIDTH), "bias": leaf(DEPTH, 3 * WIDTH)},
            "joint": {"kernel": leaf(DEPTH, 4, 8), "bias": leaf(DEPTH, 8)},
        },
        "late": {"mlp": {"kernel": leaf(3, WIDTH, 16)}},
        "down": {0: {"conv": {"kernel": leaf(3, 3, 4, 6), "bias": leaf(6)}}, 1: {"kernel": leaf(4, 6)}},
        "out": {"modulate": {"kernel": leaf(4, 10), "bias": leaf(10)}},
        "heads": leaf(5, 2, 3),
        "norm": {"scale": leaf(5), "bias": leaf(5)},
    }


def read(tensors, tree=None, rules=RULES):
    return to_ours(rules, abstract() if tree is None else tree, tensors.__getitem__, tensors)


def test_both_directions_are_exact_inverses():
    tensors = theirs()
    back = to_theirs(RULES, read(tensors))
    assert back.keys() == tensors.keys()
    for name, value in tensors.items():
        assert back[name].shape == value.shape and back[name].tobytes() == value.tobytes(), name


def test_parameters_have_the_meaning_that_the_rules_state():
    tensors, params = theirs(), read(theirs())
    x = np.random.default_rng(1).standard_normal((2, 4)).astype(np.float32)
    q, k, v = np.split(x @ params["blocks"]["qkv"]["kernel"][2] + params["blocks"]["qkv"]["bias"][2], 3, -1)
    for name, value in {"q": q, "k": k, "v": v}.items():
        torch_linear = x @ tensors[f"h.2.{name}.weight"].T + tensors[f"h.2.{name}.bias"]
        np.testing.assert_allclose(value, torch_linear, rtol=1e-6, atol=1e-6)
    a, b = np.split(x @ params["blocks"]["joint"]["kernel"][1], [2], -1)
    np.testing.assert_allclose(
        np.concatenate([a, b], -1),
        x @ np.concatenate([tensors["h.1.a.weight"], tensors["h.1.b.weight"]]).T,
        rtol=1e-6,
        atol=1e-6,
    )
    np.testing.assert_array_equal(params["late"]["mlp"]["kernel"][0], tensors["h.1.mlp.weight"].T)
    scale, shift = np.split(tensors["norm_out.linear.bias"], 2)
    np.testing.assert_array_equal(params["out"]["modulate"]["bias"], np.concatenate([shift, scale]))
    np.testing.assert_array_equal(
        params["down"][0]["conv"]["kernel"][2, 1], tensors["down.0.conv.weight"][:, :, 2, 1].T
    )


def test_names_are_those_of_the_checkpoint():
    assert set(names_of(RULES, abstract())) == set(theirs()) - {"position_ids"}


def test_tensors_are_cast_to_the_dtype_of_the_abstract_leaf():
    tree = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), abstract())
    params = read(theirs(), tree)
    assert params["norm"]["scale"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(params["norm"]["scale"], theirs()["ln.weight"].astype(jnp.bfloat16))


@pytest.mark.parametrize("split", ["layers", "rows", "columns"])
def test_a_sharding_reads_the_same_parameters(split):
    mesh = jax.make_mesh((jax.device_count(),), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    axis = {"layers": 0, "rows": -2, "columns": -1}[split]

    def sharded(leaf):
        spec = [None] * len(leaf.shape)
        if -len(leaf.shape) <= axis and leaf.shape[axis] % jax.device_count() == 0:
            spec[axis] = "x"
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec)))

    params = read(theirs(), jax.tree.map(sharded, abstract()))
    jax.tree.map(np.testing.assert_array_equal, params, read(theirs()))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))


def test_a_large_stack_goes_to_its_device_in_groups_of_layers(monkeypatch):
    monkeypatch.setattr("lgm.interop.keymap._STAGED", 3 * 4 * 3 * WIDTH * 4)  # three of the four layers of qkv
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    tree = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), abstract())
    jax.tree.map(np.testing.assert_array_equal, read(theirs(), tree), read(theirs()))


def without(name):
    return {k: v for k, v in theirs().items() if k != name}


@pytest.mark.parametrize(
    "tensors, message",
    [
        (without("h.1.k.weight"), "lacks 'h.1.k.weight'"),
        (theirs() | {"h.4.q.weight": np.zeros(1)}, "has 'h.4.q.weight', which this model has no place for"),
        (theirs() | {"ln.bias": np.zeros(6)}, r"'ln.bias' has shape \(6,\); norm/bias needs \(5,\)"),
        (theirs() | {"h.2.b.weight": np.zeros((4, 6))}, r"'h.2.b.weight' has shape \(4, 6\); .* needs \(6, 4\)"),
    ],
)
def test_a_misfit_is_one_line_that_names_the_tensor(tensors, message):
    with pytest.raises(ValueError, match=message) as error:
        read(tensors)
    assert "\n" not in str(error.value)


def test_a_map_that_does_not_fit_the_model_is_refused():
    with pytest.raises(ValueError, match="no rule for 'norm/bias'"):
        read(theirs(), rules=[r for r in RULES if getattr(r, "ours", "") != "norm/bias"])
    with pytest.raises(ValueError, match="names 'other', which the model does not have"):
        read(theirs(), rules=[*RULES, Rule("other", "other")])
    with pytest.raises(ValueError, match="two rules for 'heads'"):
        read(theirs(), rules=[*RULES, Rule("heads", "heads2")])
