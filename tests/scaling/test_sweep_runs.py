"""Sweeps that train: killed at any time they end with the same table, and their runs are those of `lgm train`."""

import csv
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_sweep import write

from lgm.cli import main

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
FEW = "--config.objectives={'flow': {'process': {'name': 'rectified_flow'}, 'loss': {'target': 'flow'}}}"

UNET = """unet=dict(family="unet", sizes=(1,), lr={1: 2e-3}, together=2, how="turns",
                      shape=dict(base="small", channels=32, text_dim=16)),"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Two groups: four runs of an MMDiT stepped at once, and two of another in turns."""
    other = """dict(family="mmdit", sizes=(1,), lr={1: 2e-3}, together=2, how="turns",
                      shape=dict(head_size=16, aspect=16.0, channels=32, patch_size=2, text_dim=16, pooled_dim=16,
                                 position_size=8, base_size=8)),"""
    return write(tmp_path_factory.mktemp("sweep"), ("sizes=(1, 2)", "sizes=(1,)"), (UNET, f"other={other}"))


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """The folder of a sweep that nobody interrupted."""
    workdir = tmp_path_factory.mktemp("whole")
    assert main(["sweep", f"--config={config}", f"--workdir={workdir}", FEW]) == 0
    return workdir


def measured(column):
    return column in ("loss", "vlb_bits") or column.startswith("v_loss") or "distance" in column


def rows(workdir):
    with (workdir / "runs.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_row_has_what_a_fit_needs(whole):
    table = rows(whole)
    assert len(table) == 12
    assert {row["family"] for row in table} == {"mmdit flow", "other flow"}
    for row in table:
        config = whole / "runs" / row["run"] / row["images"] / "config.json"
        assert json.loads(config.read_text())["total_images"] == int(row["images"]) in (40, 80)
        strata = [float(value) for name, value in row.items() if name.startswith("v_loss_snr")]
        assert float(row["loss"]) == pytest.approx(sum(strata) / 2) and float(row["vlb_bits"]) > 0
        assert float(row["kernel_distance_error"]) > 0 and float(row["frechet_distance"]) > 0
        assert float(row["flops"]) / float(row["images"]) > 1e6 and len(row["config"]) == 16
    assert len({row["config"] for row in table}) == 12
    assert not (whole / "groups").exists() or not list((whole / "groups").iterdir())


def test_a_sweep_from_a_cache_is_that_from_pixels(config, whole, tmp_path):
    """Of the runs that share a program by turns; the other architecture's are left out."""
    found = next((whole / "runs").glob("other-*")) / "80" / "config.json"
    assert main(["encode", f"--config={found}", f"--out={tmp_path / 'cache'}"]) == 0
    plan = config.read_text()
    first, last = plan.index("mmdit=dict("), plan.index("other=dict(")
    (tmp_path / "sweep.py").write_text((plan[:first] + plan[last:]).replace(
        "data=dict(", f"data=dict(cache={str(tmp_path / 'cache')!r}, "))  # fmt: skip
    assert main(["sweep", f"--config={tmp_path / 'sweep.py'}", f"--workdir={tmp_path / 'w'}", FEW]) == 0
    theirs = {(row["run"], row["images"]): row for row in rows(whole)}
    assert len(rows(tmp_path / "w")) == 4
    for row in rows(tmp_path / "w"):
        for name in filter(measured, row):
            wanted = pytest.approx(float(theirs[row["run"], row["images"]][name]), rel=1e-5, abs=1e-6)
            assert float(row[name]) == wanted, name


def test_killed_and_started_again_it_gives_the_same_bytes(config, whole, tmp_path):
    command = [sys.executable, "-m", "lgm.cli", "sweep", f"--config={config}", f"--workdir={tmp_path}", FEW]
    results = lambda: len(list(tmp_path.glob("runs/*/*/result.json")))
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while results() < 1 and process.poll() is None:  # in the first group's second half
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() != 0 and results() < 12
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "runs.csv").read_bytes() == (whole / "runs.csv").read_bytes()


def test_a_finished_sweep_started_again_trains_nothing(config, whole, capsys):
    before = (whole / "runs.csv").read_bytes()
    assert main(["sweep", f"--config={config}", f"--workdir={whole}", FEW]) == 0
    assert (whole / "runs.csv").read_bytes() == before
    assert "compil" not in capsys.readouterr().err


def test_a_changed_plan_is_refused_by_its_results(config, whole, capsys):
    assert main(["sweep", f"--config={config}", f"--workdir={whole}", FEW, "--config.base.optimizer.b2=0.9"]) != 0
    assert "holds a run with config.optimizer.b2=0.999, not 0.9" in capsys.readouterr().err


def test_a_run_by_itself_is_that_of_its_group_and_of_lgm_train(config, whole, tmp_path):
    """By itself it is another program, whose rounding training magnifies: 1% at most in these few steps. With the loop
    of `lgm train` it shares trunk checkpoints, and every bit."""
    assert main(["sweep", f"--config={config}", f"--workdir={tmp_path}", FEW, "--only=0"]) == 0
    assert main(["sweep", f"--config={config}", f"--workdir={tmp_path}", FEW, "--gather"]) == 0
    mine, theirs = rows(tmp_path), [row for row in rows(whole) if row["run"] == rows(tmp_path)[0]["run"]]
    assert len(mine) == 2
    for one, other in zip(mine, theirs, strict=True):
        assert {k: v for k, v in one.items() if not measured(k)} == {k: v for k, v in other.items() if not measured(k)}
        assert float(one["loss"]) == pytest.approx(float(other["loss"]), rel=0.01)
    for row in mine:
        place = tmp_path / "runs" / row["run"] / row["images"]
        workdir = tmp_path / f"alone{row['images']}"
        assert main(["train", f"--config={place / 'config.json'}", f"--workdir={workdir}"]) == 0
        last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
        assert repr(last["v_loss"]) == row["loss"] and repr(last["vlb_bits"]) == row["vlb_bits"]


def test_a_rate_that_diverges_ends_early_and_its_row_says_why(tmp_path, capsys):
    """Stepped in turns and by itself: the loss stays finite and rises."""
    config = write(tmp_path, ("images=(40, 80), seeds=(0, 1)", "images=(4000, 4800), seeds=(0,)"),
                   ("sizes=(1, 2), lr=(1e-3, 3e-3), mup_size=1, together=4", "sizes=(1,), lr=(1e-3, 3.0), together=2"),
                   (UNET, ""), ("warmup_images=16", "warmup_images=1600"),
                   ("cooldown=0.4", "cooldown=0.2, stop_above=1.3"), ("distance=3, ", ""),
                   ("log=dict(every_images=16, checkpoint_every_images=16)", "log=dict()"))
    for name, word in (("turns", "how=turns"), ("alone", "together=1")):
        words = [f"--config={config}", f"--workdir={tmp_path / name}", FEW,
                 f"--config.architectures.mmdit.{word}"]
        assert main(["sweep", *words, *(["--only=1"] if name == "alone" else [])]) == 0
        assert main(["sweep", *words, "--gather"]) == 0
        table = rows(tmp_path / name)
        wrong = [row for row in table if row["learning_rate"] == "3.0"]
        assert [row["images"] for row in wrong] == ["4000", "4800"] and not any(row["loss"] for row in wrong)
        step, = {int(re.match(r"step (\d+): the loss is ", row["diverged"])[1]) for row in wrong}
        assert step <= 400 and "config.optimizer.stop_above=1.3 ends such a run" in wrong[0]["diverged"]
        assert all(row["loss"] and not row["diverged"] for row in table if row not in wrong)
    assert main(["fit", f"--data={tmp_path / 'turns' / 'runs.csv'}", f"--out={tmp_path / 'fit'}"]) != 0
    assert len(table) == 2 and "diverged at 4,000 images: step" in capsys.readouterr().out


# one size of each architecture, little data and few held-out images; everything else is the shipped file's
LITTLE = ["--config.base.batch_size=8", "--config.images=(40,)", "--config.seeds=(0,)",
          "--config.architectures.mmdit.sizes=(1,)", "--config.architectures.unet.sizes=(1,)",
          "--config.base.data.where={'subcategory': 'face-hat'}", "--config.base.optimizer.warmup_images=8",
          "--config.base.data.heldout_where={'subcategory': 'face-glasses'}", "--config.base.evaluation.max_images=3",
          "--config.base.evaluation.batch_size=16", "--config.base.evaluation.levels=2"]


def test_the_shipped_sweep_is_run_job_by_job(tmp_path, capsys):
    """As `lgm launch sweep` does: architectures by objectives, from a file that saves no checkpoints on the way."""
    words = [f"--config={ROOT / 'configs/scaling/smoke.py'}", f"--workdir={tmp_path}", *LITTLE]
    assert main(["sweep", *words, "--list"]) == 0
    assert "# 4 runs, 4 rows" in capsys.readouterr().out
    for job in range(4):
        assert main(["sweep", *words, f"--only={job}"]) == 0
    assert main(["sweep", *words, "--gather"]) == 0
    table = rows(tmp_path)
    assert {row["family"] for row in table} == {"mmdit flow", "mmdit eps", "unet flow", "unet eps"} and len(table) == 4
    assert all(float(row["loss"]) > 0 and row["images"] == "40" for row in table)
