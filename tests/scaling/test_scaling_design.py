"""The next runs: what they are said to leave of an interval is what is left once they are there."""

import csv
import dataclasses
import json

import numpy as np
import pytest
import tiny_sweep

from lgm.cli import main
from lgm.parsing import ConfigError
from lgm.scaling import bootstrap, design, families, laws, predicting, sweep
from lgm.scaling.table import Runs

LAW = laws.theta(400.0, 410.0, 1.69, 0.34, 0.28)
N, D = (axis.ravel() for axis in np.meshgrid(np.geomspace(3e7, 5e8, 5), np.geomspace(1e9, 2e10, 5)))
SETTINGS = families.Settings(draws=600)
BUDGET = 1e22


def runs_of(n=N, d=D, seed=0, noise=0.004):
    random = np.random.default_rng(seed)
    loss = laws.loss(LAW, n, d) * np.exp(noise * random.standard_normal(len(n)))
    rows = np.arange(len(n))
    return Runs("all", n, d, loss, 6 * n * d, rows, rows + 2, "tokens")


def width(runs):
    """Of the interval of ln L at the budget, by the method that predicts."""
    family = families.analyse(runs, SETTINGS)
    low, high = bootstrap.interval(predicting.best(family, SETTINGS, BUDGET)[1][2])
    return np.log(high / low), family


@pytest.mark.slow
def test_the_interval_shrinks_as_said():
    before, family = width(runs_of())
    spend = 4 * float(family.runs.flops.max())
    said = design.propose(family, SETTINGS, BUDGET, design.grid(family, spend), spend)
    assert said["runs"] and sum(row["flops"] for row in said["runs"]) <= spend * 1.001
    left = [row["left"] for row in said["runs"]]
    assert left == sorted(left, reverse=True) and left[-1] < 0.9
    n, d = (np.append(old, [row[name] for row in said["runs"]]) for old, name in ((N, "params"), (D, "tokens")))
    # widths of single tables differ by a fifth: the mean of eight
    after = np.mean([width(runs_of(n, d, seed))[0] for seed in range(8)])
    ago = np.mean([width(runs_of(seed=seed))[0] for seed in range(8)])
    assert after / ago == pytest.approx(left[-1], abs=0.15), (after / ago, left)
    # and by more than by as many FLOPs of runs like the smallest there are
    cheap = np.argsort(6 * N * D)[: len(said["runs"])]
    other = np.mean([width(runs_of(np.append(N, N[cheap]), np.append(D, D[cheap]), seed))[0] for seed in range(8)])
    assert after < 0.95 * other


def test_nothing_is_proposed_for_nothing():
    _, family = width(runs_of())
    assert design.propose(family, SETTINGS, BUDGET, design.grid(family, 1e10), 1e10)["runs"] == []
    assert design.lines(None, "tokens") == []


def table_of(plan, path):
    """A table as the plan's runs would leave it, their losses by a law."""
    random = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["family", "run", "params", "images", "flops", "loss"])
        for run in sweep.expand(plan):
            for images in run.images:
                loss = 0.3 + 40 / run.shape.params**0.5 + 3 / images**0.4
                writer.writerow([run.family, run.name, run.shape.params, images, run.shape.flops * images,
                                 loss * np.exp(0.002 * random.standard_normal())])


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    root = tmp_path_factory.mktemp("design")
    path = tiny_sweep.write(root, ("sizes=(1, 2), lr=(1e-3, 3e-3)", "sizes=(1, 2, 4), lr=1e-3"),
                            ("images=(40, 80), seeds=(0, 1)", "images=(80, 160, 320), seeds=(0,)"),
                            ("""            unet=dict(family="unet", sizes=(1,), lr={1: 2e-3}, together=2, how="turns",
                      shape=dict(base="small", channels=32, text_dim=16)),
""", ""))
    plan = sweep.load(str(path))
    table_of(plan, root / "runs.csv")
    return root, path, plan


def test_a_plan_goes_on_with_the_next_runs_of_its_ladder(planned, tmp_path, capsys):
    root, path, plan = planned
    words = [f"--data={root / 'runs.csv'}", f"--out={tmp_path / 'fit'}", "--draws=200", f"--sweep={path}"]
    assert main(["fit", *words]) == 0
    assert "next, to know the loss of mmdit" in capsys.readouterr().out
    proposed = json.loads((tmp_path / "fit" / "fit.json").read_text())["next"]
    assert {"architecture", "objective", "size", "images", "left"} <= set(proposed["runs"][0])
    more = sweep.load(str(tmp_path / "fit" / "next.json"))
    old, new = ({(run.name, images) for run in sweep.expand(one) for images in run.images} for one in (plan, more))
    assert old < new and len(new - old) == len(proposed["runs"])
    assert main(["sweep", f"--config={tmp_path / 'fit' / 'next.json'}", f"--workdir={tmp_path}", "--list"]) == 0
    # finished runs of the plan are those of the plan that goes on: config by config
    ours, theirs = ({run.name: run.configs for run in sweep.expand(one)} for one in (plan, more))
    for name, configs in ours.items():
        assert all(config in theirs[name] for config in configs)


def test_a_table_of_another_plan_is_one_line(planned, tmp_path, capsys):
    root, path, _ = planned
    text = (root / "runs.csv").read_text().replace("mmdit flow", "mine").replace("mmdit eps", "yours")
    (tmp_path / "runs.csv").write_text(text)
    assert main(["fit", f"--data={tmp_path / 'runs.csv'}", f"--out={tmp_path / 'fit'}", f"--sweep={path}",
                 "--draws=100"]) == 2  # fmt: skip
    error = capsys.readouterr().err
    assert "the plan has no family" in error and error.count("\n") == 1 and not (tmp_path / "fit").exists()


@pytest.mark.parametrize("entry", [
    {"architecture": "mmdit", "objective": "flow", "size": 1}, {"size": 1}, {},
    {"architecture": "dit", "objective": "flow", "size": 1, "images": 80},
    {"architecture": "mmdit", "objective": "flow", "size": 0, "images": 80},
    {"architecture": "mmdit", "objective": "flow", "size": 1, "images": "many"},
])
def test_further_runs_mistyped_are_one_line(planned, entry):
    values = dataclasses.asdict(planned[2])
    with pytest.raises(ConfigError, match="config.also: .* should be dict") as caught:
        sweep.parse_sweep(values | {"also": (entry,)})
    assert "\n" not in str(caught.value)
