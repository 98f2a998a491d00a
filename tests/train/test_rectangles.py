"""A resolution of (height, width), and sources that are mixed: the whole way of a run at 32 x 48."""

import json
import math
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from lgm import config as schema
from lgm.cli import main
from lgm.config.reading import read_config_file
from lgm.drawing import draw
from lgm.parallel import make_layout
from lgm.planning.abstract import abstract_batch, abstract_system
from lgm.planning.rehearsal import rehearsal
from lgm.scaling import ladders
from lgm.train import denoise, loop
from lgm.train.opening import load_run
from lgm.train.work import training_flops

CONFIG = dict(
    name="rectangles", batch_size=2, total_images=8,
    data=dict(where={"subcategory": "face-hat"}, heldout_where={"subcategory": "face-glasses"}, resolution=(32, 48)),
    text=dict(encoder=dict(family="clip_text", vocab_size=4096, width=16, depth=1, heads=2, max_length=24)),
    model=dict(family="mmdit", channels=32, patch_size=1, width=16, depth=2, heads=2, text_dim=16, pooled_dim=16,
               position_size=6, base_size=8), sampling=dict(steps=1, count=2, guidance=1.0),
    evaluation=dict(times=1, batch_size=2, levels=2, max_images=3), log=dict(every_images=4, checkpoint_every_images=4),
)


def config(**changes):
    return schema.from_dict({**CONFIG, **{key: {**CONFIG[key], **value} for key, value in changes.items()}})


def test_a_square_is_written_in_one_way_and_what_cannot_be_is_one_line():
    assert config(data=dict(resolution=(64, 64))) == config(data=dict(resolution=64))
    made = config()
    assert made.data.size == (32, 48) and schema.from_dict(json.loads(json.dumps(schema.to_dict(made)))) == made
    for change, line in ((dict(resolution=(32, 0)), "config.data.resolution=.32, 0. must be at least 1"),
                         (dict(resolution=(32, 48, 3)), "config.data.resolution=.* has the wrong type; give int or a"),
                         (dict(crop=40), "config.data.crop=40 must lie between 1 and config.data.resolution=.32, 48"),
                         (dict(buckets=32), "config.data.resolution=.32, 48. must be a multiple of config.data.buck")):
        with pytest.raises(ValueError, match=line) as caught:
            config(data=change)
        assert "\n" not in str(caught.value)
    for change, line in ((dict(data=dict(resolution=(32, 44))), "resolution=.32, 44. is no multiple of 8, .*32, 48. "),
                         (dict(model=dict(position_size=5)), "resolution=48 makes 6 patches a side, more than")):
        with pytest.raises(ValueError, match=line):
            abstract_system(config(**change))


def test_shapes_and_flops_are_of_the_rectangle():
    """A network that sees 4 x 6 latents costs what one of 6 x 4 does, and more than one of 4 x 4."""
    dit = dict(family="dit", channels=32, patch_size=1, width=16, depth=2, heads=2, classes=2, base_size=8)
    made = schema.from_dict({**CONFIG, "model": dit, "text": None})
    system, frozen, _ = abstract_system(made)
    assert system.latent_shape() == (4, 6, 32) and abstract_batch(made, system)["latent"].shape == (2, 4, 6, 32)
    other = lambda size: abstract_system(schema.from_dict({**schema.to_dict(made), "data": {"resolution": size}}))[:2]
    assert training_flops(system, frozen) == training_flops(*other((48, 32))) > training_flops(*other(32))
    flops = [ladders.measure(made.model, latent).training for latent in (4, (4, 6), 6)]
    assert flops[0] < flops[1] < flops[2]


def test_a_rehearsal_keeps_what_is_done_to_images():
    made = config(data=dict(source=["emoji64", dict(source="flags", weight=2)], latents="step", flip=True,
                            random_crop=True, tags=dict(keep=2), caption=("name", "text"), buckets=8))  # fmt: skip
    data = rehearsal(made).data
    assert (data.source, data.caption, data.size) == ("emoji64", "text", (32, 48))
    assert (data.flip, data.random_crop, data.tags, data.buckets) == (True, True, made.data.tags, 8)


def test_sdxl_is_told_the_rectangle():
    values = read_config_file("configs/pod.py:sdxl", ())
    values["data"] = {**values["data"], "resolution": (768, 1024)}
    system, _, _ = abstract_system(schema.from_dict(values))
    assert system.folder.size == (768, 1024) and system.latent_shape() == (96, 128, 4)


@pytest.mark.slow
def test_a_run_trains_resumes_is_measured_drawn_and_exported(tmp_path):
    faces = dict(hats=dict(source="emoji64", weight=3, heldout_where={"subcategory": "face-glasses"}),
                 hands=dict(source="emoji64", where={"subcategory": "hand-prop"}))  # fmt: skip
    varying = dict(source=faces, latents="step", flip=True, random_crop=True, tags=dict(keep=1))
    made, layout = config(data=varying), make_layout({"data": 1})
    whole = loop.train(made, tmp_path / "whole", denoise.make_task, layout, quiet=True)
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    shutil.rmtree(tmp_path / "part/checkpoints/4")
    again = loop.train(made, tmp_path / "part", denoise.make_task, layout, quiet=True)
    for ours, theirs in zip(jax.tree.leaves(whole), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    run = tmp_path / "whole"
    assert main(["evaluate", f"--workdir={run}", f"--out={tmp_path / 'metrics.json'}"]) == 0
    figures = json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    assert math.isfinite(figures["v_loss"])
    # of three held-out images, which take turns, two are of the one source and one of the other
    of = [figures["heldout_loss_hats"], figures["heldout_loss_hands"]]
    assert figures["heldout_loss"] == pytest.approx((2 * of[0] + of[1]) / 3, rel=1e-6) and of[0] != of[1]
    assert main(["sample", f"--workdir={run}", "--prompt=face", f"--out={tmp_path / 'a.png'}"]) == 0
    assert Image.open(tmp_path / "a.png").size == (48, 32)
    assert main(["export", f"--workdir={run}", f"--out={tmp_path / 'out'}"]) == 0
    assert main(["sample", f"--from={tmp_path / 'out'}", "--prompt=face", f"--out={tmp_path / 'b.png'}"]) == 0
    np.testing.assert_array_equal(Image.open(tmp_path / "a.png"), Image.open(tmp_path / "b.png"))
    system, params, frozen, _ = load_run(run, "ema")
    np.testing.assert_array_equal(draw(system, params, frozen, ["face"]), draw(system, params, frozen, ["face"],
                                                                               size=(32, 48)))
