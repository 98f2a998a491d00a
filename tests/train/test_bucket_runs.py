"""Training on images of several shapes: flags, which are shipped."""

import shutil

import jax
import numpy as np
import pytest

from lgm import config as schema
from lgm.data import open_images
from lgm.drawing import draw
from lgm.parallel import make_layout
from lgm.train import denoise, loop

pytestmark = pytest.mark.slow

CONFIG = dict(
    name="flags", batch_size=4, total_images=16,
    data=dict(source="flags", where={"code": ["a*", "b*", "ch", "np", "qa", "va"]},
              heldout_where={"code": ["ch", "ne", "np", "va", "us"]},
              resolution=64, buckets=8),
    text=dict(encoder=dict(family="clip_text", vocab_size=4096, width=16, depth=1, heads=2, max_length=24)),
    model=dict(family="mmdit", channels=32, patch_size=1, width=16, depth=2, heads=2, text_dim=16, pooled_dim=16,
               position_size=16, base_size=8),
    sampling=dict(steps=1, count=4, guidance=1.0),
    evaluation=dict(times=1, batch_size=4),
    log=dict(every_images=8, checkpoint_every_images=8),
)


def task(tmp_path, **data):
    config = schema.from_dict({**CONFIG, "data": {**CONFIG["data"], **data}})
    return config, denoise.make_task(config, make_layout({"data": 1}), tmp_path)


@pytest.mark.parametrize("latents", ["memory", "step"])
def test_batches_are_of_one_shape_and_no_flag_is_lost(tmp_path, latents):
    config, made = task(tmp_path, latents=latents)
    images = open_images("flags", config.data.where)
    count, shapes, times = len(images), set(), np.zeros(len(images), int)
    batches = [next(made.batches) for _ in range(count)]  # four epochs: a bucket of one flag has had its batch
    for batch in batches:
        rows = batch["latent"] if latents == "memory" else batch["image"]
        shapes.add(rows.shape[1:3])
        np.add.at(times, batch["index"], 1)
        stored = images.take(batch["index"]).sizes()
        ratio, wanted = rows.shape[2] / rows.shape[1], stored[:, 1] / stored[:, 0]
        assert np.abs(np.log(ratio / wanted)).max() < np.log(1.35)  # what is next to it is further
    assert len(shapes) > 2 and times.min() >= 1
    areas = [height * width for height, width in shapes]
    assert max(areas) / min(areas) < 1.3


def test_a_run_is_resumed_exactly_and_measured_and_drawn_in_every_shape(tmp_path):
    config, _ = task(tmp_path)
    layout = make_layout({"data": 1})
    whole = loop.train(config, tmp_path / "whole", denoise.make_task, layout, quiet=True)
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    newest = max(int(path.name) for path in (tmp_path / "part/checkpoints").iterdir() if path.name.isdigit())
    shutil.rmtree(tmp_path / "part/checkpoints" / str(newest))
    again = loop.train(config, tmp_path / "part", denoise.make_task, layout, quiet=True)
    assert newest == 4 and int(again.step) == 4
    for ours, theirs in zip(jax.tree.leaves(whole), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    made = denoise.make_task(config, layout, tmp_path)
    figures = made.heldout(whole.ema)
    assert np.isfinite(figures["heldout_loss"])
    system, frozen, _ = denoise.open_system(config, layout)
    parts = denoise.feeding.heldout_parts(system, frozen, open_images("flags", config.data.heldout_where, 64))
    assert len(parts) > 2
    params, drawing = system.whole(whole.ema, frozen), lambda: frozen
    losses = [denoise.heldout_figures(system, params, drawing, [part]) for part in parts]
    weights = np.array([len(part.images) for part in parts])
    mean = (np.array([loss["heldout_loss"] for loss in losses]) * weights).sum() / weights.sum()
    assert figures["heldout_loss"] == pytest.approx(mean, rel=1e-6)
    drawn = draw(system, system.whole(whole.ema, frozen), frozen, ["flag of Peru"], size=(24, 40))
    assert drawn.shape == (1, 24, 40, 3) and list((tmp_path / "whole/samples").iterdir())


@pytest.mark.parametrize("change, line", [
    (dict(data=dict(buckets=12)), "config.data.buckets=12 must be a multiple of 8"),
    (dict(data=dict(resolution=36)), "config.data.resolution=36 must be a multiple of config.data.buckets=8"),
    (dict(model=dict(position_size=5)), "raise that"),
    (dict(evaluation=dict(distance=5)), "set it to 0 with config.data.buckets"),
])
def test_what_does_not_go_with_buckets_is_refused_in_one_line(tmp_path, change, line):
    if change.get("data", {}).get("buckets") == 12:
        change["data"]["resolution"] = 24
    values = {**CONFIG, **{key: {**CONFIG[key], **value} for key, value in change.items()}}
    with pytest.raises(ValueError, match=line) as caught:
        denoise.open_system(schema.from_dict(values), make_layout({"data": 1}))
    assert "\n" not in str(caught.value)
