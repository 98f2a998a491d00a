"""The T5 encoder against transformers' with the same random weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from lgm.interop.keymap import to_ours, to_theirs
from lgm.interop.keys_text import t5, t5_weights
from lgm.interop.tensor_files import load, open_weights
from lgm.models import build
from lgm.models.t5 import PRESETS, T5Config, relative_buckets

# of the largest value: float32 sums in another order. T5 does not scale its scores, so weights as large as those of the
# other tests would make the softmax so sharp that transformers itself is 1e-5 away from its float64 result.
TOLERANCE, WEIGHTS = 1e-5, 0.15
SHAPE = dict(vocab_size=99, width=32, depth=3, heads=4, head_width=12, mlp_width=48)


def reference(config: T5Config) -> transformers.T5Config:
    activation = {"gelu_tanh": "gelu", "relu": "relu"}[config.activation]
    return transformers.T5Config(
        vocab_size=config.vocab_size,
        d_model=config.width,
        d_kv=config.head_width,
        d_ff=config.mlp_width,
        num_layers=config.depth,
        num_heads=config.heads,
        relative_attention_num_buckets=config.buckets,
        relative_attention_max_distance=config.max_distance,
        feed_forward_proj=f"gated-{activation}" if config.gated else activation,
    )


def batch():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 99, (2, 40)).astype(np.int32)
    mask = np.arange(40) < np.array([[40], [17]])
    return tokens, mask


@pytest.mark.parametrize(
    "options",
    [
        dict(max_distance=20, unroll=3),
        dict(gated=False, activation="relu", buckets=8, remat=True),
    ],
    ids=["v1.1", "original"],
)
def test_equal_to_transformers(tmp_path, options):
    torch.manual_seed(0)
    config = T5Config(**SHAPE, **options)
    theirs = transformers.T5EncoderModel(reference(config)).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(torch.randn_like(p) * WEIGHTS + (p.ndim == 1))
    theirs.save_pretrained(tmp_path)
    model = build(config)
    params = load(t5(config), model.abstract(), t5_weights(open_weights(tmp_path)))
    tokens, mask = batch()
    for m in (None, mask):
        expected = theirs(torch.from_numpy(tokens).long(), None if m is None else torch.from_numpy(m))[0]
        expected = expected.detach().numpy()
        ours = np.asarray(jax.jit(model.apply)(params, tokens, m))
        assert np.abs(ours - expected).max() <= TOLERANCE * np.abs(expected).max()

    back = to_theirs(t5(config), params)
    names = {name for name in theirs.state_dict() if name != "encoder.embed_tokens.weight"}
    assert set(back) == names
    for name in names:
        np.testing.assert_array_equal(back[name], theirs.state_dict()[name].numpy())
    again = to_ours(t5(config), model.abstract(), back.__getitem__, back)
    jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parametrize("buckets, max_distance", [(32, 128), (8, 20), (64, 1000)])
def test_buckets_equal_those_of_transformers_at_every_distance(buckets, max_distance):
    offset = torch.arange(1200)[None, :] - torch.arange(1200)[:, None]
    attention = transformers.models.t5.modeling_t5.T5Attention
    expected = attention._relative_position_bucket(offset, True, buckets, max_distance)
    np.testing.assert_array_equal(relative_buckets(1200, buckets, max_distance), expected.numpy())


COUNTS = {"t5_v1_1_small": 35_332_800, "t5_v1_1_base": 109_628_544, "t5_v1_1_large": 341_231_104,
          "t5_v1_1_xl": 1_223_527_424, "t5_v1_1_xxl": 4_762_310_656}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
def test_presets_have_as_many_parameters_as_transformers(name):
    with torch.device("meta"):
        theirs = transformers.T5EncoderModel(reference(T5Config(**PRESETS[name])))
    assert build(T5Config(**PRESETS[name])).count() == sum(p.numel() for p in theirs.parameters()) == COUNTS[name]


def test_bfloat16_follows_float32():
    tokens, mask = batch()
    config = T5Config(**SHAPE)
    model, low = build(config), build(dataclasses.replace(config, dtype="bfloat16"))
    params = jax.jit(model.init)(jax.random.key(0))
    a, b = jax.jit(low.apply)(params, tokens, mask), jax.jit(model.apply)(params, tokens, mask)
    assert a.dtype == jnp.bfloat16
    # 8 bits of mantissa through 3 residual layers: a few percent of the largest value
    assert float(jnp.abs(a - b).max()) < 0.05 * float(jnp.abs(b).max())


def test_every_large_parameter_of_xxl_can_be_split():
    """No matrix of T5-XXL is without a logical axis to shard it by."""
    model = build(T5Config(**PRESETS["t5_v1_1_xxl"]))
    axes = jax.tree.leaves(model.logical_axes(), is_leaf=lambda a: isinstance(a, tuple))
    for leaf, names in zip(jax.tree.leaves(model.abstract()), axes, strict=True):
        assert leaf.size < 1e6 or {"embed", "fused"} & set(names)
