"""A single file of SD3 with everything in it, in the original layout: the same weights as diffusers reads from it."""

import diffusers
import numpy as np
import pytest
import tiny_systems
import torch
from test_single_file import original_layout, written

from lgm.interop import original_names
from lgm.interop.components import COMPONENTS
from lgm.interop.keymap import to_theirs
from lgm.systems.folders import load_pipeline

T5, CLIP_L, CLIP_G = (f"text_encoders.{name}.transformer." for name in ("t5xxl", "clip_l", "clip_g"))


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    """(folder, the tensors of a single file with other weights)."""
    folder = tmp_path_factory.mktemp("sd3") / "folder"
    theirs = tiny_systems.stable_diffusion_3(qk_norm="rms_norm", dual_attention_layers=(0,))
    # SD3's CLIP-L is as wide as its projection, which is the identity
    theirs.register_modules(text_encoder=tiny_systems.clip(24, width=24))
    theirs.text_encoder.text_projection.weight.data = torch.eye(24)
    theirs.save_pretrained(folder)
    parts = {place: part for place, part in theirs.components.items() if isinstance(part, torch.nn.Module)}
    with torch.no_grad():
        for part in parts.values():
            for p in part.parameters():
                p.mul_(-1)
    read = lambda place: COMPONENTS[type(parts[place]).__name__].read(parts[place].config)
    state = {place: part.state_dict() for place, part in parts.items()}
    known = lambda name: name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}"
    clip = lambda place: {known(name): tensor for name, tensor in state[place].items()}
    return folder, {
        **original_layout(state["transformer"], original_names.sd3(read("transformer")), "model.diffusion_model."),
        **original_layout(state["vae"], original_names.autoencoder(read("vae")), "first_stage_model."),
        **{CLIP_L + name: tensor for name, tensor in clip("text_encoder").items() if "projection" not in name},
        **{CLIP_G + name: tensor for name, tensor in clip("text_encoder_2").items()},
        **{T5 + name: tensor.clone() for name, tensor in state["text_encoder_3"].items()},
    }


def test_every_network_is_the_one_that_diffusers_reads(system, tmp_path):
    folder, tensors = system
    assert "model.diffusion_model.joint_blocks.0.x_block.attn2.qkv.weight" in tensors
    assert "model.diffusion_model.joint_blocks.1.context_block.attn.ln_k.weight" in tensors
    written(tmp_path, tensors)
    file = tmp_path / "single.safetensors"
    theirs = diffusers.StableDiffusion3Pipeline.from_single_file(file, config=str(folder), local_files_only=True)
    pipeline, params = load_pipeline(folder, single_file=file)
    for place in ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
        state = getattr(theirs, place).state_dict()
        name, model = pipeline.classes[place], pipeline.models[place]
        ours = to_theirs(COMPONENTS[name].rules(model.config), params[place])
        assert len(ours) > 10
        for key, value in ours.items():
            key = key if key in state else key.removeprefix("text_model.")
            np.testing.assert_array_equal(value, state[key].numpy(), err_msg=f"{place}: {key}")
    np.testing.assert_array_equal(params["text_encoder"]["projection"]["kernel"], np.eye(24))


@pytest.mark.parametrize(("change", "message"), [
    ({"x_block.mlp.fc1.weight": None}, r"lacks 'transformer_blocks.0.ff.net.0.proj.weight'"),
    ({"x_block.attn2.other": torch.zeros(1)}, r"has 'joint_blocks.0.x_block.attn2.other', which this model has no"),
    ({"x_block.attn.qkv.bias": torch.zeros(95)}, "has 95 rows, which are not 3 equal parts"),
])  # fmt: skip
def test_a_file_of_another_model_is_one_line(system, tmp_path, change, message):
    folder, tensors = system
    ((end, tensor),) = change.items()
    changed = tensors | {f"model.diffusion_model.joint_blocks.0.{end}": tensor}
    written(tmp_path, {name: value for name, value in changed.items() if value is not None})
    with pytest.raises(ValueError, match=message) as error:
        load_pipeline(folder, single_file=tmp_path / "single.safetensors")
    assert "\n" not in str(error.value)
