"""The BERT encoder against transformers' with the same random weights."""

import jax
import numpy as np
import pytest
import torch
import transformers

from lgm.interop.keymap import to_theirs
from lgm.interop.keys_text import bert
from lgm.interop.tensor_files import load
from lgm.models import build
from lgm.models.bert import PRESETS, BERTConfig

TOLERANCE = 1e-5  # of the largest value: float32 sums in another order


def reference(config: BERTConfig) -> transformers.BertConfig:
    return transformers.BertConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        intermediate_size=config.mlp_width or 4 * config.width,
        max_position_embeddings=config.max_length,
        type_vocab_size=config.token_types,
    )


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(transformers' model, our configuration, our parameters)."""
    torch.manual_seed(0)
    config = BERTConfig(vocab_size=99, width=32, depth=3, heads=4, mlp_width=48, max_length=24, pooling="cls",
                        normalize=False)  # fmt: skip
    theirs = transformers.BertModel(reference(config)).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(torch.randn_like(p) * 0.3 + (p.ndim == 1))
    folder = tmp_path_factory.mktemp("bert")
    theirs.save_pretrained(folder)
    return theirs, config, load(bert(config), build(config).abstract(), folder)


def batch():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 99, (3, 20)).astype(np.int32)
    return tokens, np.arange(20) < np.array([[20], [7], [1]]), rng.integers(0, 2, (3, 20)).astype(np.int32)


def test_equal_to_transformers(pair):
    theirs, config, params = pair
    tokens, mask, types = batch()
    apply = jax.jit(build(config).apply)
    for m, t in ((None, None), (mask, types)):
        to_torch = lambda x: None if x is None else torch.from_numpy(x).long()
        out = theirs(to_torch(tokens), attention_mask=to_torch(m), token_type_ids=to_torch(t))
        for ours, expected in zip(apply(params, tokens, m, t), (out.last_hidden_state, out.pooler_output), strict=True):
            expected = expected.detach().numpy()
            assert np.abs(np.asarray(ours) - expected).max() <= TOLERANCE * np.abs(expected).max()


def test_the_sentence_vector_is_the_mean_of_the_tokens_that_count(pair):
    _, config, params = pair
    tokens, mask, _ = batch()
    hidden, vector = build(BERTConfig(**{**vars(config), "pooling": "mean", "normalize": True})).apply(
        params, tokens, mask
    )
    mean = np.stack([h[m].mean(0) for h, m in zip(np.asarray(hidden), mask, strict=True)])
    np.testing.assert_allclose(vector, mean / np.linalg.norm(mean, axis=-1, keepdims=True), atol=1e-6)


def test_weights_go_out_as_they_came_in(pair):
    theirs, config, params = pair
    back, state = to_theirs(bert(config), params), theirs.state_dict()
    assert back.keys() == state.keys()
    for name in back:
        np.testing.assert_array_equal(back[name], state[name].numpy())


@pytest.mark.parametrize("name, count", [("minilm_l6", 22_713_216), ("bert_base", 109_482_240)])
def test_presets_have_as_many_parameters_as_transformers(name, count):
    with torch.device("meta"):
        theirs = transformers.BertModel(reference(BERTConfig(**PRESETS[name])))
    assert build(BERTConfig(**PRESETS[name])).count() == sum(p.numel() for p in theirs.parameters()) == count
