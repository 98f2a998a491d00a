"""The CLIP text encoder against transformers' with the same random weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from lgm.interop.keymap import to_ours, to_theirs
from lgm.interop.keys_text import clip_text, clip_text_weights
from lgm.interop.tensor_files import load, open_weights
from lgm.models import build
from lgm.models.clip_text import PRESETS, CLIPTextConfig

# relative to the largest reference value; float32 sums in another order differ by a few units in the last place a layer
TOLERANCE = 1e-5

EOT = 98
SHAPE = dict(vocab_size=99, width=32, depth=3, heads=4, mlp_width=48, max_length=12)


def reference(config: CLIPTextConfig):
    """transformers' model of `config`, with weights large enough that every part shows in the output."""
    torch.manual_seed(0)
    theirs = transformers.CLIPTextConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.width,
        intermediate_size=config.mlp_width or 4 * config.width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        max_position_embeddings=config.max_length,
        hidden_act=config.activation,
        projection_dim=config.projection_dim or config.width,
        bos_token_id=0,
        eos_token_id=2 if config.pool == "largest" else config.pool,
    )
    cls = transformers.CLIPTextModelWithProjection if config.projection_dim else transformers.CLIPTextModel
    return theirs, cls


def randomized(model):
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * (0.3 if p.ndim > 1 else 0.5) + (p.ndim == 1))
    return model.eval()


def tokens_and_mask():
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, EOT, (3, 10)).astype(np.int32)
    mask = np.ones((3, 10), bool)
    for row, length in enumerate((10, 6, 2)):
        tokens[row, length - 1 :] = EOT
        mask[row, length:] = False
    return tokens, mask


def close(ours, theirs):
    theirs = theirs.detach().numpy()
    assert ours.shape == theirs.shape
    assert np.abs(np.asarray(ours) - theirs).max() <= TOLERANCE * np.abs(theirs).max()


@pytest.mark.parametrize(
    "options",
    [
        dict(pool=EOT),
        dict(pool="largest", hidden="penultimate", activation="gelu", projection_dim=16, unroll=3, remat=True),
    ],
    ids=["clip_l", "bigg"],
)
def test_equal_to_transformers(tmp_path, options):
    config = CLIPTextConfig(**SHAPE, **options)
    theirs_config, cls = reference(config)
    theirs = randomized(cls(theirs_config))
    theirs.save_pretrained(tmp_path)
    model = build(config)
    params = load(clip_text(config), model.abstract(), clip_text_weights(open_weights(tmp_path)))
    tokens, mask = tokens_and_mask()
    apply = jax.jit(model.apply)
    for our_mask in (None, mask):
        their_mask = None if our_mask is None else torch.from_numpy(mask)
        out = theirs(torch.from_numpy(tokens).long(), attention_mask=their_mask, output_hidden_states=True)
        hidden, pooled = apply(params, tokens, our_mask)
        close(hidden, out.last_hidden_state if config.hidden == "last" else out.hidden_states[-2])
        close(pooled, out.text_embeds if config.projection_dim else out.pooler_output)

    # gradients of a random projection of both outputs
    w_hidden, w_pooled = np.random.default_rng(1).standard_normal((2, 32)).astype(np.float32)
    w_pooled = w_pooled[: pooled.shape[-1]]
    loss = lambda p: sum((o @ w).sum() for o, w in zip(model.apply(p, tokens, mask), (w_hidden, w_pooled), strict=True))
    grads = to_theirs(clip_text(config), jax.jit(jax.grad(loss))(params))
    their_hidden = out.last_hidden_state if config.hidden == "last" else out.hidden_states[-2]
    their_pooled = out.text_embeds if config.projection_dim else out.pooler_output
    ((their_hidden @ torch.from_numpy(w_hidden)).sum() + (their_pooled @ torch.from_numpy(w_pooled)).sum()).backward()
    largest = max(float(p.grad.abs().max()) for p in theirs.parameters() if p.grad is not None)
    for name, p in theirs.named_parameters():
        ours = grads[name if name in grads else f"text_model.{name}"]
        expected = np.zeros(p.shape, np.float32) if p.grad is None else p.grad.numpy()
        assert np.abs(ours - expected).max() <= TOLERANCE * largest, name


COUNTS = {"clip_l": 123_060_480, "clip_l_sd3": 123_650_304, "open_clip_h": 340_387_840, "open_clip_bigg": 694_659_840}


@pytest.mark.parametrize("name", COUNTS)
def test_presets_have_as_many_parameters_as_transformers(name):
    config = CLIPTextConfig(**PRESETS[name])
    theirs_config, cls = reference(config)
    with torch.device("meta"):
        theirs = sum(p.numel() for p in cls(theirs_config).parameters())
    assert build(config).count() == theirs == COUNTS[name]


def test_weights_go_out_as_they_came_in():
    config = CLIPTextConfig(**SHAPE, projection_dim=16)
    model = build(config)
    params = jax.jit(model.init)(jax.random.key(0))
    tensors = to_theirs(clip_text(config), params)
    back = to_ours(clip_text(config), model.abstract(), tensors.__getitem__, tensors)
    jax.tree.map(np.testing.assert_array_equal, params, back)


def test_what_the_mask_leaves_out_changes_nothing():
    """For the jointly trained encoder: no dependence on padding, with and without the causal mask."""
    tokens, mask = tokens_and_mask()
    other = np.where(mask, tokens, 7)
    for causal in (True, False):
        model = build(CLIPTextConfig(**SHAPE, causal=causal))
        params = jax.jit(model.init)(jax.random.key(0))
        apply = jax.jit(model.apply)
        (hidden, pooled), (hidden2, pooled2) = apply(params, tokens, mask), apply(params, other, mask)
        np.testing.assert_array_equal(np.asarray(hidden)[mask], np.asarray(hidden2)[mask])
        np.testing.assert_array_equal(pooled, pooled2)
        np.testing.assert_array_equal(pooled, np.asarray(hidden)[np.arange(3), mask.sum(1) - 1])
        empty = apply(params, tokens, np.zeros_like(mask))
        assert all(np.isfinite(x).all() for x in empty)


def test_bfloat16_follows_float32():
    config = CLIPTextConfig(**SHAPE, pool=EOT)
    tokens, mask = tokens_and_mask()
    model = build(config)
    params = jax.jit(model.init)(jax.random.key(0))
    low = build(dataclasses.replace(config, dtype="bfloat16")).apply(params, tokens, mask)
    high = model.apply(params, tokens, mask)
    for a, b in zip(low, high, strict=True):
        assert a.dtype == jnp.bfloat16
        # 8 bits of mantissa through 3 residual layers: a few percent of the largest value
        assert float(jnp.abs(a - b).max()) < 0.05 * float(jnp.abs(b).max())


def test_impossible_requests_are_one_line():
    with pytest.raises(ValueError, match="heads=3 does not divide width=32"):
        CLIPTextConfig(width=32, heads=3)
    model = build(CLIPTextConfig(**SHAPE))
    with pytest.raises(ValueError, match="13 tokens are more than max_length=12"):
        jax.eval_shape(model.apply, model.abstract(), jax.ShapeDtypeStruct((1, 13), jnp.int32))


def test_the_mean_is_over_the_tokens_that_count():
    model = build(CLIPTextConfig(**SHAPE, pool="mean"))
    tokens, mask = tokens_and_mask()
    features, pooled = model.apply(model.init(jax.random.key(0)), tokens, mask)
    expected = [np.asarray(row)[m].mean(0) for row, m in zip(features, mask, strict=True)]
    np.testing.assert_allclose(pooled, expected, rtol=1e-5, atol=1e-6)
