"""Language models as text encoders against transformers' with the same random weights."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from lgm.interop.components import component, load_component, read_carried, save_component
from lgm.interop.fields import STORED
from lgm.interop.keymap import names_of
from lgm.interop.tensor_files import open_weights
from lgm.models import build
from lgm.models.causal_text import PRESETS, CausalTextConfig

TOLERANCE = 1e-5  # of the norm of a float64 reference: float32 sums in another order
SHAPE = dict(vocab_size=99, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
             intermediate_size=48, rms_norm_eps=1e-5)  # fmt: skip
KINDS = {
    "Qwen3Model": transformers.Qwen3Config(**SHAPE, head_dim=12, rope_parameters={"rope_theta": 1e6,
                                                                                   "rope_type": "default"}),
    "Qwen2_5_VLTextModel": transformers.Qwen2_5_VLConfig(text_config=SHAPE | dict(rope_parameters={
        "rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1]})).text_config,
    "MistralModel": transformers.MistralConfig(**SHAPE, head_dim=16),
}  # fmt: skip


def reference(name):
    generator = torch.Generator().manual_seed(0)
    theirs = getattr(transformers, name)(KINDS[name])
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3 + (p.ndim == 1))
    return theirs.eval()


@pytest.mark.parametrize("name", KINDS)
def test_chosen_hidden_states_equal_transformers_and_folders_go_both_ways(tmp_path, name):
    """The states that transformers counts from the embedding on, of padding too, on either side."""
    theirs = reference(name)
    theirs.save_pretrained(tmp_path / "theirs")
    chosen = (0, 2, -2, -1)
    model, params = load_component(tmp_path / "theirs", name, hidden=chosen)
    tokens = np.random.default_rng(0).integers(0, 99, (2, 19)).astype(np.int32)
    mask = np.arange(19) < np.array([[19], [11]])
    theirs.double()
    for seen in (None, mask, mask[:, ::-1].copy()):
        with torch.no_grad():
            states = theirs(torch.from_numpy(tokens).long(), attention_mask=None if seen is None else
                            torch.from_numpy(seen), output_hidden_states=True).hidden_states  # fmt: skip
        expected = np.concatenate([states[i].numpy() for i in chosen], -1)
        ours = np.asarray(jax.jit(model.apply)(params, tokens, seen))
        for i in range(len(chosen)):  # each on its own
            a, b = (x[..., 32 * i : 32 * (i + 1)] for x in (ours, expected))
            assert np.linalg.norm(a - b) <= TOLERANCE * np.linalg.norm(b), (name, chosen[i])
    save_component(tmp_path / "ours", name, model.config, params)
    again, loaded = load_component(tmp_path / "ours", name, hidden=chosen)
    assert again.config == model.config
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    back, loading = getattr(transformers, name).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert back.config.rope_parameters["rope_theta"] == theirs.config.rope_parameters["rope_theta"]
    for key, tensor in reference(name).state_dict().items():
        torch.testing.assert_close(back.state_dict()[key], tensor, rtol=0, atol=0)


def test_a_model_that_writes_is_read_without_its_head(tmp_path):
    """As released folders have it: Qwen3ForCausalLM, whose layers have a prefix."""
    theirs = reference("Qwen3Model")
    whole = transformers.Qwen3ForCausalLM(KINDS["Qwen3Model"])
    whole.model.load_state_dict(theirs.state_dict())
    whole.save_pretrained(tmp_path)
    _, params = load_component(tmp_path, "Qwen3Model")
    np.testing.assert_array_equal(params["tokens"]["table"], theirs.embed_tokens.weight.detach().numpy())


VL = "Qwen2_5_VLForConditionalGeneration"
EYE = dict(depth=1, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=32, fullatt_block_indexes=[0])


@pytest.mark.parametrize("older", [False, True], ids=["today's names", "the released folder's"])
def test_a_model_that_sees_is_read_as_text_and_written_whole(tmp_path, older):
    """The released folder states the text's options at the top, too, or there alone, and names tensors as it did."""
    text = reference("Qwen2_5_VLTextModel")
    whole = transformers.Qwen2_5_VLForConditionalGeneration(transformers.Qwen2_5_VLConfig(
        text_config=text.config.to_dict(), vision_config=EYE))  # fmt: skip
    whole.model.language_model.load_state_dict(text.state_dict())
    whole.save_pretrained(tmp_path / "theirs")
    if older:
        config, file = (tmp_path / "theirs" / name for name in ("config.json", "model.safetensors"))
        values = json.loads(config.read_text())
        config.write_text(json.dumps(values | values.pop("text_config") | {"model_type": "qwen2_5_vl"}))
        named = lambda name: name.removeprefix("model.") if "visual" in name else name.replace("language_model.", "")
        tensors = {named(name): tensor for name, tensor in whole.state_dict().items()}
        assert {"visual.merger.ln_q.weight", "model.norm.weight", "lm_head.weight"} < set(tensors)
        safetensors.torch.save_file(tensors, file, {"format": "pt"})
    model, params = load_component(tmp_path / "theirs", VL)
    alone, expected = load_component_of(tmp_path / "text", text)
    assert model.config == alone
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    beside = component(VL).beside(open_weights(tmp_path / "theirs"))
    save_component(tmp_path / "ours", VL, model.config, params, None, read_carried(tmp_path / "theirs", VL), beside)
    back, loading = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "ours",
                                                                                    output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for part in ("vision_config", "text_config"):
        now, was = (getattr(model.config, part).to_dict() for model in (back, whole))
        said = was.keys() - set(STORED)
        assert {key: now[key] for key in said} == {key: was[key] for key in said}
    for key, tensor in whole.state_dict().items():
        torch.testing.assert_close(back.state_dict()[key], tensor, rtol=0, atol=0)


def load_component_of(folder, theirs):
    """(configuration, parameters) of a bare text model."""
    theirs.save_pretrained(folder)
    model, params = load_component(folder, type(theirs).__name__)
    return model.config, params


def test_the_language_part_of_qwen_image_counts_as_the_original():
    """Of which the head, that no feature needs, is carried."""
    kind, text = RELEASED["qwen25_7b"]
    with torch.device("meta"):
        theirs = getattr(transformers, VL)(transformers.Qwen2_5_VLConfig(text_config=text.to_dict(), vision_config=EYE))
    count = lambda module: sum(p.numel() for p in module.parameters())
    assert count(theirs) - count(theirs.model.visual) == 7_615_616_512
    assert build(CausalTextConfig(**PRESETS["qwen25_7b"])).count() == 7_615_616_512 - count(theirs.lm_head)
    with pytest.raises(ValueError, match="config.json: text_config=3 is not an object or null"):
        component(VL).read({"text_config": 3})
    with pytest.raises(ValueError, match="config.json: text_config: hidden_act='gelu' has no equal here"):
        component(VL).read({"text_config": {"hidden_act": "gelu"}})
    with pytest.raises(ValueError, match="config.json: text_config is missing"):
        component("Mistral3ForConditionalGeneration").read({})


RELEASED = {  # what the folders of the released models say
    "qwen3_4b": ("Qwen3Model", transformers.Qwen3Config(
        hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_key_value_heads=8,
        max_position_embeddings=40_960, rope_parameters={"rope_type": "default", "rope_theta": 1e6})),
    "qwen3_8b": ("Qwen3Model", transformers.Qwen3Config(
        hidden_size=4096, intermediate_size=12_288, num_hidden_layers=36, num_key_value_heads=8,
        max_position_embeddings=40_960, rope_parameters={"rope_type": "default", "rope_theta": 1e6})),
    "qwen25_7b": ("Qwen2_5_VLTextModel", transformers.Qwen2_5_VLConfig(text_config=dict(
        vocab_size=152_064, hidden_size=3584, intermediate_size=18_944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, max_position_embeddings=128_000, rms_norm_eps=1e-6)).text_config),
    "mistral_7b": ("MistralModel", transformers.MistralConfig(
        vocab_size=32_768, max_position_embeddings=32_768, rms_norm_eps=1e-5, sliding_window=None,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6})),
    "mistral_small_3": ("MistralModel", transformers.Mistral3Config().text_config),
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_parameters_of_the_originals(name):
    kind, config = RELEASED[name]
    with torch.device("meta"):
        theirs = getattr(transformers, kind)(config)
    ours = CausalTextConfig(**PRESETS[name])
    model = build(ours)
    assert model.count() == sum(p.numel() for p in theirs.parameters())
    assert set(names_of(component(kind).rules(ours), model.abstract())) == set(theirs.state_dict())
    assert component(kind).read(config.to_dict()) == dataclasses.replace(ours, hidden=(-1,))
    assert component(kind).read(component(kind).write(ours)) == dataclasses.replace(ours, hidden=(-1,))


@pytest.mark.parametrize("name", KINDS)
def test_the_defaults_are_those_of_the_class(name):
    """An empty config.json is the class's own default."""
    default = {"Qwen2_5_VLTextModel": lambda: transformers.Qwen2_5_VLConfig().text_config}.get(
        name, getattr(transformers, name).config_class)()  # fmt: skip
    assert component(name).read({}) == component(name).read(default.to_dict())


@pytest.mark.parametrize(("options", "line"), [
    (dict(kv_heads=3), "kv_heads=3 does not divide heads=32"),
    (dict(head_width=13), "head_width=13 must be even"),
    (dict(hidden=(37,)), r"hidden=\(37,\) must name states from 0 to depth=36"),
    (dict(hidden=()), r"hidden=\(\) must name states"),
])  # fmt: skip
def test_impossible_configurations_are_one_line(options, line):
    with pytest.raises(ValueError, match=line):
        CausalTextConfig(**options)


@pytest.mark.parametrize(("options", "line"), [
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling of rope_type='yarn' has no equal here"),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": -1}}, "rope_theta=-1 is not a finite number above 0"),
    ({"use_sliding_window": True}, "use_sliding_window=True has no equal here"),
    ({"attention_bias": True}, "attention_bias=True has no equal here"),
])  # fmt: skip
def test_configurations_without_an_equal_are_one_line(options, line):
    with pytest.raises(ValueError, match=line):
        component("Qwen3Model").read(options)
    with pytest.raises(ValueError, match="Qwen3Model has qk_norm=True; one of qk_norm=False cannot be exported"):
        component("Qwen3Model").write(CausalTextConfig(qk_norm=False))


def test_a_window_bounds_the_text():
    config = component("MistralModel").read(SHAPE | {"sliding_window": 16})
    assert config.max_length == 16
    model = build(config)
    with pytest.raises(ValueError, match="17 tokens are more than max_length=16"):
        jax.eval_shape(model.apply, model.abstract(), jax.ShapeDtypeStruct((1, 17), np.int32))


def test_blocks_above_the_last_state_that_is_read_are_not_computed():
    tokens = jax.ShapeDtypeStruct((1, 5), "int32")
    flops = [build(CausalTextConfig(99, 32, 4, 4, 2, 12, 48, hidden=(state,))).flops(tokens) for state in (1, 2, 3, 4)]
    assert flops == [flops[0] * blocks for blocks in (1, 2, 3, 4)]
