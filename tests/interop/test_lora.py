"""LoRA files of diffusers and kohya, merged at load: diffusers' picture with the LoRA loaded is ours."""

import functools

import diffusers
import jax
import numpy as np
import pytest
import safetensors.torch
import tiny_systems
import torch
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from tiny_systems import draw, noise_for, their_images

from lgm.interop import original_names
from lgm.interop.components import load_component
from lgm.interop.keymap import to_theirs
from lgm.interop.keys_unet import unet_rules
from lgm.interop.lora_export import Naming, pairs_of, save_lora
from lgm.interop.lora_files import merge, read_lora
from lgm.interop.tensor_files import open_weights, save
from lgm.models.lora import LoRAConfig, init, merged
from lgm.models.unet import UNetConfig
from lgm.systems.folders import load_pipeline

RANK, ALPHA = 4, 6
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "proj_in", "ff.net.0.proj", "time_emb_proj"]
TEXT_TARGETS = ["q_proj", "out_proj", "fc1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder of a plain pipeline, diffusers' pipeline with adapters on U-Net and text encoder)."""
    folder = tmp_path_factory.mktemp("lora") / "base"
    theirs = tiny_systems.stable_diffusion()
    theirs.save_pretrained(folder)
    torch.manual_seed(0)
    options = dict(r=RANK, lora_alpha=ALPHA, init_lora_weights=False)
    theirs.unet.add_adapter(LoraConfig(target_modules=TARGETS, **options))
    theirs.text_encoder.add_adapter(LoraConfig(target_modules=TEXT_TARGETS, **options))
    return folder, theirs


def written(theirs, folder, style):
    """The adapters of `theirs` in a file of that style."""
    layers = [get_peft_model_state_dict(m) for m in (theirs.unet, theirs.text_encoder)]
    if style == "diffusers":
        layers = [convert_state_dict_to_diffusers(layer) for layer in layers]
    metadata = _collate_lora_metadata({"unet": theirs.unet, "text_encoder": theirs.text_encoder})
    theirs.save_lora_weights(folder, unet_lora_layers=layers[0], text_encoder_lora_layers=layers[1], **metadata)
    file = folder / "pytorch_lora_weights.safetensors"
    if style == "kohya":
        tensors = {}
        for name, tensor in safetensors.torch.load_file(file).items():
            module, part = name.removesuffix(".weight").rsplit(".", 1)
            module = module.replace("text_encoder.encoder", "text_encoder.text_model.encoder").replace(".", "_")
            module = module.replace("text_encoder_", "lora_te_", 1).replace("unet_", "lora_unet_", 1)
            tensors[f"{module}.{dict(lora_A='lora_down', lora_B='lora_up')[part]}.weight"] = tensor
            tensors[f"{module}.alpha"] = torch.tensor(float(ALPHA))
        safetensors.torch.save_file(tensors, file)
    return file


@pytest.mark.parametrize("style", ["peft", "diffusers", "kohya"])
def test_merged_weights_equal_those_that_peft_merges(trained, tmp_path, style):
    folder, theirs = trained
    lora = read_lora(written(theirs, tmp_path, style))
    assert all(update.rank == RANK and update.scale == ALPHA / RANK for update in lora.updates.values())
    model, params = load_component(
        folder / "unet", "UNet2DConditionModel", adapt=lambda weights: merge(weights, [lora], "unet")[0]
    )
    ours = to_theirs(unet_rules(model.config), params)
    base = open_weights(folder / "unet")
    changed = 0
    for name, module in theirs.unet.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        expected = module.base_layer.weight + module.get_delta_weight("default")
        value = ours[f"{name}.weight"]
        np.testing.assert_allclose(value, expected.detach().numpy(), atol=1e-6)
        changed += not np.array_equal(value, base.get(f"{name}.weight"))
    assert changed == len([name for name in lora.updates if "te_" not in name and "text_encoder" not in name])


@pytest.mark.slow
def test_the_picture_with_a_lora_is_that_of_diffusers(trained, tmp_path):
    folder, theirs = trained
    file = written(theirs, tmp_path, "peft")
    plain = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    noise = noise_for(plain)
    without = their_images(plain, noise)
    plain.load_lora_weights(tmp_path)
    expected = their_images(plain, noise)
    assert tiny_systems.psnr(without, expected) < 30  # the LoRA shows
    pipeline, params = load_pipeline(folder, loras=[read_lora(file)])
    assert tiny_systems.psnr(draw(pipeline, params, noise), expected) > 80


def test_kohya_files_in_the_original_layout_and_with_fused_matrices_are_divided(tmp_path):
    """Names of sgm's U-Net and of Flux, whose q, k and v are one matrix."""
    rng = np.random.default_rng(0)
    new = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    qkv = {f"transformer_blocks.0.attn.to_{part}.weight": new(6, 5) for part in "qkv"}
    block = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    save(({block: new(6, 5)} | qkv).items(), tmp_path, "base")
    base = open_weights(tmp_path / "base.safetensors")
    up, down = new(18, 2), new(2, 5)
    unet = {"lora_up.weight": up[:6], "lora_down.weight": down, "alpha": np.float32(4.0).reshape(())}
    sgm = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    save(((f"{sgm}.{end}", value) for end, value in unet.items()), tmp_path, "sgm")
    merged, used = merge(base, [read_lora(tmp_path / "sgm.safetensors")], "unet", original_names.unet(UNetConfig()))
    assert len(used) == 1
    np.testing.assert_allclose(merged.get(block), base.get(block) + 2.0 * up[:6] @ down, atol=1e-5)

    for style, a, b in (("lora_unet_double_blocks_0_img_attn_qkv", "lora_down", "lora_up"),
                        ("diffusion_model.double_blocks.0.img_attn.qkv", "lora_A", "lora_B")):  # fmt: skip
        save([(f"{style}.{a}.weight", down), (f"{style}.{b}.weight", up)], tmp_path, "flux")
        lora = read_lora(tmp_path / "flux.safetensors")
        merged, used = merge(base, [lora], "transformer", original_names.flux(None))
        assert len(used) == 1
        for i, (name, value) in enumerate(qkv.items()):
            np.testing.assert_allclose(merged.get(name), value + up[6 * i : 6 * i + 6] @ down, atol=1e-5)


def test_strengths_add_up(trained, tmp_path):
    folder, theirs = trained
    file = written(theirs, tmp_path, "peft")
    weights = open_weights(folder / "unet")
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    value = lambda *strengths: merge(weights, [read_lora(file, s) for s in strengths], "unet")[0].get(name)
    np.testing.assert_allclose(value(0.3, 0.7), value(1.0), atol=1e-6)
    np.testing.assert_array_equal(value(0.0), weights.get(name))


def test_what_cannot_be_merged_is_one_line(trained, tmp_path):
    folder, theirs = trained
    file = written(theirs, tmp_path, "peft")
    tensors = safetensors.torch.load_file(file)
    first = next(name for name in tensors if name.startswith("unet") and "lora_A" in name)

    def refused(changed, message):
        safetensors.torch.save_file(changed, file)
        with pytest.raises(ValueError, match=message) as error:
            load_pipeline(folder, loras=[read_lora(file)])
        assert "\n" not in str(error.value)

    other = {name.replace("down_blocks.0", "down_blocks.7"): tensor for name, tensor in tensors.items()}
    refused(other, "changes 'unet.down_blocks.7.*and [0-9]+ more, which this system does not have")
    refused({k: v for k, v in tensors.items() if k != first.replace("lora_A", "lora_B")}, "without")
    refused(tensors | {first: torch.zeros(RANK, 3)}, "does not fit a weight of")
    refused(tensors | {"unet.x.dora_scale": torch.zeros(1)}, "'unet.x' has a dora_scale .* without the matrices")
    refused({"conv.weight": torch.zeros(1)}, "no part of a LoRA")


@pytest.fixture(scope="module")
def adapter(trained):
    """(model, plain parameters, an adapter that changes the picture, its configuration) of the U-Net."""
    model, params = load_component(trained[0] / "unet", "UNet2DConditionModel")
    config = LoRAConfig(rank=3, alpha=6.0, targets=(r"/(qkv|q|kv|out|fc1|proj_in)/kernel$",))
    rng = np.random.default_rng(0)
    adapter = jax.eval_shape(lambda key: init(model, config, key), jax.random.key(0))
    adapter = jax.tree.map(lambda leaf: 0.2 * rng.standard_normal(leaf.shape, np.float32), adapter)
    return model, params, adapter, config


def test_an_adapter_written_and_merged_at_load_is_the_adapter(trained, adapter, tmp_path):
    model, params, changes, config = adapter
    save_lora(tmp_path, {"unet": (Naming("unet."), pairs_of(unet_rules(model.config), changes, config))})
    lora = read_lora(tmp_path)
    _, loaded = load_component(
        trained[0] / "unet", "UNet2DConditionModel", adapt=lambda weights: merge(weights, [lora], "unet")[0]
    )
    close = functools.partial(np.testing.assert_allclose, atol=1e-6)
    jax.tree.map(close, loaded, merged(params, changes, config))
    with pytest.raises(ValueError, match="shifts/kernel has no equal|conv1/kernel has no equal"):
        bad = {"down/0/layers/0/residual/conv1/kernel": changes["middle/transformer/proj_in/kernel"]}
        save_lora(tmp_path, {"unet": (Naming("unet."), pairs_of(unet_rules(model.config), bad, config))})


@pytest.mark.slow
def test_an_adapter_trained_here_changes_diffusers_picture_the_same_way(trained, adapter, tmp_path):
    model, params, changes, config = adapter
    save_lora(tmp_path, {"unet": (Naming("unet."), pairs_of(unet_rules(model.config), changes, config))})
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(trained[0])
    noise = noise_for(theirs)
    without = their_images(theirs, noise)
    theirs.load_lora_weights(tmp_path)
    expected = their_images(theirs, noise)
    pipeline, plain = load_pipeline(trained[0])
    ours = draw(pipeline, plain | {"unet": merged(params, changes, config)}, noise)
    assert tiny_systems.psnr(without, expected) < 40  # it changes what is seen, by how much is left to its training
    assert tiny_systems.psnr(ours, expected) > 80
