"""Z-Image folders: drawn, imported, exported, trained and adapted, the picture is diffusers'."""

import json
import shutil
import warnings

import diffusers
import jax
import numpy as np
import pytest
import safetensors.numpy
import tiny_systems
import torch
from tiny_systems import PROMPTS, SIZE, STEPS

from lgm.cli import main
from lgm.drawing import draw as draw_run
from lgm.drawing import text_to_image
from lgm.interop.lora_files import read_lora
from lgm.pictures import read_image
from lgm.systems.folders import load_pipeline
from lgm.systems.text import tokenize
from lgm.train.opening import load_run

LEAST_PSNR = 80.0  # float32 in another order of sums is far below (117 dB was seen)
ROUNDED = 45.0  # images of 8 bits
SCALE = 3.0  # of guidance; diffusers' pipeline counts it from 0


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(diffusers' pipeline, its folder, noise, diffusers' pictures of it); a folder for 16 pixels."""
    folder = tmp_path_factory.mktemp("z_image") / "theirs"
    theirs = tiny_systems.z_image()
    theirs.save_pretrained(folder)
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sample_size": 8}))
    noise = tiny_systems.noise_for(theirs)
    return theirs, folder, noise, images(theirs, noise)


def images(theirs, noise, **options):
    theirs.set_progress_bar_config(disable=True)
    options = dict(latents=torch.from_numpy(noise.transpose(0, 3, 1, 2).copy())) | options
    return theirs(PROMPTS[: len(noise)], num_inference_steps=STEPS, guidance_scale=SCALE - 1.0, output_type="np",
                  height=SIZE[0], width=SIZE[1], **options).images  # fmt: skip


def draw(pipeline, params, noise, **options):
    return text_to_image(pipeline, params, PROMPTS, steps=STEPS, guidance=SCALE, size=SIZE, noise=noise, **options)


def noise_of(seed, count):
    keys = [jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), i), 0) for i in range(count)]
    return np.stack([np.asarray(jax.random.normal(key, (8, 8, 16))) for key in keys])


@pytest.mark.slow
def test_sample_from_a_folder_is_diffusers_picture(tiny, tmp_path):
    _, folder, noise, expected = tiny
    np.save(tmp_path / "x.npy", noise[:1])
    assert main(["sample", f"--from={folder}", f"--prompt={PROMPTS[0]}", f"--out={tmp_path / 'x.png'}",
                 f"--steps={STEPS}", f"--guidance={SCALE}", f"--noise={tmp_path / 'x.npy'}"]) == 0  # fmt: skip
    assert expected.std() > 0.1  # not a blank picture
    assert tiny_systems.psnr(read_image(tmp_path / "x.png"), expected[0]) > ROUNDED


def test_pictures_agree_to_rounding_and_the_ids_are_those_of_the_chat(tiny):
    theirs, folder, noise, expected = tiny
    pipeline, params = load_pipeline(folder)
    assert tiny_systems.psnr(draw(pipeline, params, noise), expected) > LEAST_PSNR
    for length in (30, 512):  # cut, and padded
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ids = tokenize(pipeline, PROMPTS, length)["text_encoder"]
        assert bool(caught) == (length == 30)
        chats = [theirs.tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False,
                                                      add_generation_prompt=True, enable_thinking=True)
                 for prompt in PROMPTS]  # fmt: skip
        wanted = theirs.tokenizer(chats, padding="max_length", max_length=length, truncation=True, return_tensors="np")
        np.testing.assert_array_equal(ids, np.where(wanted.attention_mask, wanted.input_ids, -1))


@pytest.mark.slow
def test_image_to_image_equals_diffusers(tiny):
    theirs, folder, *_ = tiny
    other = diffusers.ZImageImg2ImgPipeline(**theirs.components)
    other.set_progress_bar_config(disable=True)
    image = np.random.default_rng(1).random((2, *SIZE, 3)).astype(np.float32)
    vae = theirs.vae
    with torch.no_grad():
        latents = vae.encode(torch.from_numpy(image.transpose(0, 3, 1, 2)) * 2 - 1).latent_dist.mode()
    pipeline, params = load_pipeline(folder)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3)).numpy().transpose(0, 2, 3, 1)
    ours = draw(pipeline, params, noise, image=image, strength=0.6)
    mode = type(vae.encode(torch.zeros(1, 3, *SIZE)).latent_dist)
    original = mode.sample
    mode.sample = lambda self, generator=None: self.mode()
    try:
        expected = other(PROMPTS, image=torch.from_numpy(image.transpose(0, 3, 1, 2)), strength=0.6,
                         num_inference_steps=STEPS, guidance_scale=SCALE - 1.0, height=SIZE[0], width=SIZE[1],
                         generator=torch.Generator().manual_seed(3), output_type="np").images  # fmt: skip
    finally:
        mode.sample = original
    assert tiny_systems.psnr(ours, expected) > LEAST_PSNR


def tensors_of(folder):
    return {str(f.relative_to(folder)): safetensors.numpy.load_file(f) for f in folder.rglob("*.safetensors")}


@pytest.mark.slow
def test_what_is_imported_is_exported_for_diffusers_bit_for_bit_and_draws_the_same(tiny, tmp_path):
    _, folder, *_ = tiny
    run, out = tmp_path / "run", tmp_path / "out"
    assert main(["import", f"--from={folder}", f"--workdir={run}"]) == 0
    assert main(["export", f"--workdir={run}", f"--out={out}"]) == 0
    before, after = tensors_of(folder), tensors_of(out)
    assert before.keys() == after.keys()
    for file, tensors in before.items():
        assert tensors.keys() == after[file].keys()
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(tensor, after[file][name], err_msg=name)
    theirs = diffusers.DiffusionPipeline.from_pretrained(out)
    assert type(theirs) is diffusers.ZImagePipeline
    assert theirs.transformer.config.axes_lens == [576, 32, 32]
    system, params, frozen, _ = load_run(str(run), "ema")
    drawn = draw_run(system, params, frozen, PROMPTS, seed=5, steps=STEPS, guidance=SCALE)
    assert tiny_systems.psnr(drawn / 255, images(theirs, noise_of(5, 2))) > ROUNDED


TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "feed_forward.w1", "feed_forward.w2", "cap_embedder.1"]


@pytest.mark.slow
def test_a_lora_of_diffusers_merged_at_load_gives_its_picture(tiny, tmp_path):
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    _, folder, noise, without = tiny
    theirs = diffusers.ZImagePipeline.from_pretrained(folder)
    torch.manual_seed(0)
    theirs.transformer.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights=False, target_modules=TARGETS))
    theirs.save_lora_weights(tmp_path, transformer_lora_layers=get_peft_model_state_dict(theirs.transformer))
    expected = images(theirs, noise)
    assert tiny_systems.psnr(without, expected) < 30  # the LoRA shows
    pipeline, params = load_pipeline(folder, loras=[read_lora(tmp_path / "pytorch_lora_weights.safetensors")])
    assert tiny_systems.psnr(draw(pipeline, params, noise), expected) > LEAST_PSNR


WORDS = ["batch_size=2", "total_images=6", "data.where.subcategory=face-hat", "data.heldout_where.split=train",
         "data.heldout_where.subcategory=face-hat", "evaluation.times=1", "evaluation.max_images=2",
         "evaluation.batch_size=2", "sampling.steps=2", "sampling.count=1", "log.every_images=2",
         "optimizer.warmup_images=0"]  # fmt: skip


@pytest.mark.slow
def test_an_adapter_trained_here_is_drawn_by_diffusers_as_by_the_run(tiny, tmp_path):
    _, folder, *_ = tiny
    start, run, out = (tmp_path / name for name in ("start", "run", "out"))
    assert main(["import", f"--from={folder}", f"--workdir={start}"]) == 0
    words = [*WORDS, "lora.rank=2", "lora.alpha=4.0", "optimizer.lr=0.3"]
    assert main(["train", f"--config={start / 'config.py'}", f"--workdir={run}",
                 *(f"--config.{word}" for word in words)]) == 0  # fmt: skip
    assert main(["export", f"--workdir={run}", f"--out={out}"]) == 0
    theirs = diffusers.ZImagePipeline.from_pretrained(folder)
    theirs.load_lora_weights(out)
    noise = noise_of(5, 2)
    expected = images(theirs, noise)
    assert tiny_systems.psnr(images(tiny[0], noise), expected) < 40  # training shows
    system, params, frozen, _ = load_run(str(run), "ema")
    drawn = draw_run(system, params, frozen, PROMPTS, seed=5, steps=STEPS, guidance=SCALE)
    assert tiny_systems.psnr(drawn / 255, expected) > ROUNDED


def test_a_tokenizer_without_the_marks_of_a_conversation_is_one_line(tiny, tmp_path):
    _, folder, *_ = tiny
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    path = copy / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text().replace("<|im_start|>", "<|im_begin|>"))
    with pytest.raises(ValueError, match=r"tokenizer has no token '<\|im_start\|>', which its system puts around each"):
        load_pipeline(copy, only=())
