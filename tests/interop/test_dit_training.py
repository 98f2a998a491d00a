"""DiT trained on classes: from scratch, and from a folder whose pipeline diffusers then loads with the new names."""

import json

import diffusers
import numpy as np
import pytest
import tiny_systems
import torch
from released_dit import as_released

from lgm import config as schema
from lgm.cli import main
from lgm.drawing import draw, text_to_image
from lgm.systems.folders import load_pipeline
from lgm.train.opening import load_run

SMALL = ["batch_size=2", "total_images=6", "data.where.subcategory=('face-hat','face-glasses')",
         "data.heldout_where.subcategory=face-hat", "data.heldout_where.split=train", "evaluation.times=1",
         "evaluation.max_images=2", "evaluation.batch_size=2", "sampling.steps=2", "sampling.count=1",
         "log.every_images=2", "optimizer.warmup_images=0"]  # fmt: skip
SCRATCH = """
from ml_collections import ConfigDict


def get_config():
    return ConfigDict(dict(
        name="dit", batch_size=2, total_images=6,
        data=dict(caption="subcategory", where=dict(subcategory=("face-hat", "face-glasses")),
                  heldout_where=dict(subcategory="face-hat")),
        text=dict(classes=("face-hat", "face-glasses")),
        model=dict(family="dit", channels=32, patch_size=2, width=16, depth=1, heads=2, classes=2, base_size=4),
        process=dict(name="ddpm"),
        loss=dict(target="eps", density=dict(name="discrete"), variance=1.0),
        sampling=dict(steps=2, count=2), evaluation=dict(times=1, batch_size=2, max_images=2),
        log=dict(every_images=2),
    ))
"""


def tiny_dit(folder):
    """Saved; the pipeline's label for no class is 1000, so there must be as many."""
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=2, in_channels=4, out_channels=8, sample_size=8,
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(beta_schedule="linear")  # which clips, by default
    theirs = diffusers.DiTPipeline(tiny_systems.randomized(transformer, 0.15), tiny_systems.vae(), scheduler)
    theirs.save_pretrained(folder)
    as_released(theirs.transformer)
    return theirs


def images(theirs, classes):
    theirs.set_progress_bar_config(disable=True)
    return theirs(classes, guidance_scale=3.0, num_inference_steps=4, output_type="np",
                  generator=torch.Generator().manual_seed(0)).images  # fmt: skip


def noise(count):
    x = torch.randn((count, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    return x.numpy().transpose(0, 2, 3, 1)


@pytest.mark.slow
def test_a_dit_from_a_folder_is_trained_with_its_variances_and_drawn_by_diffusers(tmp_path):
    folder, run, out = tmp_path / "dit", tmp_path / "run", tmp_path / "out"
    theirs = tiny_dit(folder)
    expected = images(theirs, [3, 7])
    pipeline, params = load_pipeline(folder)
    ours = text_to_image(pipeline, params, ["class 3", "7"], steps=4, guidance=3.0, noise=noise(2))
    assert tiny_systems.psnr(ours, expected) > 80

    assert main(["import", f"--from={folder}", f"--workdir={run}"]) == 0
    config = schema.read(run)
    assert config.loss.variance == 1.0 and config.data.caption == "subcategory" and len(config.text.classes) > 90
    assert main(["train", f"--config={run / 'config.py'}", f"--workdir={run}",
                 *(f"--config.{word}" for word in (*SMALL, "optimizer.lr=1e-2"))]) == 0  # fmt: skip
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["bound"]) for row in rows if "bound" in row) and any("bound" in row for row in rows)
    assert main(["export", f"--workdir={run}", f"--out={out}"]) == 0
    again = diffusers.DiTPipeline.from_pretrained(out)
    as_released(again.transformer)
    label = again.get_label_ids(["face-hat"])[0]
    assert config.text.classes[label] == "face-hat"
    drawn = images(again, [label])
    pipeline, params = load_pipeline(out)
    ours = text_to_image(pipeline, params, ["face-hat"], steps=4, guidance=3.0, noise=noise(1))
    assert tiny_systems.psnr(ours, drawn) > 80
    assert tiny_systems.psnr(images(theirs, [label]), drawn) < 40  # training shows


@pytest.mark.slow
def test_a_dit_learns_classes_from_scratch(tmp_path, capsys):
    path, run, out = tmp_path / "dit.py", tmp_path / "run", tmp_path / "out"
    path.write_text(SCRATCH)
    assert main(["train", f"--config={path}", f"--workdir={run}", "--config.optimizer.lr=0.1"]) == 0
    system, params, frozen, _ = load_run(str(run), "ema")
    names = ("face-hat", "class 0", "face-glasses")
    one, again, other = (draw(system, params, frozen, [name], seed=1) for name in names)
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    assert main(["export", f"--workdir={run}", f"--out={out}"]) == 0
    assert main(["sample", f"--from={out}", "--prompt=face-hat", f"--out={tmp_path / 'x.png'}"]) == 0
    capsys.readouterr()
    assert main(["sample", f"--from={out}", "--prompt=face-hut", f"--out={tmp_path / 'y.png'}"]) != 0
    assert "'face-hut' names no class" in capsys.readouterr().err and not (tmp_path / "y.png").exists()


@pytest.mark.parametrize(("override", "line"), [
    ("text.classes=('a','b','c')", "config.text.classes are 3, more than config.model.classes=2"),
    ("text.classes=('a','A')", "config.text.classes has a name twice"),
    ("text.classes=('a','b')", "names no class; write"),
    ("data.caption=subcat", "has no such text; did you mean 'subcategory'"),
    ("model.learned_sigma=False", "config.loss.variance=1.0 needs a dit with config.model.learned_sigma=True"),
    ("process.name=rectified_flow", "config.loss.variance=1.0: learned variances belong to the steps of a table"),
])  # fmt: skip
def test_classes_that_cannot_be_are_one_line(tmp_path, capsys, override, line):
    path = tmp_path / "dit.py"
    path.write_text(SCRATCH)
    assert main(["train", f"--config={path}", f"--workdir={tmp_path / 'run'}", f"--config.{override}"]) != 0
    printed = capsys.readouterr().err
    assert line in printed and len(printed.strip().splitlines()) == 1, printed
