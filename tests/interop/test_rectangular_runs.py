"""A run of SDXL at a rectangle: what it is told, and that diffusers draws the same from its export."""

import diffusers
import jax
import numpy as np
import pytest
import tiny_systems
from tiny_systems import GUIDANCE, PROMPTS, STEPS, psnr, their_images

from lgm import config as schema
from lgm.cli import main
from lgm.drawing import draw
from lgm.files import write_json
from lgm.parallel import make_layout
from lgm.train import denoise
from lgm.train.opening import load_run

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:the text")]


def test_sdxl_is_told_random_cuts_and_is_drawn_by_diffusers_from_its_export(tmp_path):
    tiny_systems.stable_diffusion_xl().save_pretrained(tmp_path / "xl")
    run = tmp_path / "run"
    assert main(["import", f"--from={tmp_path / 'xl'}", f"--workdir={run}"]) == 0
    values = schema.to_dict(schema.read(run))
    values |= {"batch_size": 2, "total_images": 4, "data": values["data"] | dict(
        source="flags", where={"code": ["np", "qa"]}, heldout_where={"code": "np"}, resolution=(24, 16),
        latents="step", flip=True, random_crop=True)}  # fmt: skip
    values["evaluation"] |= {"max_images": 1}
    values["optimizer"] |= {"warmup_images": 0}
    config = schema.from_dict(values)
    made = denoise.make_task(config, make_layout({"data": 1}), tmp_path)
    batches = [next(made.batches) for _ in range(8)]
    assert all(batch["image"].shape == (2, 24, 16, 3) for batch in batches)
    micro = np.concatenate([batch["micro"] for batch in batches])
    assert {tuple(row[4:]) for row in micro.tolist()} == {(24, 16)} and len({*micro[:, 3].tolist()}) > 2
    assert set(micro[:, 2]) == {0} or set(micro[:, 3]) != {0}
    params, key = jax.eval_shape(made.init, jax.random.key(0)), jax.random.key(0)
    given = lambda params, batch: made.loss(params, made.frozen, batch | made.draw(batch, key), key)[0]
    assert jax.eval_shape(given, params, batches[0]).shape == ()
    write_json(run / "config.json", schema.to_dict(config))
    assert main(["export", f"--workdir={run}", f"--out={tmp_path / 'out'}"]) == 0
    system, params, frozen, _ = load_run(str(run), "ema")
    ours = draw(system, params, frozen, PROMPTS, seed=5, steps=STEPS, guidance=GUIDANCE)
    assert ours.shape[1:] == (24, 16, 3)
    noise = np.stack([np.asarray(jax.random.normal(jax.random.fold_in(jax.random.fold_in(jax.random.key(5), i), 0),
                                                   (12, 8, 4))) for i in range(len(PROMPTS))])  # fmt: skip
    theirs = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert theirs.unet.config.sample_size == 10  # the side of a square of nearly that area
    assert psnr(ours / 255, their_images(theirs, noise, size=(24, 16))) > 45.0  # images of 8 bits, rounded
