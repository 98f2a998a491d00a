"""LoRA of SD3's transformer and text encoders: diffusers' files merged at load, and adapters of ours in diffusers."""

import functools

import diffusers
import jax
import numpy as np
import pytest
import tiny_systems
import torch
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from tiny_systems import draw, noise_for, their_images

from lgm.cli import main
from lgm.interop import original_names
from lgm.interop.components import load_component
from lgm.interop.keymap import to_theirs
from lgm.interop.keys_sd3 import sd3_rules
from lgm.interop.lora_export import Naming, pairs_of, save_lora
from lgm.interop.lora_files import merge, read_lora
from lgm.interop.tensor_files import open_weights, save
from lgm.models.lora import LoRAConfig, init, merged
from lgm.systems.folders import load_pipeline

RANK, ALPHA = 4, 6
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
           "ff.net.0.proj", "ff_context.net.2", "norm1.linear", "norm1_context.linear", "context_embedder"]  # fmt: skip
LEAST_PSNR = 80.0  # float32 in another order of sums is at over 100 dB


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a pipeline, SD3.5-medium in small, without T5."""
    folder = tmp_path_factory.mktemp("lora") / "base"
    theirs = tiny_systems.stable_diffusion_3(with_t5=False, qk_norm="rms_norm", dual_attention_layers=(0,))
    theirs.save_pretrained(folder)
    return folder


def opened(folder):
    return diffusers.StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)


def test_a_lora_of_diffusers_is_merged_as_peft_merges_it_and_draws_the_same(base, tmp_path):
    theirs = opened(base)
    torch.manual_seed(0)
    options = dict(r=RANK, lora_alpha=ALPHA, init_lora_weights=False)
    theirs.transformer.add_adapter(LoraConfig(target_modules=TARGETS, **options))
    for encoder in (theirs.text_encoder, theirs.text_encoder_2):
        encoder.add_adapter(LoraConfig(target_modules=["q_proj", "out_proj"], **options))
    places = {place: getattr(theirs, place) for place in ("transformer", "text_encoder", "text_encoder_2")}
    layers = {f"{place}_lora_layers": get_peft_model_state_dict(part) for place, part in places.items()}
    theirs.save_lora_weights(tmp_path, **layers, **_collate_lora_metadata(places))

    lora = read_lora(tmp_path)
    pipeline, params = load_pipeline(base, loras=[lora])
    ours = to_theirs(sd3_rules(pipeline.denoiser.config), params["transformer"])
    adapted = {name: m for name, m in theirs.transformer.named_modules() if hasattr(m, "lora_A")}
    assert len(adapted) == len([name for name in lora.updates if name.startswith("transformer.")])
    for name, module in adapted.items():
        expected = (module.base_layer.weight + module.get_delta_weight("default")).detach().numpy()
        np.testing.assert_allclose(ours[f"{name}.weight"], expected, atol=1e-6)

    plain = opened(base)
    noise = noise_for(plain)
    without = their_images(plain, noise)
    plain.load_lora_weights(tmp_path)
    expected = their_images(plain, noise)
    assert tiny_systems.psnr(without, expected) < 30  # the LoRA shows
    assert tiny_systems.psnr(draw(pipeline, params, noise), expected) > LEAST_PSNR


def test_an_adapter_of_ours_changes_diffusers_picture_the_same_way(base, tmp_path):
    pipeline, params = load_pipeline(base)
    model, config = pipeline.denoiser, LoRAConfig(rank=3, alpha=6.0, targets=(r"/(qkv|out|fc1|modulation)/kernel$",))
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: init(model, config, key), jax.random.key(0))
    adapter = jax.tree.map(lambda leaf: 0.2 * rng.standard_normal(leaf.shape, np.float32), shapes)
    assert {"dual/image/dual/qkv/kernel", "last/text/joint/qkv/kernel"} < set(adapter)
    save_lora(tmp_path, {"transformer": (Naming("transformer."), pairs_of(sd3_rules(model.config), adapter, config))})
    changed = merged(params["transformer"], adapter, config)

    adapt = lambda weights: merge(weights, [read_lora(tmp_path)], "transformer")[0]
    _, loaded = load_component(base / "transformer", "SD3Transformer2DModel", adapt=adapt)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), loaded, changed)

    theirs = opened(base)
    noise = noise_for(theirs)
    without = their_images(theirs, noise)
    theirs.load_lora_weights(tmp_path)
    expected = their_images(theirs, noise)
    assert tiny_systems.psnr(without, expected) < 30
    assert tiny_systems.psnr(draw(pipeline, params | {"transformer": changed}, noise), expected) > LEAST_PSNR


@pytest.mark.parametrize("style", [
    ("lora_unet_joint_blocks_0_context_block_attn_qkv", "lora_down", "lora_up"),
    ("diffusion_model.joint_blocks.0.context_block.attn.qkv", "lora_A", "lora_B"),
])  # fmt: skip
def test_updates_of_fused_matrices_in_the_original_layout_are_divided(base, tmp_path, style):
    module, a, b = style
    rng = np.random.default_rng(0)
    down, up = rng.standard_normal((2, 32), np.float32), rng.standard_normal((96, 2), np.float32)
    save([(f"{module}.{a}.weight", down), (f"{module}.{b}.weight", up)], tmp_path, "lora")
    weights = open_weights(base / "transformer")
    model, _ = load_component(base / "transformer", "SD3Transformer2DModel")
    original = original_names.sd3(model.config)
    changed, used = merge(weights, [read_lora(tmp_path / "lora.safetensors")], "transformer", original)
    assert len(used) == 1
    for i, part in enumerate("qkv"):
        name = f"transformer_blocks.0.attn.add_{part}_proj.weight"
        expected = weights.get(name) + up[32 * i : 32 * i + 32] @ down
        np.testing.assert_allclose(changed.get(name), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the text")  # captions are long for a tokenizer of bytes
def test_a_lora_trained_from_config_is_exported_for_diffusers(base, tmp_path):
    run, out = tmp_path / "run", tmp_path / "lora"
    assert main(["import", f"--from={base}", f"--workdir={run}"]) == 0
    words = ["batch_size=2", "total_images=6", "data.resolution=16", "data.where.subcategory=face-hat",
             "data.heldout_where.subcategory=face-hat", "data.heldout_where.split=train", "evaluation.times=1",
             "evaluation.max_images=2", "evaluation.batch_size=2", "sampling.steps=2", "sampling.count=1",
             "log.every_images=2", "optimizer.warmup_images=0", "optimizer.lr=3e-2", "lora.rank=4"]  # fmt: skip
    assert main(["train", f"--config={run / 'config.py'}", f"--workdir={run}",
                 *(f"--config.{word}" for word in words)]) == 0  # fmt: skip
    assert main(["export", f"--workdir={run}", f"--out={out}"]) == 0
    theirs = opened(base)
    noise = noise_for(theirs)
    without = their_images(theirs, noise)
    theirs.load_lora_weights(out)
    expected = their_images(theirs, noise)
    assert tiny_systems.psnr(without, expected) < 40  # three steps show
    pipeline, params = load_pipeline(base, loras=[read_lora(out)])
    assert tiny_systems.psnr(draw(pipeline, params, noise), expected) > LEAST_PSNR
