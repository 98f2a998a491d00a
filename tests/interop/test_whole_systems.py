"""Systems that are told a language model's features: drawn, imported, exported, trained and adapted, the picture is
diffusers'."""

import dataclasses
import functools
import json
import re
import shutil
import warnings
from collections.abc import Callable, Sequence

import diffusers
import jax
import numpy as np
import pytest
import tiny_systems
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.pipelines.flux2.pipeline_flux2 import format_input
from tiny_systems import PROMPTS, SIZE, STEPS

from lgm.cli import main
from lgm.drawing import draw as draw_run
from lgm.drawing import text_to_image
from lgm.interop.fields import STORED
from lgm.interop.lora_files import read_lora
from lgm.pictures import read_image
from lgm.systems.folders import load_pipeline
from lgm.systems.text import tokenize
from lgm.train.opening import load_run

LEAST_PSNR = 80.0  # float32 in another order of sums is far below (117 dB was seen)
ROUNDED = 45.0  # images of 8 bits
SCALE = 3.0  # of guidance


@dataclasses.dataclass(frozen=True)
class Case:
    """What differs: the tiny system, its words for our scale of guidance, how it is given noise [B, C, h, w] and a
    question, its pipeline from images, what a LoRA changes, its latents' channels, a mark that its tokenizer needs."""

    make: Callable
    guided: Callable[[int], dict]
    given: Callable
    asked: Callable[[object, str], str]
    dropped: int
    from_images: type | None
    targets: Sequence[str]
    channels: int = 16
    mark: str = "<|im_start|>"


def of_a_chat(theirs, prompt, thinking=True):
    return theirs.tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False,
                                                add_generation_prompt=True, enable_thinking=thinking)  # fmt: skip


def of_an_instruction(theirs, prompt):
    return theirs.tokenizer.apply_chat_template(format_input([prompt])[0], tokenize=False)


FLUX2_TARGETS = ("to_q", "to_k", "add_v_proj", "to_out.0", "to_add_out", "to_qkv_mlp_proj", "linear_in", "x_embedder")
CASES = {
    "z_image": Case(
        tiny_systems.z_image,
        lambda count: dict(guidance_scale=SCALE - 1.0),  # which its pipeline counts from 0
        lambda theirs, x: x, of_a_chat, 0, diffusers.ZImageImg2ImgPipeline,
        ("to_q", "to_k", "to_v", "to_out.0", "feed_forward.w1", "feed_forward.w2", "cap_embedder.1"),
    ),
    "qwen_image": Case(
        tiny_systems.qwen_image,
        lambda count: dict(true_cfg_scale=SCALE, negative_prompt=[" "] * count),
        lambda theirs, x: theirs._pack_latents(x, *x.shape),
        lambda theirs, prompt: theirs.prompt_template_encode.format(prompt), 34, diffusers.QwenImageImg2ImgPipeline,
        ("to_q", "to_k", "add_v_proj", "to_out.0", "to_add_out", "img_mod.1", "txt_mlp.net.2", "txt_in", "proj_out"),
    ),
    "flux2": Case(
        tiny_systems.flux2, lambda count: dict(guidance_scale=SCALE), lambda theirs, x: theirs._patchify_latents(x),
        of_an_instruction, 0, None, FLUX2_TARGETS, 32, "[INST]",
    ),
    "flux2_klein": Case(
        tiny_systems.flux2_klein, lambda count: dict(guidance_scale=SCALE),
        lambda theirs, x: theirs._patchify_latents(x), functools.partial(of_a_chat, thinking=False), 0, None,
        FLUX2_TARGETS, 32,
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Tiny:
    """A case, diffusers' pipeline, its folder, which is for 16 pixels, noise and diffusers' pictures of it."""

    case: Case
    theirs: diffusers.DiffusionPipeline
    folder: object
    noise: np.ndarray
    expected: np.ndarray


# one for every day
@pytest.fixture(scope="module", params=[pytest.param(name, marks=() if name == "qwen_image" else pytest.mark.slow)
                                        for name in CASES])
def tiny(request, tmp_path_factory):
    case, folder = CASES[request.param], tmp_path_factory.mktemp(request.param) / "theirs"
    theirs = case.make()
    theirs.save_pretrained(folder)
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sample_size": 8}))
    noise = np.random.default_rng(0).standard_normal((len(PROMPTS), 8, 8, case.channels)).astype(np.float32)
    return Tiny(case, theirs, folder, noise, images(case, theirs, noise))


def images(case, theirs, noise, **options):
    theirs.set_progress_bar_config(disable=True)
    if noise is not None:
        options["latents"] = case.given(theirs, torch.from_numpy(noise.transpose(0, 3, 1, 2).copy()))
    prompts = list(PROMPTS)  # which the pipeline of Z-Image changes
    return theirs(prompt=prompts, num_inference_steps=STEPS, output_type="np", height=SIZE[0], width=SIZE[1],
                  **case.guided(len(PROMPTS)), **options).images  # fmt: skip


def draw(pipeline, params, noise, **options):
    return text_to_image(pipeline, params, PROMPTS, steps=STEPS, guidance=SCALE, size=SIZE, noise=noise, **options)


def noise_of(case, seed=5):
    keys = [jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), i), 0) for i in range(len(PROMPTS))]
    return np.stack([np.asarray(jax.random.normal(key, (8, 8, case.channels))) for key in keys])


def drawn_by(run):
    system, params, frozen, _ = load_run(str(run), "ema")
    return draw_run(system, params, frozen, PROMPTS, seed=5, steps=STEPS, guidance=SCALE) / 255


@pytest.mark.slow
def test_sample_from_a_folder_is_diffusers_picture(tiny, tmp_path):
    np.save(tmp_path / "x.npy", tiny.noise)
    words = [f"--steps={STEPS}", f"--guidance={SCALE}", f"--noise={tmp_path / 'x.npy'}", f"--out={tmp_path / 'x.png'}"]
    assert main(["sample", f"--from={tiny.folder}", *(f"--prompt={prompt}" for prompt in PROMPTS), *words]) == 0
    assert tiny.expected.std() > 0.1  # not a blank picture
    for i, picture in enumerate(tiny.expected):
        assert tiny_systems.psnr(read_image(tmp_path / f"x-{i + 1}.png"), picture) > ROUNDED


def test_pictures_agree_to_rounding_and_the_ids_are_those_of_the_question(tiny):
    pipeline, params = load_pipeline(tiny.folder)
    assert tiny_systems.psnr(draw(pipeline, params, tiny.noise), tiny.expected) > LEAST_PSNR
    for length in (30, 512):  # cut, and padded
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ids = tokenize(pipeline, PROMPTS, length)["text_encoder"]
        assert bool(caught) == (length == 30)
        asked = [tiny.case.asked(tiny.theirs, prompt) for prompt in PROMPTS]
        wanted = tiny.theirs.tokenizer(asked, padding="max_length", max_length=tiny.case.dropped + length,
                                       truncation=True, add_special_tokens=False, return_tensors="np")  # fmt: skip
        np.testing.assert_array_equal(ids, np.where(wanted.attention_mask, wanted.input_ids, ~wanted.input_ids))


@pytest.mark.slow
@pytest.mark.parametrize("tiny", [name for name, case in CASES.items() if case.from_images], indirect=True,
                         scope="module")  # of Flux.2 diffusers has no such pipeline
def test_image_to_image_equals_diffusers(tiny, monkeypatch):
    other = tiny.case.from_images(**tiny.theirs.components)
    image = np.random.default_rng(1).random((2, *SIZE, 3)).astype(np.float32)
    noise = torch.randn((2, 16, 8, 8), generator=torch.Generator().manual_seed(3)).numpy().transpose(0, 2, 3, 1)
    ours = draw(*load_pipeline(tiny.folder), noise, image=image)
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    expected = images(tiny.case, other, None, image=torch.from_numpy(image.transpose(0, 3, 1, 2)),
                      generator=torch.Generator().manual_seed(3))  # fmt: skip
    assert tiny_systems.psnr(ours, expected) > LEAST_PSNR


def stated(part):
    """The options of a network, less those of the files and the size that ours are for."""
    config = part.config.to_dict() if hasattr(part.config, "to_dict") else dict(part.config)
    kept = {key: value for key, value in config.items() if not key.startswith("_") and key != "sample_size"}
    return json.loads(json.dumps({key: value for key, value in kept.items() if key not in STORED}))


@pytest.mark.slow
def test_what_is_imported_is_exported_for_diffusers_bit_for_bit_and_draws_the_same(tiny, tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    assert main(["import", f"--from={tiny.folder}", f"--workdir={run}"]) == 0
    assert main(["export", f"--workdir={run}", f"--out={out}"]) == 0
    before, theirs = (diffusers.DiffusionPipeline.from_pretrained(folder) for folder in (tiny.folder, out))
    assert type(theirs) is type(before)
    for place, part in before.components.items():
        if isinstance(part, torch.nn.Module):  # whole, whatever of it is used
            tensors, again = part.state_dict(), getattr(theirs, place).state_dict()
            assert tensors.keys() == again.keys()
            assert all(torch.equal(tensor, again[name]) for name, tensor in tensors.items()), place
            assert stated(getattr(theirs, place)) == stated(part)
    assert tiny_systems.psnr(drawn_by(run), images(tiny.case, theirs, noise_of(tiny.case))) > ROUNDED


@pytest.mark.slow
def test_a_lora_of_diffusers_merged_at_load_gives_its_picture(tiny, tmp_path):
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    theirs = type(tiny.theirs).from_pretrained(tiny.folder)
    torch.manual_seed(0)
    theirs.transformer.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights=False,
                                              target_modules=list(tiny.case.targets)))  # fmt: skip
    theirs.save_lora_weights(tmp_path, transformer_lora_layers=get_peft_model_state_dict(theirs.transformer))
    expected = images(tiny.case, theirs, tiny.noise)
    assert tiny_systems.psnr(tiny.expected, expected) < 30  # the LoRA shows
    loras = [read_lora(tmp_path / "pytorch_lora_weights.safetensors")]
    assert tiny_systems.psnr(draw(*load_pipeline(tiny.folder, loras=loras), tiny.noise), expected) > LEAST_PSNR


WORDS = ["batch_size=2", "total_images=6", "data.where.subcategory=face-hat", "data.heldout_where.split=train",
         "data.heldout_where.subcategory=face-hat", "evaluation.times=1", "evaluation.max_images=2",
         "evaluation.batch_size=2", "sampling.steps=2", "sampling.count=1", "log.every_images=2",
         "optimizer.warmup_images=0"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("tiny", [name for name in CASES if name != "flux2_klein"], indirect=True, scope="module")
def test_an_adapter_trained_here_is_drawn_by_diffusers_as_by_the_run(tiny, tmp_path):
    """In every form. All of klein's that is trained is Flux.2-dev's, too."""
    start, run = tmp_path / "start", tmp_path / "run"
    assert main(["import", f"--from={tiny.folder}", f"--workdir={start}"]) == 0
    words = [*WORDS, "lora.rank=2", "lora.alpha=4.0", "optimizer.lr=0.3"]
    assert main(["train", f"--config={start / 'config.py'}", f"--workdir={run}",
                 *(f"--config.{word}" for word in words)]) == 0  # fmt: skip
    noise, ours = noise_of(tiny.case), drawn_by(run)
    forms = ["lora-diffusers", "lora-kohya"]
    if not isinstance(tiny.theirs, diffusers.ZImagePipeline):  # of which diffusers does not know ComfyUI's own names
        forms.append("lora-comfy")
    for form in forms:
        assert main(["export", f"--workdir={run}", f"--out={tmp_path / form}", f"--form={form}"]) == 0
        theirs = type(tiny.theirs).from_pretrained(tiny.folder)
        theirs.load_lora_weights(tmp_path / form)
        expected = images(tiny.case, theirs, noise)
        assert tiny_systems.psnr(images(tiny.case, tiny.theirs, noise), expected) < 40  # training shows
        assert tiny_systems.psnr(ours, expected) > ROUNDED, form


def test_a_tokenizer_without_the_marks_of_a_conversation_is_one_line(tiny, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny.folder, copy)
    path = copy / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text().replace(tiny.case.mark, "<|other|>"))
    line = f"tokenizer has no token {tiny.case.mark!r}, which its system puts around each"
    with pytest.raises(ValueError, match=re.escape(line)):
        load_pipeline(copy, only=())
