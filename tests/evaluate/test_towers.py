"""CLIP's towers and DINOv2 in folders of transformers: its features from the same weights, pictures and captions."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from tokenizers import pre_tokenizers
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from lgm.data import Tokenizer
from lgm.evaluate import features
from lgm.evaluate.features import load_features
from lgm.evaluate.networks.contrastive import ContrastiveConfig, trained
from lgm.files import write_json
from lgm.interop import keymap
from lgm.models.clip_text import CLIPTextConfig
from lgm.parsing import ConfigError, as_dict

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 20, 26, 3), np.uint8)
SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Batches of no more images than the tests have."""
    monkeypatch.setattr(features, "BATCH", 3)


def randomized(model):
    """A model with weights that leave nothing near zero."""
    draw = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        parameter.data.normal_(1.0 if "norm" in name and "weight" in name else 0.0, 0.2, generator=draw)
    return model.eval()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """(model, processor of pictures, tokenizer, folder of them)."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = transformers.CLIPTokenizer(vocab=vocab, merges=[], pad_token="<|endoftext|>", model_max_length=16)
    text = dict(SMALL, vocab_size=514, intermediate_size=64, max_position_embeddings=16, bos_token_id=512,
                eos_token_id=513)  # fmt: skip
    vision = dict(SMALL, intermediate_size=64, image_size=24, patch_size=8)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    model = randomized(transformers.CLIPModel(config))
    processor = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    folder = tmp_path_factory.mktemp("clip")
    for part in (model, processor, tokenizer):
        part.save_pretrained(folder)
    return model, processor, tokenizer, folder


def test_clip_is_transformers(clip):
    """Both towers to 1e-4 of the largest, from pictures of 8 bits and captions on."""
    model, processor, tokenizer, folder = clip
    ours, captions = load_features(folder), ["a cat", "two dogs!", "x"]
    pixels = processor(list(IMAGES), return_tensors="pt")
    with torch.no_grad():
        theirs = model(**pixels, **tokenizer(captions, padding="max_length", return_tensors="pt"))
    for found, expected in [(ours.features(IMAGES), theirs.image_embeds), (ours.text(captions), theirs.text_embeds)]:
        found = found / np.linalg.norm(found, axis=1, keepdims=True)  # theirs come normalized
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
    assert (ours.dim, ours.input_size, ours.name) == (12, 24, f"clip:{folder.name}")
    with pytest.raises(ValueError, match="no classes apart"):
        ours.probabilities(ours.text(captions))


def test_cmmd_prepares_as_its_authors(clip):
    model, processor, _, folder = clip
    x = torch.from_numpy(IMAGES / 255).permute(0, 3, 1, 2).float()
    x = torch.nn.functional.interpolate(x, (24, 24), mode="bicubic")
    mean, std = (torch.tensor(part)[:, None, None] for part in (processor.image_mean, processor.image_std))
    with torch.no_grad():
        expected = model.visual_projection(model.vision_model((x - mean) / std).pooler_output).numpy()
    found = load_features(f"cmmd:{folder}")
    np.testing.assert_allclose(found.features(IMAGES), expected, atol=1e-4 * np.abs(expected).max())
    assert found.hash != load_features(folder).hash


@pytest.mark.parametrize("kind", ["plain", "registers", "gated"])
def test_dinov2_is_transformers(kind, tmp_path):
    """Positions stated for 4 x 4 patches, of an image of 3 x 3: to 1e-4 of the largest."""
    options = dict(SMALL, patch_size=8, image_size=32, mlp_ratio=2, use_swiglu_ffn=kind == "gated")
    if kind == "registers":
        config = transformers.Dinov2WithRegistersConfig(**options, num_register_tokens=2)
        model = randomized(transformers.Dinov2WithRegistersModel(config))
    else:
        model = randomized(transformers.Dinov2Model(transformers.Dinov2Config(**options)))
    model.save_pretrained(tmp_path)
    processor = BitImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 24, "width": 24})
    processor.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(**processor(list(IMAGES), return_tensors="pt")).pooler_output.numpy()
    found = load_features(tmp_path).features(IMAGES)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_folders_of_other_forms_are_one_line(clip, tmp_path):
    folder = clip[3]
    for name, change, words in [("config.json", {"vision_config": {"layer_norm_eps": 1}}, "layer_norm_eps"),
                                ("config.json", {"projection_dim": "x"}, "projection_dim"),
                                ("config.json", {"vision_config": {"num_hidden_layers": 999999}}, "tensors beside it"),
                                ("preprocessor_config.json", {"do_center_crop": False}, "do_center_crop"),
                                ("preprocessor_config.json", {"crop_size": 99}, "no larger")]:  # fmt: skip
        for file in folder.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        said = json.loads((folder / name).read_text())
        change = {k: said[k] | v if isinstance(v, dict) else v for k, v in change.items()}
        (tmp_path / name).write_text(json.dumps(said | change))
        with pytest.raises(ValueError, match=words) as error:
            load_features(tmp_path)
        assert "\n" not in str(error.value)


def test_an_image_text_model_of_ones_own(tmp_path):
    """Its text tower's embeddings come back from its folder; a folder of something else is one line."""
    text = CLIPTextConfig(vocab_size=4096, width=16, depth=1, heads=2, max_length=8, causal=False, pool="mean",
                          projection_dim=12)  # fmt: skip
    config = ContrastiveConfig(text, side=32, hidden=8)
    params = {name: model.init(jax.random.key(0)) for name, model in trained(config).items()}
    flat = {key: np.asarray(leaf) for key, leaf in keymap.flatten(params).items()}
    safetensors.numpy.save_file(flat, tmp_path / "model.safetensors")
    write_json(tmp_path / "config.json", as_dict(config))
    found, captions = load_features(f"contrastive:{tmp_path}"), ["a red apple", "sun"]
    tokens = Tokenizer("emoji64", 8).encode(captions)
    expected = trained(config)["text"].apply(params["text"], *tokens)[1]
    np.testing.assert_allclose(found.text(captions), expected, rtol=1e-4, atol=1e-6)
    assert (found.dim, found.input_size) == (12, 32)
    write_json(tmp_path / "config.json", as_dict(config) | {"hidden": 9})
    with pytest.raises(ConfigError, match="shape"):
        load_features(f"contrastive:{tmp_path}")
    write_json(tmp_path / "config.json", as_dict(config) | {"hiden": 9})
    with pytest.raises(ConfigError, match="did you mean 'hidden'"):
        load_features(f"contrastive:{tmp_path}")
