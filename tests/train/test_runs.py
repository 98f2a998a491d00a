"""A whole run through the command line: what it leaves behind, and that a run cut short ends with the same bits."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lgm import config as schema
from lgm.cli import main
from lgm.train import loop
from lgm.train.opening import load_run


def weights(workdir):
    """Every trained number of a run's newest checkpoint, EMA and raw."""
    leaves = []
    for kind in ("raw", "ema"):
        _, params, _, _ = load_run(str(workdir), kind)
        leaves += [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
    return leaves


def assert_same_bits(one, other):
    for a, b in zip(weights(one), weights(other), strict=True):
        assert a.tobytes() == b.tobytes()


def test_a_run_leaves_metrics_pictures_events_and_its_config(tiny_run):
    rows = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    heldout = {row["step"]: row["heldout_loss"] for row in rows if "heldout_loss" in row}
    assert len(losses) == 6 and np.isfinite(losses).all()
    assert sorted(heldout) == [0, 6, 12] and heldout[12] < heldout[0]
    assert {"images_per_second", "tflops_per_second", "executed_tflops_per_second", "lr", "grad_norm"} <= rows[1].keys()
    assert [p.name for p in (tiny_run / "samples").iterdir()] == ["000000096.png"]
    events = EventAccumulator(str(tiny_run)).Reload()  # TensorBoard's own reader
    scalars = events.Scalars("train/loss")
    assert [event.step for event in scalars] == [row["images"] for row in rows if "loss" in row]
    assert {"heldout/loss", "speed/step_seconds", "seconds/compile"} <= set(events.Tags()["scalars"])
    assert {tag.partition("/")[0] for tag in events.Tags()["scalars"]} == {"train", "heldout", "speed", "seconds"}
    assert [np.float32(event.value) for event in scalars] == [np.float32(loss) for loss in losses]
    drawn = Image.open(io.BytesIO(events.Images("samples")[0].encoded_image_string))
    assert np.array_equal(drawn, Image.open(tiny_run / "samples" / "000000096.png"))
    assert schema.read(tiny_run).name == "tiny"


def test_sampling_twice_with_one_seed_gives_the_same_bytes(tiny_run, tmp_path):
    paths = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    for path, seed in zip(paths, (1, 1, 2), strict=True):
        arguments = ["--prompt=cowboy hat face emoji, noto style", f"--out={path}", f"--seed={seed}", "--count=2"]
        assert main(["sample", f"--workdir={tiny_run}", *arguments]) == 0
    a, b, c = (path.read_bytes() for path in paths)
    assert a == b and a != c
    each = [Image.open(tmp_path / f"c-{number}.png") for number in (1, 2)]  # beside the sheet
    assert [image.text["prompt"] for image in each] == ["cowboy hat face emoji, noto style"] * 2
    assert [json.loads(image.text["lgm"]) | {"version": 0} for image in each] == [
        {"version": 0, "number": number, "seed": 2} for number in (0, 1)]  # fmt: skip
    assert not np.array_equal(*each)


def test_evaluation_repeats_the_runs_own_heldout_loss(tiny_run, tmp_path, capsys):
    out = tmp_path / "metrics.json"
    assert main(["evaluate", f"--workdir={tiny_run}", f"--out={out}"]) == 0
    rows = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    last = [row["heldout_loss"] for row in rows if "heldout_loss" in row][-1]
    found = json.loads(out.read_text())["metrics"]
    assert found["heldout_loss"] == pytest.approx(last, rel=1e-6)
    assert f"heldout loss {found['heldout_loss']:.4g}" in capsys.readouterr().out


def test_a_finished_run_started_again_changes_nothing(tiny_config, tiny_run):
    before = [leaf.tobytes() for leaf in weights(tiny_run)]
    assert main(["train", f"--config={tiny_config}", f"--workdir={tiny_run}"]) == 0
    assert [leaf.tobytes() for leaf in weights(tiny_run)] == before


@pytest.fixture
def terminal():
    """Interrupts arrive as in a terminal; a process of several that run tests does not hear them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_interrupt_stops_at_once(terminal, capsys):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with loop.signals() as stop:
        assert stop() == 0
        os.kill(os.getpid(), signal.SIGINT)
        assert stop() == signal.SIGINT and "interrupt again" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_same_command_ends_with_the_same_bits(terminal, tiny_config, tiny_run, tmp_path,
                                                                    monkeypatch, number, code):
    class StopAtSeven(loop._Run):
        def _due(self, step, every_images):
            if step == 7 and not self.stop():
                os.kill(os.getpid(), number)
            return super()._due(step, every_images)

    workdir = tmp_path / "run"
    command = ["train", f"--config={tiny_config}", f"--workdir={workdir}"]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_Run", StopAtSeven)
        assert main(command) == code
    assert (workdir / "checkpoints" / "7").is_dir()
    assert main(command) == 0
    assert_same_bits(workdir, tiny_run)
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)  # no row is written twice


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 4])
def test_a_run_killed_by_sigkill_ends_with_the_same_bits(tiny_config, tiny_run, tmp_path, after):
    workdir = tmp_path / "run"
    command = [sys.executable, "-m", "lgm.cli", "train", f"--config={tiny_config}", f"--workdir={workdir}"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    rows = lambda: (workdir / "metrics.jsonl").read_text().splitlines() if (workdir / "metrics.jsonl").exists() else []
    while len(rows()) < after and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run(command, check=True, capture_output=True)
    assert_same_bits(workdir, tiny_run)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_with_step_metric_and_batch(tiny_config, tmp_path, capsys, monkeypatch):
    from lgm.train import denoise

    make_loss = denoise.make_loss

    def failing(config, system, teacher=None):
        loss = make_loss(config, system, teacher)

        def with_nan(params, frozen, batch, key):
            value, metrics = loss(params, frozen, batch, key)
            bad = (batch["index"] == 3).any()  # one image of the set is poison
            return value + jax.numpy.where(bad, jax.numpy.nan, 0.0) * value, metrics

        return with_nan

    monkeypatch.setattr(denoise, "make_loss", failing)
    workdir = tmp_path / "run"
    assert main(["train", f"--config={tiny_config}", f"--workdir={workdir}"]) != 0
    report = json.loads((workdir / "failure" / "report.json").read_text())
    line = [l for l in capsys.readouterr().err.splitlines() if l.startswith("lgm train:")]
    assert len(line) == 1 and f"step {report['step']}: loss is nan" in line[0]
    assert 3 in np.load(workdir / "failure" / "batch.npz")["index"]
    assert report["non_finite_gradients"]
