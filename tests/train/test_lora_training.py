"""A LoRA trained here from config: only its leaves move, and diffusers' picture with it is ours."""

import sys
from pathlib import Path

import diffusers
import jax
import numpy as np
import pytest
import safetensors.numpy

sys.path.insert(0, str(Path(__file__).parents[1] / "interop"))

import tiny_systems  # noqa: E402
from tiny_systems import GUIDANCE, PROMPTS, STEPS  # noqa: E402

from lgm import config as schema  # noqa: E402
from lgm.cli import main  # noqa: E402
from lgm.drawing import draw  # noqa: E402
from lgm.pictures import read_image  # noqa: E402
from lgm.systems.folders import load_pipeline  # noqa: E402
from lgm.train.opening import load_run  # noqa: E402
from lgm.train.restoring import restore_weights  # noqa: E402
from lgm.train.start import open_system  # noqa: E402

LEAST_PSNR = 45.0  # images of 8 bits, rounded
pytestmark = pytest.mark.filterwarnings("ignore:the text")  # captions are long for a tokenizer of bytes


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(released folder, the run of a LoRA trained on it for three steps, the folder it was exported to)."""
    root = tmp_path_factory.mktemp("lora")
    folder, start, run, out = (root / name for name in ("sd", "start", "run", "out"))
    tiny_systems.smallest_stable_diffusion().save_pretrained(folder)
    assert main(["import", f"--from={folder}", f"--workdir={start}"]) == 0
    words = ["batch_size=2", "total_images=6", "data.resolution=16", "data.where.subcategory=face-hat",
             "data.heldout_where.subcategory=face-hat", "data.heldout_where.split=train", "evaluation.times=1",
             "evaluation.max_images=2", "evaluation.batch_size=2", "sampling.steps=4", "sampling.guidance=3.0",
             "sampling.count=1", "log.every_images=2", "optimizer.warmup_images=0", "optimizer.lr=0.3",
             "lora.rank=3", "lora.alpha=6.0", "lora.targets=('/(qkv|q|kv|out|proj_in)/kernel$','/fc1/kernel$')"]
    assert main(["train", f"--config={start / 'config.py'}", f"--workdir={run}",
                 *(f"--config.{word}" for word in words)]) == 0  # fmt: skip
    assert main(["export", f"--workdir={run}", f"--out={out}"]) == 0
    return folder, run, out


@pytest.mark.slow
def test_only_the_adapter_is_trained_and_kept(trained):
    folder, run, _ = trained
    config = schema.read(run)
    system, frozen, start = open_system(config)
    state, step = restore_weights(run, jax.eval_shape(system.init, jax.random.key(0)), "raw")
    assert step == 3 and start is None and list(state) == ["lora"]
    assert all(np.abs(pair["up"]).max() > 0 for pair in state["lora"].values())
    plain = load_pipeline(folder)[1]["unet"]
    jax.tree.map(np.testing.assert_array_equal, frozen["denoiser"], plain)


@pytest.mark.slow
def test_diffusers_loads_it_and_draws_the_runs_picture(trained):
    folder, run, out = trained
    noise = np.stack([np.asarray(jax.random.normal(jax.random.fold_in(jax.random.fold_in(jax.random.key(5), i), 0),
                                                   (8, 8, 4))) for i in range(2)])  # fmt: skip
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    without = tiny_systems.their_images(theirs, noise)
    theirs.load_lora_weights(out)
    expected = tiny_systems.their_images(theirs, noise)
    assert tiny_systems.psnr(without, expected) < 30  # the LoRA shows
    system, params, frozen, _ = load_run(str(run), "ema")
    drawn = draw(system, params, frozen, PROMPTS, seed=5, steps=STEPS, guidance=GUIDANCE)
    assert tiny_systems.psnr(drawn / 255, expected) > LEAST_PSNR


@pytest.mark.slow
def test_the_command_line_merges_it_into_the_folder(trained, tmp_path):
    folder, _, out = trained
    noise = np.random.default_rng(0).standard_normal((2, 8, 8, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", noise[:1])
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    theirs.load_lora_weights(out)
    expected = tiny_systems.their_images(theirs, noise)[0]
    command = ["sample", f"--from={folder}", f"--lora={out}", f"--prompt={PROMPTS[0]}", f"--out={tmp_path / 'x.png'}",
               f"--steps={STEPS}", f"--guidance={GUIDANCE}", "--size=16", f"--noise={tmp_path / 'x.npy'}"]
    assert main(command) == 0
    assert tiny_systems.psnr(read_image(tmp_path / "x.png"), expected) > LEAST_PSNR


@pytest.mark.slow
def test_a_file_for_other_weights_is_one_line(trained, tmp_path, capsys):
    folder, _, out = trained
    tensors = safetensors.numpy.load_file(out / "pytorch_lora_weights.safetensors")
    renamed = {name.replace("mid_block", "middle_block"): tensor for name, tensor in tensors.items()}
    safetensors.numpy.save_file(renamed, tmp_path / "other.safetensors")
    capsys.readouterr()
    assert main(["sample", f"--from={folder}", f"--lora={tmp_path / 'other.safetensors'}", "--prompt=x",
                 f"--out={tmp_path / 'x.png'}"]) != 0  # fmt: skip
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "which this system does not have" in lines[0], lines
    assert not (tmp_path / "x.png").exists()
