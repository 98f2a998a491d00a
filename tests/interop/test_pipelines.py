"""Whole systems: the image of a diffusers folder is diffusers' image, and diffusers reads what is written here."""

import functools
import shutil

import diffusers
import numpy as np
import pytest
import safetensors.numpy
import tiny_systems
import torch
from PIL import Image
from tiny_systems import GUIDANCE, PROMPTS, SIZE, STEPS, draw, noise_for, their_images

from lgm.drawing import text_to_image
from lgm.pictures import read_image
from lgm.systems.folders import load_pipeline, save_pipeline
from lgm.systems.release import latent_size
from lgm.verbs.sample import draw_from_folder

# 45 dB is what a person could not see; float32 in another order of sums is far below (over 100 dB was measured)
LEAST_PSNR = 80.0

SLOW = pytest.mark.slow
SYSTEMS = ["stable_diffusion", pytest.param("stable_diffusion_xl", marks=SLOW)]


@pytest.fixture(scope="module")
def systems(tmp_path_factory):
    """name -> (diffusers' pipeline, its folder, our pipeline, our parameters), each made once."""

    @functools.cache
    def make(name):
        folder = tmp_path_factory.mktemp(name) / "theirs"
        theirs = getattr(tiny_systems, name)()
        theirs.save_pretrained(folder)
        return theirs, folder, *load_pipeline(folder)

    return make


@pytest.fixture
def stable_diffusion(systems):
    return systems("stable_diffusion")


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_image_of_a_folder_is_diffusers_image_both_ways(systems, tmp_path, name):
    theirs, folder, pipeline, params = systems(name)
    noise = noise_for(theirs)
    expected = their_images(theirs, noise)
    assert expected.std() > 0.1  # not a blank picture
    assert tiny_systems.psnr(draw(pipeline, params, noise), expected) > LEAST_PSNR

    save_pipeline(tmp_path / "ours", pipeline, params)
    for file in folder.rglob("*.safetensors"):
        original = safetensors.numpy.load_file(file)
        written = safetensors.numpy.load_file(tmp_path / "ours" / file.relative_to(folder))
        place = lambda key: key if key in written else f"text_model.{key}"
        assert {place(key) for key in original} == set(written)
        for key, value in original.items():
            assert value.tobytes() == written[place(key)].tobytes(), key
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "ours")
    assert type(again) is type(theirs)
    assert tiny_systems.psnr(their_images(again, noise), expected) > LEAST_PSNR


SCHEDULERS = {
    "sd15": (diffusers.PNDMScheduler, dict(skip_prk_steps=True, steps_offset=1)),  # what its folder names
    "dpm++": (diffusers.DPMSolverMultistepScheduler, {}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
    # at whole entries of the table; between them diffusers interpolates sigma and we its logarithm
    "heun": (diffusers.HeunDiscreteScheduler, dict(timestep_spacing="leading", steps_offset=1)),
}


@SLOW
@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_image_of_other_schedulers_is_diffusers_image(stable_diffusion, tmp_path, name):
    cls, options = SCHEDULERS[name]
    parts = stable_diffusion[0].components | {"scheduler": cls(**tiny_systems.SD_BETAS, **options)}
    theirs = diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    theirs.save_pretrained(tmp_path / "theirs")
    pipeline, params = load_pipeline(tmp_path / "theirs")
    noise = noise_for(theirs)
    assert tiny_systems.psnr(draw(pipeline, params, noise), their_images(theirs, noise)) > LEAST_PSNR


def test_image_to_image_equals_diffusers(stable_diffusion):
    theirs, _, pipeline, params = stable_diffusion
    other = diffusers.StableDiffusionImg2ImgPipeline(**theirs.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    image = np.random.default_rng(1).random((2, *SIZE, 3)).astype(np.float32)
    with torch.no_grad():
        posterior = theirs.vae.encode(torch.from_numpy(image.transpose(0, 3, 1, 2)) * 2 - 1).latent_dist
        latents = posterior.mode() * theirs.vae.config.scaling_factor
    expected = other(PROMPTS, image=latents, strength=0.6, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
                     negative_prompt=["rain"] * 2, generator=torch.Generator().manual_seed(3),
                     output_type="np").images  # fmt: skip
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3)).numpy().transpose(0, 2, 3, 1)
    ours = draw(pipeline, params, noise, image=image, strength=0.6, negative="rain")
    assert tiny_systems.psnr(ours, expected) > LEAST_PSNR


def test_one_seed_gives_one_image(stable_diffusion):
    _, _, pipeline, params = stable_diffusion
    first, again, other = (draw(pipeline, params, None, seed=seed) for seed in (1, 1, 2))
    assert first.tobytes() == again.tobytes() != other.tobytes()


@SLOW
def test_a_folder_is_drawn_to_a_png(stable_diffusion, tmp_path):
    _, folder, pipeline, params = stable_diffusion
    options = dict(steps=1, guidance=1.0, size=SIZE)
    images = draw_from_folder(folder, PROMPTS[:1], tmp_path / "x.png", seed=5, **options)
    expected = text_to_image(pipeline, params, PROMPTS[:1], seed=5, **options)
    np.testing.assert_array_equal(images, np.round(expected * 255).astype(np.uint8))
    np.testing.assert_array_equal(np.round(read_image(tmp_path / "x.png") * 255), images[0])
    draw_from_folder(folder, PROMPTS[:1], tmp_path / "grid.png", count=2, image=tmp_path / "x.png", **options)
    assert Image.open(tmp_path / "grid.png").width > 2 * SIZE[1]


def test_words_that_cannot_be_drawn_are_refused_in_one_line(stable_diffusion, tmp_path):
    folder = stable_diffusion[1]
    (tmp_path / "x.png").write_bytes(b"")
    for change, message in [
        (dict(prompts=[" "]), "prompt is empty"),
        (dict(count=0), "count=0 must be at least 1"),
        (dict(solver="guess"), "unknown solver 'guess'"),
        (dict(size=(17, 16)), "use multiples of 2 pixels"),
        (dict(image=folder / "model_index.json"), "model_index.json cannot be decoded"),
        (dict(lora=["no.safetensors"]), "no.safetensors is not there"),
        (dict(lora=["x.png:high"]), "the strength 'high' is no finite number"),
    ]:
        arguments = dict(prompts=PROMPTS, out=tmp_path / "no.png", size=SIZE) | change
        with pytest.raises(ValueError, match=message) as error:
            draw_from_folder(folder, **arguments)
        assert "\n" not in str(error.value) and not (tmp_path / "no.png").exists()


def test_what_cannot_be_drawn_is_one_line(stable_diffusion):
    _, _, pipeline, params = stable_diffusion
    with pytest.raises(ValueError, match="an image of 17 x 16 cannot be drawn; use multiples of 2 pixels"):
        latent_size(pipeline, (17, 16))
    with pytest.raises(ValueError, match="noise has shape"):
        draw(pipeline, params, np.zeros((1, 8, 8, 4), np.float32))
    with pytest.raises(ValueError, match="strength=0 must lie in"):
        draw(pipeline, params, noise_for(stable_diffusion[0]), image=np.zeros((2, 16, 16, 3)), strength=0)
    with pytest.raises(ValueError, match="unknown solver"):
        draw(pipeline, params, noise_for(stable_diffusion[0]), solver="guess")


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda f: (f / "model_index.json").unlink(), "model_index.json is not there"),
        (lambda f: edit(f / "model_index.json", "StableDiffusionPipeline", "AudioPipeline"), "'AudioPipeline' is not"),
        (lambda f: (f / "unet" / "config.json").write_text("{"), "config.json is no JSON object"),
        (lambda f: edit(f / "unet" / "config.json", '"silu"', '"relu"'), "act_fn='relu' has no equal here"),
        (lambda f: edit(f / "unet" / "config.json", '"layers_per_block": 1', '"layers_per_block": 2'),
         "lacks 'down_blocks.0.resnets.1"),
        (lambda f: edit(f / "vae" / "config.json", '"latent_channels": 4', '"latent_channels": 8'), "has shape"),
        (lambda f: edit(f / "model_index.json", '"DDIMScheduler"', "null"), "names no scheduler"),
        (lambda f: (f / "text_encoder" / "model.safetensors").write_bytes(b"x" * 100), "no safetensors file"),
        (lambda f: (f / "tokenizer" / "tokenizer.json").write_text("?"), "the tokenizer in"),
    ],
)  # fmt: skip
def test_a_damaged_folder_is_one_line(stable_diffusion, tmp_path, damage, message):
    folder = tmp_path / "sd"
    shutil.copytree(stable_diffusion[1], folder)
    damage(folder)
    with pytest.raises(ValueError, match=message) as error:
        load_pipeline(folder)
    assert "\n" not in str(error.value)


def test_a_folder_that_exists_is_not_overwritten_and_a_failure_leaves_nothing(stable_diffusion, tmp_path):
    _, _, pipeline, params = stable_diffusion
    with pytest.raises(ValueError, match="is there already"):
        save_pipeline(tmp_path, pipeline, params)
    with pytest.raises(KeyError):
        save_pipeline(tmp_path / "new", pipeline, {k: v for k, v in params.items() if k != "vae"})
    assert list(tmp_path.iterdir()) == []
