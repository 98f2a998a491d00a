"""Single-file checkpoints in the original layouts, against diffusers' own conversion of them."""

import diffusers
import jax
import numpy as np
import pytest
import safetensors.torch
import tiny_systems
import torch
import transformers
from diffusers.loaders import single_file_utils

from lgm.interop import original_names
from lgm.interop.components import component
from lgm.interop.lora_names import targets_of
from lgm.interop.scaled import descaled
from lgm.interop.single_file import schedule_of, section
from lgm.interop.tensor_files import open_weights
from lgm.systems.folders import load_pipeline


def original_layout(state, original, prefix=""):
    """The tensors of a diffusers state dict as the original file holds them, by the inverse of `original`."""
    tensors, parts = {}, {}
    for name, tensor in state.items():
        source = original(name)
        if source.change == "swap":
            tensor = torch.cat(tensor.chunk(2)[::-1])
        if source.change == "transpose":
            tensor = tensor.T.contiguous()
        if source.change == "squeeze":
            tensor = tensor[:, :, None, None]
        if source.rows is None:
            tensors[prefix + source.name] = tensor
        else:
            parts.setdefault(prefix + source.name, {})[source.rows[0]] = tensor
    return tensors | {name: torch.cat([rows[i] for i in sorted(rows)]) for name, rows in parts.items()}


def check(theirs, converted, weights):
    """diffusers' conversion gives back the state that the file was made from, and so does ours."""
    assert converted.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(converted[name], tensor), name
        np.testing.assert_array_equal(weights.get(name), tensor.numpy())
        assert weights.shape(name) == tuple(tensor.shape)
    assert set(weights.names) == set(theirs)


def written(tmp_path, tensors):
    safetensors.torch.save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "single.safetensors")
    return open_weights(tmp_path / "single.safetensors")


@pytest.mark.parametrize(("name", "prefix"), [
    ("stable_diffusion", "model.diffusion_model."), ("stable_diffusion", ""),
    ("stable_diffusion_xl", "model.diffusion_model."),
])  # fmt: skip
def test_unets_equal_diffusers_conversion(tmp_path, name, prefix):
    unet = getattr(tiny_systems, name)().unet
    config = component("UNet2DConditionModel").read(unet.config)
    state = unet.state_dict()
    tensors = original_layout(state, original_names.unet(config), "model.diffusion_model.")
    assert "model.diffusion_model.input_blocks.1.0.in_layers.0.weight" in tensors
    converted = single_file_utils.convert_ldm_unet_checkpoint(dict(tensors), dict(unet.config))
    tensors = {name.replace("model.diffusion_model.", prefix): tensor for name, tensor in tensors.items()}
    weights = written(tmp_path, tensors | {"model_ema.decay": torch.ones(1), "first_stage_model.x": torch.ones(1)})
    check(state, converted, section(weights, "unet", "UNet2DConditionModel", config, list(state)).weights)


@pytest.mark.parametrize("prefix", ["first_stage_model.", ""], ids=["whole", "alone"])
def test_autoencoders_equal_diffusers_conversion(tmp_path, prefix):
    vae = tiny_systems.vae()
    config = component("AutoencoderKL").read(vae.config)
    state = vae.state_dict()
    tensors = original_layout(state, original_names.autoencoder(config), prefix)
    converted = single_file_utils.convert_ldm_vae_checkpoint(dict(tensors), dict(vae.config))
    check(state, converted, section(written(tmp_path, tensors), "vae", "AutoencoderKL", config, list(state)).weights)


@pytest.mark.parametrize("projection", [None, 24])
def test_text_encoders_of_open_clip_equal_diffusers_conversion(tmp_path, projection):
    encoder = tiny_systems.clip(projection, "gelu")
    name = type(encoder).__name__
    config = component(name).read(encoder.config.to_dict())
    known = lambda key: key if key.startswith(("text_model.", "text_projection")) else f"text_model.{key}"
    state = {known(key): tensor for key, tensor in encoder.state_dict().items()}
    prefix = "conditioner.embedders.1.model." if projection else "cond_stage_model.model."
    tensors = original_layout(state, original_names.open_clip_text(config), prefix)
    place = "text_encoder_2" if projection else "text_encoder"
    extra = {f"{prefix}logit_scale": torch.ones(1), f"{prefix}transformer.resblocks.3.ln_1.bias": torch.ones(32)}
    weights = section(written(tmp_path, tensors | extra), place, name, config, list(state)).weights
    wide = dict(tensors) if projection else dict(tensors, **{f"{prefix}text_projection": torch.zeros(32, 32)})
    converted = single_file_utils.convert_open_clip_checkpoint(encoder, wide, prefix)
    converted = {k: v for k, v in converted.items() if projection or k != "text_projection.weight"}
    check(state, converted, weights)


class Sd3:
    """What `original_names.sd3` reads of a configuration."""

    depth = 3


def test_names_of_sd3_equal_diffusers_conversion(tmp_path):
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=16, num_layers=3, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=40, pooled_projection_dim=48, pos_embed_max_size=4,
        qk_norm="rms_norm", dual_attention_layers=(0, 1),
    )  # fmt: skip
    state = tiny_systems.randomized(transformer, 0.1).state_dict()
    tensors = original_layout(state, original_names.sd3(Sd3), "model.diffusion_model.")
    converted = single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers(dict(tensors))
    weights = section(written(tmp_path, tensors), "transformer", "SD3Transformer2DModel", Sd3, list(state)).weights
    check(state, converted, weights)


def test_names_of_flux_equal_diffusers_conversion(tmp_path):
    """Every matrix has one column: diffusers' conversion splits rows, of which it wants Flux's real number."""
    with torch.device("meta"):
        state = diffusers.FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True).state_dict()
    state = {name: torch.randn(v.shape[:1] + (1,) * (v.ndim - 1)) for name, v in state.items()}
    tensors = original_layout(state, original_names.flux(None))
    converted = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers(dict(tensors))
    weights = section(written(tmp_path, tensors), "transformer", "FluxTransformer2DModel", None, list(state)).weights
    check(state, converted, weights)


def test_names_of_flux2_equal_diffusers_conversion(tmp_path):
    theirs = tiny_systems.flux2().transformer
    kind, state = component(type(theirs).__name__), theirs.state_dict()
    config, original = kind.read(theirs.config), kind.layouts[0][1](None)
    tensors = original_layout(state, original)
    assert tensors["double_blocks.0.txt_attn.qkv.weight"].shape == (96, 32)
    assert "single_blocks.1.norm.query_norm.scale" in tensors
    converted = single_file_utils.convert_flux2_transformer_checkpoint_to_diffusers(dict(tensors))
    weights = section(written(tmp_path, tensors), "transformer", type(theirs).__name__, config, list(state)).weights
    check(state, converted, weights)


def test_names_of_z_image_equal_diffusers_conversion(tmp_path):
    """With a norm that diffusers drops, too."""
    theirs = tiny_systems.z_image().transformer
    kind, state = component(type(theirs).__name__), theirs.state_dict()
    config, original = kind.read(theirs.config), kind.layouts[0][1](None)
    tensors = original_layout(state, original, "model.diffusion_model.")
    assert tensors["model.diffusion_model.layers.1.attention.qkv.weight"].shape == (96, 32)
    tensors["model.diffusion_model.norm_final.weight"] = torch.ones(32)
    converted = single_file_utils.convert_z_image_transformer_checkpoint_to_diffusers(dict(tensors))
    weights = section(written(tmp_path, tensors), "transformer", type(theirs).__name__, config, list(state)).weights
    check(state, converted, weights)
    places = {target.module[-1]: target.rows for target in targets_of(state, original)["layers_1_attention_qkv"]}
    assert places == {"q": (0, 1, 3), "k": (1, 2, 3), "v": (2, 3, 3)}  # of a LoRA in these names


def test_names_of_qwen_images_autoencoder_equal_diffusers_conversion(tmp_path):
    """Which diffusers has for Wan's, whose names and numbers of blocks are the same. Theirs places by number the one
    shortcut of the released decoder."""
    theirs = diffusers.AutoencoderKLQwenImage(base_dim=8)
    kind, state = component(type(theirs).__name__), theirs.state_dict()
    config = kind.read(theirs.config)
    tensors = original_layout(state, kind.layouts[0][1](config))
    assert {"encoder.downsamples.10.residual.6.weight", "decoder.upsamples.14.residual.0.gamma"} < set(tensors)
    converted = single_file_utils.convert_wan_vae_to_diffusers(dict(tensors))
    weights = section(written(tmp_path, tensors), "vae", type(theirs).__name__, config, list(state)).weights
    check(state, converted, weights)


def test_a_pipeline_reads_its_networks_from_a_single_file(tmp_path):
    theirs = tiny_systems.stable_diffusion()
    theirs.save_pretrained(tmp_path / "folder")
    with torch.no_grad():
        for network in (theirs.unet, theirs.vae, theirs.text_encoder):
            for p in network.parameters():
                p.mul_(-1)
    config = lambda network, name: component(name).read(
        network.config.to_dict() if isinstance(network, transformers.PreTrainedModel) else network.config
    )
    unet = config(theirs.unet, "UNet2DConditionModel")
    text = {f"text_model.{name}": tensor for name, tensor in theirs.text_encoder.state_dict().items()}
    tensors = {
        **original_layout(theirs.unet.state_dict(), original_names.unet(unet), "model.diffusion_model."),
        **original_layout(
            theirs.vae.state_dict(),
            original_names.autoencoder(config(theirs.vae, "AutoencoderKL")),
            "first_stage_model.",
        ),
        **original_layout(text, original_names.same(None), "cond_stage_model.transformer."),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(24)[None],
        "betas": torch.zeros(1000),
    }
    written(tmp_path, tensors)
    single = tmp_path / "single.safetensors"
    _, plain = load_pipeline(tmp_path / "folder")
    _, params = load_pipeline(tmp_path / "folder", single_file=single)
    for ours, before in zip(jax.tree.leaves(params), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(ours, -before)

    def refused(changed, message):
        written(tmp_path, changed)
        with pytest.raises(ValueError, match=message):
            load_pipeline(tmp_path / "folder", single_file=single)

    conv = "model.diffusion_model.input_blocks.0.0.weight"
    refused({k: v for k, v in tensors.items() if k != conv}, "lacks 'conv_in.weight'")
    refused(tensors | {"model.diffusion_model.other": torch.zeros(1)}, "has 'other', which this model has no place for")
    refused({"lora": torch.zeros(1)}, "holds no network of a StableDiffusionPipeline")
    left = {"loss.logvar": torch.zeros(()), "first_stage_model.loss.discriminator.main.0.weight": torch.zeros(2, 2),
            "model_ema.decay": torch.zeros(()), "alphas_cumprod": torch.zeros(1000), "global_step": torch.zeros(())}
    written(tmp_path, tensors | left)
    load_pipeline(tmp_path / "folder", single_file=single)
    # the encoder's names as transformers 5 writes them, and as nobody does: never the folder's encoder in silence
    text = "cond_stage_model.transformer.text_model."
    renamed = lambda to: {k.replace(text, to): v for k, v in tensors.items()}
    written(tmp_path, renamed("cond_stage_model.transformer."))
    _, params = load_pipeline(tmp_path / "folder", single_file=single)
    for ours, before in zip(jax.tree.leaves(params), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(ours, -before)
    count = sum(k.startswith(text) for k in tensors)
    refused(renamed("cond_stage_model.clip."), f"has {count} tensors that no network .* first 'cond_stage_model.clip.e")
    refused(tensors | {"control_model.zero.weight": torch.zeros(1)}, "has 1 tensors that .* first 'control_model.zero")


def test_markers_change_the_schedule(tmp_path):
    """As ComfyUI reads them, whose models these keys are of; epsilon is what the folder says."""
    config = {"_class_name": "EulerDiscreteScheduler", "prediction_type": "epsilon", "timestep_spacing": "leading"}
    marked = lambda *names: written(tmp_path, {name: torch.zeros(0) for name in ("x", *names)})
    assert schedule_of(marked(), config) == config
    assert schedule_of(marked("v_pred"), config) == config | {"prediction_type": "v_prediction"}
    both = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    assert schedule_of(marked("v_pred", "ztsnr"), config) == config | both
    other = config | {"_class_name": "PNDMScheduler"}  # which cannot end in pure noise
    assert schedule_of(marked("v_pred", "ztsnr"), other) == config | both
    assert schedule_of(marked("ztsnr"), config | {"prediction_type": "v_prediction"}) == config | both
    for names, changed, message in [
        (["ztsnr"], config, "'ztsnr' without 'v_pred'"),
        (["v_pred"], config | {"prediction_type": "sample"}, "is marked 'v_pred', but the folder's"),
        (["v_pred"], {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "is marked 'v_pred'"),
    ]:
        with pytest.raises(ValueError, match=message):
            schedule_of(marked(*names), changed)


def test_what_the_metadata_of_a_file_says_changes_the_schedule(tmp_path):
    """sd-scripts write modelspec.prediction_type, "epsilon" or "v"."""
    config = {"_class_name": "EulerDiscreteScheduler", "prediction_type": "epsilon"}
    velocity = config | {"prediction_type": "v_prediction"}

    def told(value, *names):
        tensors = {name: torch.zeros(0) for name in ("x", *names)}
        safetensors.torch.save_file(tensors, tmp_path / "x.safetensors", {"modelspec.prediction_type": value})
        return open_weights(tmp_path / "x.safetensors")

    assert schedule_of(told("epsilon"), config) == config
    assert schedule_of(told("v"), config) == schedule_of(told("v", "v_pred"), config) == velocity
    assert schedule_of(told("v"), velocity) == velocity
    assert schedule_of(told("v", "ztsnr"), config)["rescale_betas_zero_snr"] is True
    for weights, changed, message in [
        (("epsilon", "v_pred"), config, "says modelspec.prediction_type='epsilon', but it is marked 'v_pred'"),
        (("epsilon",), velocity, "says modelspec.prediction_type='epsilon', but the folder's scheduler"),
        (("flow",), config, "says modelspec.prediction_type='flow'; 'epsilon' and 'v' are known"),
        (("v",), {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "is marked 'v_pred', but the folder's FlowMatch"),
    ]:
        with pytest.raises(ValueError, match=message):
            schedule_of(told(*weights), changed)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_scaled_float8_is_multiplied_out(tmp_path, dtype):
    weight = (torch.randn(6, 4) * 20).to(dtype)
    plain, scale = torch.randn(6), torch.tensor(0.0375)
    for ends in (("scale_weight", "scale_input"), ("weight_scale", "input_scale")):
        tensors = {"a.q.weight": weight, "a.q.bias": plain, f"a.q.{ends[0]}": scale, f"a.q.{ends[1]}": scale * 3,
                   "scaled_fp8": torch.zeros(0, dtype=dtype), "b.weight": weight.clone()}  # fmt: skip
        found = descaled(written(tmp_path, tensors))
        assert set(found.names) == {"a.q.weight", "a.q.bias", "b.weight"}
        np.testing.assert_array_equal(found.get("a.q.weight"), (weight.float() * scale).numpy())
        np.testing.assert_array_equal(found.get("b.weight").astype(np.float32), weight.float().numpy())
        np.testing.assert_array_equal(found.get("a.q.bias"), plain.numpy())
    for bad, message in ((torch.tensor(float("nan")), "finite and above 0"), (torch.zeros(()), "finite and above 0"),
                         (-torch.ones(6), "finite and above 0"), (torch.ones(4), "for a weight of .*6, 4"),
                         (torch.ones(6, 2), "one number, or one a row"), (torch.ones(2, 3), "one a row")):  # fmt: skip
        with pytest.raises(ValueError, match=f"'a.q.scale_weight' .*{message}"):
            descaled(written(tmp_path, {"a.q.weight": weight, "a.q.scale_weight": bad}))
    with pytest.raises(ValueError, match="two scales of 'a.q.weight'"):
        descaled(written(tmp_path, {"a.q.weight": weight, "a.q.scale_weight": scale, "a.q.weight_scale": scale * 2}))
    for text, message in (('{"format": "nvfp4"}', "says format='nvfp4'"), ("[1]", "should be a JSON object")):
        with pytest.raises(ValueError, match=f"'a.q.comfy_quant' {message}"):
            descaled(written(tmp_path, {"a.q.weight": weight, "a.q.comfy_quant": torch.tensor(list(text.encode()),
                                                                                              dtype=torch.uint8)}))
    with pytest.raises(ValueError, match="'a.q.weight' is packed as int8"):
        descaled(written(tmp_path, {"a.q.weight": weight.to(torch.int8), "a.q.scale_weight": scale}))


@pytest.mark.parametrize("shape", [(), (1,), (12,), (12, 1)])
def test_a_fused_matrix_of_scaled_float8_is_split_after_its_scale(tmp_path, shape):
    """q, k and v of Flux's img_attn.qkv: their rows, times the one scale or those of their rows; as ComfyUI's files of
    today say it, with the format beside."""
    name = "double_blocks.0.img_attn.qkv"
    weight, scale = (torch.randn(12, 4) * 20).to(torch.float8_e4m3fn), torch.rand(shape) + 0.5
    kind = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    file = written(tmp_path, {f"{name}.weight": weight, f"{name}.weight_scale": scale, f"{name}.comfy_quant": kind})
    wanted = [f"transformer_blocks.0.attn.to_{part}.weight" for part in "qkv"]
    found = section(descaled(file), "transformer", "FluxTransformer2DModel", None, wanted).weights
    whole = weight.float() * (scale.reshape(-1, 1) if scale.numel() > 1 else scale)
    for rows, key in zip(whole.chunk(3), wanted, strict=True):
        np.testing.assert_array_equal(found.get(key), rows.numpy())
    assert set(found.names) == set(wanted)
