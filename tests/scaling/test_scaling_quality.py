"""Columns of quality as powers of the loss: the power is found, its interval holds it, noise alone is refused."""

import csv
import json

import numpy as np
import pytest

from lgm.cli import main
from lgm.scaling import laws, quality
from lgm.scaling.table import Runs

LAW = laws.theta(400.0, 410.0, 1.69, 0.34, 0.28)
N, D = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e7, 1e9, 6), np.geomspace(1e9, 3e10, 5)))


def runs_of(seed=0, noise=0.05, power=4.0):
    random = np.random.default_rng(seed)
    loss = laws.loss(LAW, N, D)
    distance = 0.7 * loss**power * np.exp(noise * random.standard_normal(len(N)))
    rows = np.arange(len(N))
    return Runs("all", N, D, loss, 6 * N * D, rows, rows + 2, "tokens", quality={"fid": distance})


def test_the_power_is_told_and_one_runs_value_lies_in_its_interval():
    """Of 200 tables: 95% of powers, and of one further run's values; fewer than 0.90 or more than 0.99 of a binomial of
    0.95 are one in a thousand."""
    inside = np.zeros(2)
    for seed in range(200):
        found = quality.fit(runs_of(seed), "fid", 400, seed)
        low, high = quality.summary(found)["power"]["interval"]
        inside[0] += low <= 4.0 <= high
        value, (low, high) = found.at(2.3, np.full(400, 2.3), seed)
        inside[1] += low <= 0.7 * 2.3**4 * np.exp(0.05 * np.random.default_rng(10_000 + seed).standard_normal()) <= high
    assert (inside >= 180).all() and (inside <= 199).all(), inside


def test_what_the_loss_does_not_tell_is_refused():
    assert "the loss tells" in quality.fit(runs_of(noise=0.5, power=0.05), "fid").reason
    runs = runs_of()
    runs.quality["fid"][:25] = np.nan
    assert "5 rows have a positive fid" in quality.fit(runs, "fid").reason


def test_the_answer_says_what_its_loss_comes_to(tmp_path, capsys):
    runs, path = runs_of(), tmp_path / "runs.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["params", "tokens", "loss", "fid"])
        writer.writerows(zip(runs.n, runs.d, runs.loss, runs.quality["fid"], strict=True))
    words = [f"--data={path}", f"--out={tmp_path / 'fit'}", "--budget=1e20", "--draws=200"]
    assert main(["fit", *words, "--quality=fid"]) == 0
    assert "    fid " in capsys.readouterr().out
    fitted = json.loads((tmp_path / "fit" / "fit.json").read_text())
    row = fitted["answers"][0]
    low, high = row["quality"]["fid"]["interval"]
    assert low <= 0.7 * row["loss"] ** 4 <= high
    assert fitted["families"]["all"]["quality"][0]["power"]["value"] == pytest.approx(4.0, rel=0.1)
    assert main(["fit", *words, "--quality=fd"]) == 2
    assert "column 'fd', of --quality, is missing; did you mean 'fid'?" in capsys.readouterr().err
