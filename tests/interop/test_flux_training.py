"""Flux trained from a folder: a LoRA of its double and single streams, whose picture in diffusers is the run's."""

import json

import diffusers
import jax
import numpy as np
import pytest
import tiny_systems
import torch
from tiny_systems import GUIDANCE, PROMPTS, SIZE, STEPS

from lgm.cli import main
from lgm.drawing import draw
from lgm.train.opening import load_run

LEAST_PSNR = 45.0  # images of 8 bits, rounded
WORDS = ["batch_size=2", "total_images=6", "data.where.subcategory=face-hat", "data.heldout_where.split=train",
         "data.heldout_where.subcategory=face-hat", "evaluation.times=1", "evaluation.max_images=2",
         "evaluation.batch_size=2", "sampling.steps=2", "sampling.count=1", "log.every_images=2",
         "optimizer.warmup_images=0", "optimizer.lr=0.3", "lora.rank=2", "lora.alpha=4.0"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the text")  # captions are long for a tokenizer of bytes
def test_a_lora_of_dev_trained_here_is_drawn_by_diffusers_as_by_the_run(tmp_path):
    folder, start, run, out = (tmp_path / name for name in ("flux", "start", "run", "out"))
    tiny_systems.flux().save_pretrained(folder)
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sample_size": 8}))
    assert main(["import", f"--from={folder}", f"--workdir={start}"]) == 0
    assert main(["train", f"--config={start / 'config.py'}", f"--workdir={run}",
                 *(f"--config.{word}" for word in WORDS)]) == 0  # fmt: skip
    assert main(["export", f"--workdir={run}", f"--out={out}"]) == 0

    theirs = diffusers.FluxPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    keys = [jax.random.fold_in(jax.random.fold_in(jax.random.key(5), i), 0) for i in range(2)]
    noise = np.stack([np.asarray(jax.random.normal(key, (8, 8, 16))) for key in keys])
    packed = theirs._pack_latents(torch.from_numpy(noise.transpose(0, 3, 1, 2).copy()), 2, 16, 8, 8)
    images = lambda: theirs(PROMPTS, latents=packed, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
                            output_type="np", height=SIZE[0], width=SIZE[1]).images  # fmt: skip
    without = images()
    theirs.load_lora_weights(out)
    expected = images()
    assert tiny_systems.psnr(without, expected) < 30  # training shows
    system, params, frozen, _ = load_run(str(run), "ema")
    drawn = draw(system, params, frozen, PROMPTS, seed=5, steps=STEPS, guidance=GUIDANCE)
    assert tiny_systems.psnr(drawn / 255, expected) > LEAST_PSNR
