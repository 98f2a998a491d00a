"""`lgm sample --from`: the PNG is diffusers' picture, and what cannot be drawn is one line with nothing written."""

import shutil

import numpy as np
import pytest
import safetensors.numpy
import tiny_systems
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from PIL import Image
from tiny_systems import GUIDANCE, PROMPTS, SIZE, STEPS, noise_for, their_images

from lgm.cli import main
from lgm.pictures import read_image, read_size

LEAST_PSNR = 45.0  # two images in 8 bits that round alike but for a few values are at 60


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """(diffusers' pipeline, its folder)."""
    folder = tmp_path_factory.mktemp("released") / "sd"
    theirs = tiny_systems.stable_diffusion()
    theirs.save_pretrained(folder)
    return theirs, folder


def sample(folder, out, *arguments):
    return main(["sample", f"--from={folder}", f"--prompt={PROMPTS[0]}", f"--out={out}", f"--steps={STEPS}",
                 f"--guidance={GUIDANCE}", *arguments])  # fmt: skip


def test_text_to_image_is_diffusers_picture(released, tmp_path):
    theirs, folder = released
    noise = noise_for(theirs)
    np.save(tmp_path / "x.npy", noise[:1])
    assert sample(folder, tmp_path / "x.png", "--size=16", f"--noise={tmp_path / 'x.npy'}") == 0
    assert tiny_systems.psnr(read_image(tmp_path / "x.png"), their_images(theirs, noise)[0]) > LEAST_PSNR


def test_image_to_image_is_diffusers_picture(released, tmp_path):
    theirs, folder = released
    picture = np.random.default_rng(1).integers(0, 256, (*SIZE, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "start.png")
    other = StableDiffusionImg2ImgPipeline(**theirs.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    with torch.no_grad():
        pixels = torch.from_numpy(picture.transpose(2, 0, 1)[None].astype(np.float32) / 127.5 - 1)
        latents = theirs.vae.encode(pixels).latent_dist.mode() * theirs.vae.config.scaling_factor
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3))
    expected = other(PROMPTS[:1], image=latents, strength=0.6, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
                     negative_prompt=["rain"], generator=torch.Generator().manual_seed(3), output_type="np").images
    np.save(tmp_path / "x.npy", noise.numpy().transpose(0, 2, 3, 1))
    assert sample(folder, tmp_path / "x.png", f"--image={tmp_path / 'start.png'}", "--strength=0.6", "--negative=rain",
                  f"--noise={tmp_path / 'x.npy'}") == 0  # fmt: skip
    assert tiny_systems.psnr(read_image(tmp_path / "x.png"), expected[0]) > LEAST_PSNR


def test_a_start_image_is_fitted_to_the_size(released, tmp_path):
    Image.new("RGB", (37, 21), "red").save(tmp_path / "start.png")
    arguments = [f"--image={tmp_path / 'start.png'}", "--size=16x16", "--strength=0.2"]
    assert sample(released[1], tmp_path / "x.png", *arguments) == 0
    assert Image.open(tmp_path / "x.png").size == (16, 16)
    assert read_size("512") == (512, 512) and read_size("64x48") == (64, 48)


@pytest.mark.parametrize(("arguments", "part"), [
    (["--size=wide"], "size='wide' is no size in pixels"),
    (["--size=17"], "use multiples of 2 pixels"),
    (["--steps=0"], "steps=0 must be at least 1"),
    (["--steps=2000"], "steps=2000 must lie between 1 and the 1000 steps"),
    (["--strength=1.5"], "strength=1.5 must lie in (0, 1]"),
    (["--solver=eulr"], "did you mean 'euler'"),
    (["--image=no.png"], "no.png cannot be read as an image"),
    (["--noise=no.npy"], "no.npy cannot be read as a .npy array"),
    (["--lora=no.safetensors"], "no.safetensors is not there"),
    (["--single-file=no.safetensors"], "no.safetensors is not there"),
    (["--weights=raw"], "--weights goes with --workdir"),
    (["--config.lr=1"], "unknown argument"),
])  # fmt: skip
def test_words_that_cannot_be_drawn_write_nothing(released, tmp_path, capsys, arguments, part):
    assert sample(released[1], tmp_path / "x.png", *arguments) != 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("lgm sample: ") and part in lines[0], lines
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(("arguments", "part"), [
    (["--from=a", "--workdir=b"], "not allowed with"),
    ([], "one of the arguments --workdir --from is required"),
    (["--from=a", "--dtype=float8"], "invalid choice: 'float8'"),
])  # fmt: skip
def test_arguments_that_exclude_each_other_are_one_line(capsys, arguments, part):
    with pytest.raises(SystemExit) as stop:
        main(["sample", "--prompt=x", "--out=x.png", *arguments])
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code != 0 and len(lines) == 1 and part in lines[0], lines


def test_an_argument_of_folders_does_not_go_with_a_run(capsys):
    assert main(["sample", "--prompt=x", "--out=x.png", "--workdir=run", "--tile=64"]) != 0
    assert "--tile goes with --from=DIFFUSERS_DIR" in capsys.readouterr().err


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def corrupt(path):
    content = bytearray(path.read_bytes())
    content[8:40] = b"\xff" * 32
    path.write_bytes(bytes(content))


def misshape(path):
    tensors = safetensors.numpy.load_file(path)
    tensors["conv_in.weight"] = tensors["conv_in.weight"][:, :3].copy()
    safetensors.numpy.save_file(tensors, path)


def replace_with_the_vae(path):
    shutil.copy(path.parent.parent / "vae" / path.name, path)


def pickle_it(path):
    path.rename(path.with_suffix(".bin"))


@pytest.mark.parametrize(("damage", "part"), [
    (truncate, "it is cut short or corrupt"),
    (corrupt, "corrupt safetensors header"),
    (misshape, "tensor 'conv_in.weight' has shape (8, 3, 3, 3)"),
    (replace_with_the_vae, "is it of another architecture?"),
    (pickle_it, "only pickled weights"),
    (lambda path: path.write_bytes(b"version https://git-lfs"), "git-lfs pointer"),
    (lambda path: path.unlink(), "has no .safetensors file"),
])  # fmt: skip
def test_a_damaged_checkpoint_is_one_line(released, tmp_path, capsys, damage, part):
    folder = tmp_path / "sd"
    shutil.copytree(released[1], folder)
    damage(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert sample(folder, tmp_path / "x.png") != 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and part in lines[0] and "unet" in lines[0], lines
    assert not (tmp_path / "x.png").exists()
