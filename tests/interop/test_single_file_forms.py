"""The shapes of single files that people have, of every system: each network of one is read tensor for tensor, what
training and other programs leave beside them is passed over, and anything else is refused by its name."""

import numpy as np
import pytest
import safetensors.torch
import tiny_systems
import torch
from test_single_file import original_layout

from lgm.interop import keys_autoencoder_flux2, keys_flux2, keys_frame_autoencoder, keys_z_image
from lgm.interop import original_names as names
from lgm.interop.components import component, names_in_library, read_config
from lgm.interop.single_file import section
from lgm.interop.tensor_files import open_weights
from lgm.systems.folders import load_pipeline

UNET, VAE, CLIP, T5 = "UNet2DConditionModel", "AutoencoderKL", "CLIPTextModel", "T5EncoderModel"
VL = "Qwen2_5_VLForConditionalGeneration"
LEFT = ("model_ema.decay", "model_ema.num_updates", "model_ema.diffusion_modelinput_blocks00weight", "betas", "logvar",
        "alphas_cumprod", "posterior_mean_coef2", "first_stage_model.loss.discriminator.main.0.weight", "global_step",
        "first_stage_model.model_ema.decay", "denoiser.sigmas", "scaled_fp8")  # fmt: skip
# of each system forms of files: for each place its prefix and layout, and what else stands in the file
FORMS = {
    "sd": {
        "whole": ({"unet": ("model.diffusion_model.", names.unet), "vae": ("first_stage_model.", names.autoencoder),
                   "text_encoder": ("cond_stage_model.transformer.", names.same)},
                  ("cond_stage_model.transformer.text_model.embeddings.position_ids", *LEFT)),
        "bare text": ({"text_encoder": ("cond_stage_model.transformer.", names.clip_text_bare),
                       "unet": ("model.diffusion_model.", names.unet)}, ("cond_stage_model.logit_scale",)),
        "OpenCLIP": ({"text_encoder": ("cond_stage_model.model.", names.open_clip_text),
                      "unet": ("model.diffusion_model.", names.unet)},
                     ("cond_stage_model.model.transformer.resblocks.3.ln_1.weight", "cond_stage_model.model.attn_mask",
                      "cond_stage_model.model.text_projection", "cond_stage_model.model.logit_scale")),
        "unet alone": ({"unet": ("", names.unet)}, ()),
        "unet in diffusers' names": ({"unet": ("", names.same)}, ()),
        "vae alone": ({"vae": ("", names.autoencoder)}, ("loss.logvar", "loss.discriminator.main.0.weight")),
        "vae with a prefix": ({"vae": ("first_stage_model.", names.autoencoder)}, ("first_stage_model.loss.logvar",)),
        "vae as ComfyUI has it": ({"vae": ("vae.", names.autoencoder)}, ("vae.loss.logvar",)),
        "vae in diffusers' names": ({"vae": ("", names.same)}, ()),
    },
    "xl": {
        "whole": ({"unet": ("model.diffusion_model.", names.unet), "vae": ("first_stage_model.", names.autoencoder),
                   "text_encoder": ("conditioner.embedders.0.transformer.", names.same),
                   "text_encoder_2": ("conditioner.embedders.1.model.", names.open_clip_text)},
                  ("conditioner.embedders.0.transformer.text_model.embeddings.position_ids",
                   "conditioner.embedders.0.transformer.text_projection.weight", "conditioner.embedders.0.logit_scale",
                   "conditioner.embedders.1.model.logit_scale", *LEFT)),
    },
    "sd3": {
        "whole": ({"transformer": ("model.diffusion_model.", names.sd3), "vae": ("first_stage_model.",
                                                                                names.autoencoder),
                   "text_encoder": ("text_encoders.clip_l.transformer.", names.unprojected(names.same)),
                   "text_encoder_2": ("text_encoders.clip_g.transformer.", names.same),
                   "text_encoder_3": ("text_encoders.t5xxl.transformer.", names.same)},
                  ("text_encoders.clip_l.transformer.text_projection.weight", "text_encoders.clip_l.logit_scale",
                   "text_encoders.clip_g.logit_scale", "text_encoders.t5xxl.logit_scale")),
        "without encoders": ({"transformer": ("model.diffusion_model.", names.sd3),
                              "vae": ("first_stage_model.", names.autoencoder)}, ()),
        "transformer alone": ({"transformer": ("", names.sd3)}, ()),
        "in diffusers' names": ({"transformer": ("", names.same)}, ()),
    },
    "flux": {
        "whole": ({"transformer": ("model.diffusion_model.", names.flux), "vae": ("vae.", names.autoencoder),
                   "text_encoder": ("text_encoders.clip_l.transformer.", names.same),
                   "text_encoder_2": ("text_encoders.t5xxl.transformer.", names.same)},
                  ("text_encoders.clip_l.transformer.text_projection.weight", "text_encoders.clip_l.logit_scale")),
        "transformer alone": ({"transformer": ("", names.flux)}, ()),
        "in diffusers' names": ({"transformer": ("", names.same)}, ()),
        "text alone": ({"text_encoder_2": ("", names.same)}, ("decoder.final_layer_norm.weight", "lm_head.weight")),
    },
    "flux2_klein": {
        "transformer with a prefix": ({"transformer": ("model.diffusion_model.", keys_flux2.original)}, ()),
        "vae alone": ({"vae": ("", keys_autoencoder_flux2.original)}, ()),
    },
    "z_image": {
        "transformer alone": ({"transformer": ("", keys_z_image.original)}, ("norm_final.weight",)),
        "with a prefix": ({"transformer": ("model.diffusion_model.", keys_z_image.original)}, ()),
        "text alone": ({"text_encoder": ("", names.in_model)}, ("lm_head.weight",)),
    },
    "qwen_image": {
        "transformer alone": ({"transformer": ("", names.same)}, ()),
        "vae alone": ({"vae": ("", keys_frame_autoencoder.original)}, ()),
        "text alone": ({"text_encoder": ("", names.same)}, ("visual.merger.ln_q.weight", "lm_head.weight")),
    },
}  # fmt: skip
MAKERS = {"sd": tiny_systems.stable_diffusion, "xl": tiny_systems.stable_diffusion_xl,
          "sd3": lambda: tiny_systems.stable_diffusion_3(qk_norm="rms_norm", dual_attention_layers=(0,)),
          "flux": tiny_systems.flux, "z_image": tiny_systems.z_image,
          "qwen_image": tiny_systems.qwen_image, "flux2_klein": tiny_systems.flux2_klein}  # fmt: skip


@pytest.fixture(scope="module")
def systems(tmp_path_factory):
    """{system: (folder, state by place in diffusers' names of today, (class, configuration) by place)}."""
    found = {}
    for system, make in MAKERS.items():
        theirs, folder = make(), tmp_path_factory.mktemp("forms") / system
        theirs.save_pretrained(folder)
        states, kinds = {}, {}
        for place, part in theirs.components.items():
            if not isinstance(part, torch.nn.Module):
                continue
            name = type(part).__name__
            kinds[place] = name, read_config(folder / place, name)
            known = ("text_model.", "text_projection.") if name.startswith(CLIP) else ("",)
            states[place] = {key if key.startswith(known) else f"text_model.{key}": tensor
                             for key, tensor in part.state_dict().items() if key != "encoder.embed_tokens.weight"}
            if name == VL:  # its text, as files have it
                states[place] = {key.replace("model.language_model.", "model."): tensor
                                 for key, tensor in states[place].items() if "language_model" in key}
        found[system] = folder, states, kinds
    return found


def written(tmp_path, tensors):
    file = tmp_path / "single.safetensors"
    safetensors.torch.save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, file)
    return file


@pytest.mark.parametrize(("system", "form"), [(system, form) for system, forms in FORMS.items() for form in forms])
def test_a_file_is_read_or_refused_as_a_whole(systems, tmp_path, system, form):
    folder, states, kinds = systems[system]
    places, left = FORMS[system][form]
    tensors = {name: torch.ones(2) for name in left}
    for place, (prefix, layout) in places.items():
        state = dict(states[place])
        identity = state.pop("text_projection.weight", None) if (system, place) == ("sd3", "text_encoder") else None
        tensors |= original_layout(state, layout(kinds[place][1]), prefix)
        assert identity is None or "clip_l" in prefix
    weights = open_weights(written(tmp_path, tensors))
    for place, (name, config) in kinds.items():
        found = section(weights, place, name, config, names_in_library(name, config))
        if place not in places:
            assert found is None, place
            continue
        taken = component(name).prepare(found.weights)
        for key, tensor in states[place].items():
            unprojected = system == "sd3" and place == "text_encoder" and key == "text_projection.weight"
            expected = torch.eye(tensor.shape[1]) if unprojected else tensor
            np.testing.assert_array_equal(taken.get(key), expected.numpy(), err_msg=f"{place}: {key}")
    load_pipeline(folder, single_file=weights.path, only=())
    if all(prefix for prefix, _ in places.values()):  # without, all names are of the one network, whose key map refuses
        for extra in ("control_model.input_blocks.0.0.weight", "scale_factor", "lora_unet_x.alpha"):
            file = written(tmp_path, tensors | {extra: torch.ones(2), "z.other": torch.ones(2)})
            with pytest.raises(ValueError, match=f"has 2 tensors that no network .* first '{extra}'"):
                load_pipeline(folder, single_file=file, only=())
