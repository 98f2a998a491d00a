"""Flux folders: drawn, imported and exported, the picture is diffusers'; LoRAs and single files change it alike."""

import functools
import json
import shutil

import diffusers
import jax
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import tiny_systems
import torch
from test_single_file import original_layout
from tiny_systems import GUIDANCE, PROMPTS, SIZE, STEPS, draw, noise_for, their_images

from lgm.cli import main
from lgm.drawing import draw as draw_run
from lgm.interop import original_names
from lgm.interop.keys_flux import flux_rules
from lgm.interop.lora_export import Naming, pairs_of, save_lora
from lgm.interop.lora_files import read_lora
from lgm.models.lora import LoRAConfig, init, merged
from lgm.pictures import read_image
from lgm.systems.folders import load_pipeline, save_pipeline
from lgm.train.opening import load_run

# 45 dB is what a person could not see; float32 in another order of sums is far below (over 130 dB was measured)
LEAST_PSNR = 80.0
ROUNDED = 45.0  # images of 8 bits

pytestmark = pytest.mark.filterwarnings("ignore:the text")  # captions are long for a tokenizer of bytes


@pytest.fixture(scope="module")
def systems(tmp_path_factory):
    """kind -> (diffusers' pipeline, its folder), each made once. The folders say that they are for 16 pixels, as ours
    do where it is not what Flux was trained at."""

    @functools.cache
    def make(kind):
        folder = tmp_path_factory.mktemp(kind) / "theirs"
        theirs = tiny_systems.flux(guidance=kind == "dev")
        theirs.set_progress_bar_config(disable=True)
        theirs.save_pretrained(folder)
        path = folder / "transformer" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"sample_size": 8}))
        return theirs, folder

    return make


@pytest.fixture(scope="module")
def dev(systems):
    """(diffusers' pipeline, its folder, ours, our parameters, noise, diffusers' picture of it)."""
    theirs, folder = systems("dev")
    noise = noise_for(theirs)
    return theirs, folder, *load_pipeline(folder), noise, their_images(theirs, noise)


def at_full_length(theirs, noise):
    """diffusers' images with as many text tokens as Flux's own program takes: 512 of dev, which diffusers takes of
    both, and 256 of schnell."""
    packed = theirs._pack_latents(torch.from_numpy(noise.transpose(0, 3, 1, 2).copy()), len(noise), 16, 8, 8)
    return theirs(PROMPTS[: len(noise)], num_inference_steps=STEPS, guidance_scale=GUIDANCE, latents=packed,
                  output_type="np", height=SIZE[0], width=SIZE[1],
                  max_sequence_length=512 if theirs.transformer.config.guidance_embeds else 256).images  # fmt: skip


def files(folder):
    return {str(f.relative_to(folder)): safetensors.numpy.load_file(f) for f in folder.rglob("*.safetensors")}


def bits(tensors):
    """The bytes of every tensor; older files of a text encoder have a prefix."""
    return {name.removeprefix("text_model."): value.tobytes() for name, value in tensors.items()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dev", "schnell"])
def test_sample_from_a_folder_is_diffusers_picture(systems, tmp_path, kind):
    theirs, folder = systems(kind)
    noise = noise_for(theirs)[:1]
    np.save(tmp_path / "x.npy", noise)
    assert main(["sample", f"--from={folder}", f"--prompt={PROMPTS[0]}", f"--out={tmp_path / 'x.png'}",
                 f"--steps={STEPS}", f"--guidance={GUIDANCE}", f"--noise={tmp_path / 'x.npy'}"]) == 0  # fmt: skip
    expected = at_full_length(theirs, noise)[0]
    assert expected.std() > 0.1  # not a blank picture
    assert tiny_systems.psnr(read_image(tmp_path / "x.png"), expected) > ROUNDED


@pytest.mark.parametrize("kind", ["dev", "schnell"])
def test_what_is_imported_is_exported_for_diffusers_bit_for_bit_and_draws_the_same(systems, tmp_path, kind):
    _, folder = systems(kind)
    run, out = tmp_path / "run", tmp_path / "out"
    assert main(["import", f"--from={folder}", f"--workdir={run}"]) == 0
    assert main(["export", f"--workdir={run}", f"--out={out}"]) == 0
    before, after = files(folder), files(out)
    assert before.keys() == after.keys()
    for file, tensors in before.items():
        assert bits(tensors) == bits(after[file]), file
    theirs = diffusers.DiffusionPipeline.from_pretrained(out)
    assert type(theirs) is diffusers.FluxPipeline
    theirs.set_progress_bar_config(disable=True)
    system, params, frozen, _ = load_run(str(run), "ema")
    drawn = draw_run(system, params, frozen, PROMPTS, seed=5, steps=STEPS,
                     **({"guidance": GUIDANCE} if kind == "dev" else {}))  # fmt: skip
    keys = [jax.random.fold_in(jax.random.fold_in(jax.random.key(5), i), 0) for i in range(len(PROMPTS))]
    noise = np.stack([np.asarray(jax.random.normal(key, (8, 8, 16))) for key in keys])
    assert tiny_systems.psnr(drawn / 255, at_full_length(theirs, noise)) > ROUNDED


def test_pictures_agree_to_rounding_and_times_depend_on_the_size_of_the_image(dev):
    """Dynamic shifting moves the times of a large image, which has more tokens, towards noise."""
    _, _, pipeline, params, noise, expected = dev
    assert tiny_systems.psnr(draw(pipeline, params, noise), expected) > LEAST_PSNR
    assert pipeline.defaults.steps == 28
    small, large = (pipeline.schedule.timesteps(4, tokens, even=True).times for tokens in (16, 4096))
    assert np.all(small[1:-1] < large[1:-1] - 0.05)


def test_the_usual_steps_of_schnell_are_four(systems):
    pipeline, _ = load_pipeline(systems("schnell")[1], only=())
    assert (pipeline.defaults.steps, pipeline.defaults.guidance) == (4, 1.0)


def test_a_released_size_is_written_without_a_key_that_diffusers_does_not_know(dev, tmp_path):
    _, folder, _, params, *_ = dev
    plain = tmp_path / "plain"
    shutil.copytree(folder, plain)
    path = plain / "transformer" / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "sample_size"}))
    released, _ = load_pipeline(plain, only=())
    assert released.sample_size == 128
    save_pipeline(tmp_path / "ours", released, params)
    assert "sample_size" not in json.loads((tmp_path / "ours" / "transformer" / "config.json").read_text())


def test_image_to_image_equals_diffusers(dev):
    theirs, _, pipeline, params, *_ = dev
    parts = {k: v for k, v in theirs.components.items() if k not in ("image_encoder", "feature_extractor")}
    other = diffusers.FluxImg2ImgPipeline(**parts)
    other.set_progress_bar_config(disable=True)
    image = np.random.default_rng(1).random((2, *SIZE, 3)).astype(np.float32)
    vae = theirs.vae
    with torch.no_grad():
        latents = vae.encode(torch.from_numpy(image.transpose(0, 3, 1, 2)) * 2 - 1).latent_dist.mode()
        latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
    expected = other(PROMPTS, image=latents, strength=0.6, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
                     height=SIZE[0], width=SIZE[1], generator=torch.Generator().manual_seed(3), output_type="np",
                     max_sequence_length=tiny_systems.T5_TOKENS).images  # fmt: skip
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3)).numpy().transpose(0, 2, 3, 1)
    assert tiny_systems.psnr(draw(pipeline, params, noise, image=image, strength=0.6), expected) > LEAST_PSNR


TARGETS = ["attn.to_q", "attn.to_k", "attn.to_v", "to_out.0", "to_add_out", "add_k_proj", "ff.net.0.proj", "proj_mlp",
           "proj_out", "norm.linear", "x_embedder", "context_embedder"]  # fmt: skip


def test_a_lora_of_diffusers_merged_at_load_gives_its_picture(dev, tmp_path):
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    _, folder, _, _, noise, without = dev
    theirs = diffusers.FluxPipeline.from_pretrained(folder)
    torch.manual_seed(0)
    theirs.transformer.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights=False, target_modules=TARGETS))
    theirs.save_lora_weights(tmp_path, transformer_lora_layers=get_peft_model_state_dict(theirs.transformer))
    plain = diffusers.FluxPipeline.from_pretrained(folder)
    plain.load_lora_weights(tmp_path)
    expected = their_images(plain, noise)
    assert tiny_systems.psnr(without, expected) < 30  # the LoRA shows
    pipeline, params = load_pipeline(folder, loras=[read_lora(tmp_path / "pytorch_lora_weights.safetensors")])
    assert tiny_systems.psnr(draw(pipeline, params, noise), expected) > LEAST_PSNR


def test_an_adapter_trained_here_changes_diffusers_picture_the_same_way(dev, tmp_path):
    _, folder, pipeline, params, noise, without = dev
    model = pipeline.denoiser
    config = LoRAConfig(rank=3, alpha=6.0, targets=(r"/(qkv|out|fc1|modulation)/kernel$", "^patches/kernel$"))
    rng = np.random.default_rng(0)
    adapter = jax.eval_shape(lambda key: init(model, config, key), jax.random.key(0))
    adapter = jax.tree.map(lambda leaf: 0.2 * rng.standard_normal(leaf.shape, np.float32), adapter)
    assert {"double/text/heads/qkv/kernel", "single/heads/qkv/kernel", "single/out/kernel"} < set(adapter)
    save_lora(tmp_path, {"transformer": (Naming("transformer."), pairs_of(flux_rules(model.config), adapter, config))})
    theirs = diffusers.FluxPipeline.from_pretrained(folder)
    theirs.load_lora_weights(tmp_path)
    expected = their_images(theirs, noise)
    assert tiny_systems.psnr(without, expected) < 30
    ours = draw(pipeline, params | {"transformer": merged(params["transformer"], adapter, config)}, noise)
    assert tiny_systems.psnr(ours, expected) > LEAST_PSNR


@pytest.mark.parametrize("prefixes", [
    {"transformer": ""},
    {"transformer": "model.diffusion_model.", "vae": "vae.", "text_encoder": "text_encoders.clip_l.transformer.",
     "text_encoder_2": "text_encoders.t5xxl.transformer."},
], ids=["transformer alone", "all in one"])  # fmt: skip
def test_networks_are_read_from_a_single_file(dev, tmp_path, prefixes):
    theirs, folder, pipeline, params, *_ = dev
    state = {place: getattr(theirs, place).state_dict() for place in prefixes}
    layouts = {
        "transformer": original_names.flux(None),
        "vae": original_names.autoencoder(pipeline.models["vae"].config),
        "text_encoder": original_names.same(None),
        "text_encoder_2": original_names.same(None),
    }
    tensors = {}
    for place, prefix in prefixes.items():
        named = {name: tensor for name, tensor in state[place].items() if name != "encoder.embed_tokens.weight"}
        if place == "text_encoder":
            named = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in named.items()}
        tensors |= original_layout({name: -tensor for name, tensor in named.items()}, layouts[place], prefix)
    prefix = prefixes["transformer"]
    assert tensors[f"{prefix}double_blocks.0.img_attn.qkv.weight"].shape == (96, 32)
    assert tensors[f"{prefix}single_blocks.1.linear1.weight"].shape == (7 * 32, 32)
    safetensors.torch.save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "single.safetensors")
    _, read = load_pipeline(folder, single_file=tmp_path / "single.safetensors")
    for place, before in params.items():
        sign = -1 if place in prefixes else 1
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, sign * b), read[place], before)
    del tensors[f"{prefix}single_blocks.1.linear2.bias"]
    safetensors.torch.save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "single.safetensors")
    with pytest.raises(ValueError, match="lacks 'single_transformer_blocks.1.proj_out.bias'"):
        load_pipeline(folder, single_file=tmp_path / "single.safetensors")
