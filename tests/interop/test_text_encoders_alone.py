"""Text encoders in files of their own, under each of the names that people's files have; which of a system's it is."""

import jax
import numpy as np
import pytest
import safetensors.torch
import tiny_systems
import torch
from test_single_file import original_layout

from lgm.interop import original_names
from lgm.systems.folders import load_pipeline, save_pipeline

PLACES = {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5xxl": "text_encoder_3"}


@pytest.fixture(scope="module")
def sd3(tmp_path_factory):
    """(folder, its parameters, by name other weights of its text encoders). Their widths are 16, 32 and 64."""
    folder = tmp_path_factory.mktemp("alone") / "sd3"
    theirs = tiny_systems.stable_diffusion_3()
    theirs.text_encoder = tiny_systems.clip(16, width=16)
    theirs.text_encoder.text_projection.weight.data = torch.eye(16)
    theirs.text_encoder_2 = tiny_systems.clip(32, "gelu")
    theirs.save_pretrained(folder)
    known = lambda name: name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}"
    states = {}
    for name, place in PLACES.items():
        state = {key: -tensor for key, tensor in getattr(theirs, place).state_dict().items()}
        states[name] = state if name == "t5xxl" else {known(key): tensor for key, tensor in state.items()}
    del states["clip_l"]["text_projection.weight"], states["t5xxl"]["encoder.embed_tokens.weight"]
    return folder, load_pipeline(folder)[1], states


def same(name):
    return name


FORMS = {
    "as it is": lambda state: state,
    "bare": lambda state: {k.removeprefix("text_model."): v for k, v in state.items()},
    "transformer.": lambda state: {f"transformer.{k}": v for k, v in state.items()},
    "whole CLIP": lambda state: state | {"vision_model.x": torch.ones(2), "visual_projection.weight": torch.ones(2),
                                         "logit_scale": torch.ones(()),
                                         "text_model.embeddings.position_ids": torch.ones(2)},
    "OpenCLIP": lambda state: original_layout(state, original_names.open_clip_text(None)) | {
        "visual.conv1.weight": torch.ones(2), "logit_scale": torch.ones(()), "attn_mask": torch.ones(2)},
    "whole T5": lambda state: state | {"decoder.x.weight": torch.ones(2), "lm_head.weight": torch.ones(2)},
    "tied": lambda state: {k.replace("shared", "encoder.embed_tokens"): v for k, v in state.items()},
}  # fmt: skip


def saved(tmp_path, tensors, name="x"):
    file = tmp_path / f"{name}.safetensors"
    safetensors.torch.save_file({k: v.contiguous() for k, v in tensors.items()}, file)
    return file


def negated_but(before, params, places):
    """Whether the networks at `places` are those of the file, with the sign changed, and no other."""
    for place, tree in before.items():
        sign = -1 if place in places else 1
        jax.tree.map(lambda a, b, s=sign: np.testing.assert_array_equal(a, s * b), params[place], tree)


@pytest.mark.parametrize(("name", "form"), [
    *(("clip_l", form) for form in ("as it is", "bare", "transformer.", "whole CLIP")),
    *(("clip_g", form) for form in ("as it is", "bare", "transformer.", "whole CLIP", "OpenCLIP")),
    *(("t5xxl", form) for form in ("as it is", "transformer.", "whole T5", "tied")),
])  # fmt: skip
def test_a_file_of_one_text_encoder_takes_its_place(sd3, tmp_path, name, form):
    folder, before, states = sd3
    before = dict(before)
    _, params = load_pipeline(folder, single_file=saved(tmp_path, FORMS[form](states[name])))
    if name == "clip_l":  # which SD3 does not project, whatever its file holds
        np.testing.assert_array_equal(params["text_encoder"].pop("projection")["kernel"], np.eye(16))
        before["text_encoder"] = {k: v for k, v in before["text_encoder"].items() if k != "projection"}
    negated_but(before, params, {PLACES[name]})


def test_several_files_each_have_their_places(sd3, tmp_path):
    folder, before, states = sd3
    files = [saved(tmp_path, states[name], name) for name in ("clip_g", "t5xxl")]
    _, params = load_pipeline(folder, single_file=files)
    negated_but(before, params, {"text_encoder_2", "text_encoder_3"})
    with pytest.raises(ValueError, match="both hold the text_encoder_2; give one of them"):
        load_pipeline(folder, single_file=[*files, saved(tmp_path, states["clip_g"], "again")])


def test_a_language_model_that_sees_comes_whole_from_its_file(tmp_path):
    """With its eye and its head, which nothing here computes with, in a folder that has none of its weights."""
    theirs = tiny_systems.qwen_image()
    theirs.save_pretrained(tmp_path / "folder")
    (tmp_path / "folder" / "text_encoder" / "model.safetensors").unlink()
    state = {name: -tensor for name, tensor in theirs.text_encoder.state_dict().items()}
    named = lambda name: name.removeprefix("model.") if "visual" in name else name.replace("language_model.", "")
    file = saved(tmp_path, {named(name): tensor for name, tensor in state.items()})
    save_pipeline(tmp_path / "out", *load_pipeline(tmp_path / "folder", single_file=file))
    again = type(theirs.text_encoder).from_pretrained(tmp_path / "out" / "text_encoder").state_dict()
    assert again.keys() == state.keys() and all(torch.equal(again[name], state[name]) for name in state)


@pytest.mark.parametrize("shape", [(), (1,), "rows", "column"])
def test_scaled_float8_of_a_text_encoder_is_the_product(sd3, tmp_path, shape):
    folder, _, states = sd3
    tensors, expected = dict(states["t5xxl"]), {}
    for name in [name for name in tensors if name.endswith(".q.weight")]:
        rows = {"rows": (32,), "column": (32, 1)}.get(shape, shape)
        stored, scale = tensors[name].to(torch.float8_e4m3fn), torch.rand(rows) + 0.5
        tensors[name], tensors[name.replace("weight", "scale_weight")] = stored, scale
        tensors[name.replace("weight", "scale_input")] = torch.ones(())
        expected[int(name.split(".")[2])] = (stored.float() * (scale.reshape(-1, 1) if scale.ndim else scale)).numpy().T
    tensors["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    _, params = load_pipeline(folder, single_file=saved(tmp_path, tensors))
    for i, matrix in expected.items():
        np.testing.assert_array_equal(params["text_encoder_3"]["blocks"]["attn"]["qkv"]["kernel"][i][:, :32], matrix)


def test_what_fits_no_encoder_or_two_is_refused_by_name(sd3, tmp_path):
    folder, _, states = sd3

    def refused(tensors, message, folder=folder):
        with pytest.raises(ValueError, match=message) as error:
            load_pipeline(folder, single_file=saved(tmp_path, tensors))
        assert "\n" not in str(error.value)

    wide = {k: torch.zeros(514, 48) if "token_embedding" in k else v for k, v in states["clip_g"].items()}
    refused(wide, r"'text_model.embeddings.token_embedding.weight' of shape \(514, 48\); .* width 16 in text_encoder "
                  "and 32 in text_encoder_2 and 64 in text_encoder_3")  # fmt: skip
    refused({k: v for k, v in states["clip_g"].items() if "layers.1.mlp.fc2" not in k}, "lacks .*layers.1.mlp.fc2")
    refused(states["t5xxl"] | {"encoder.block.9.x": torch.ones(1)}, "has 'encoder.block.9.x', which this model has no")
    refused({k: v for k, v in states["clip_g"].items() if k != "text_projection.weight"}, "lacks 'text_projection.weig")
    tiny_systems.stable_diffusion_xl().save_pretrained(tmp_path / "xl")  # whose two encoders are of one width
    refused(states["clip_g"], "is of text_encoder as well as of text_encoder_2", tmp_path / "xl")
