"""A joint law of families: what they share is told better, and not where they do not share it."""

import csv
import json

import numpy as np
import pytest

from lgm.cli import main
from lgm.scaling import families, laws, predicting, shared
from lgm.scaling.table import Runs

LAWS = {"first": laws.theta(400.0, 410.0, 1.69, 0.34, 0.28), "second": laws.theta(900.0, 600.0, 1.69, 0.38, 0.30)}
N, D = (axis.ravel() for axis in np.meshgrid(np.geomspace(3e7, 1e9, 4), np.geomspace(1e9, 2e10, 4)))
SETTINGS = families.Settings(draws=200)


def runs_of(name, seed=0, noise=0.004, law=None):
    random = np.random.default_rng((seed, len(name)))
    loss = laws.loss(LAWS[name] if law is None else law, N, D) * np.exp(noise * random.standard_normal(len(N)))
    rows = np.arange(len(N))
    return Runs(name, N, D, loss, 6 * N * D, rows, rows + 2, "tokens")


def analysed(seed, **other):
    return [families.analyse(runs_of(name, seed, law=other.get(name)), SETTINGS) for name in LAWS]


@pytest.mark.slow
def test_what_is_shared_narrows_the_answer_and_the_interval_holds_the_truth():
    """Of 12 pairs of tables: 24 intervals of 95%, of which fewer than 19 hold the truth once in ten thousand."""
    inside, before, after = 0, [], []
    for seed in range(12):
        apart = analysed(seed)
        joint, why = shared.share(apart, ("E",), SETTINGS)
        assert why is None
        for one, other in zip(apart, joint, strict=True):
            truth = float(laws.optimum(LAWS[one.runs.family], one.cost, 1e23)[2])
            (low, high), (least, most) = (predicting.budget(family, SETTINGS, 1e23)["intervals"]["loss"]
                                          for family in (one, other))
            before.append(np.log(high / low))
            after.append(np.log(most / least))
            inside += least <= truth <= most
    assert inside >= 19 and np.median(after) < 0.85 * np.median(before), (inside, np.median(after), np.median(before))


def test_exact_tables_give_the_exact_laws():
    exact = [families.analyse(runs_of(name, noise=1e-7), SETTINGS) for name in LAWS]
    joint, why = shared.share(exact, ("E",), SETTINGS)
    assert why is None
    for family in joint:
        law = LAWS[family.runs.family]
        np.testing.assert_allclose(np.exp(family.form.theta[2:]), [np.exp(law[2]), *law[3:]], rtol=1e-3)
    assert joint[0].form.theta[2] == joint[1].form.theta[2]


def test_families_that_do_not_share_it_keep_their_own():
    other = laws.theta(400.0, 410.0, 1.2, 0.34, 0.28)
    joint, why = shared.share(analysed(0, second=other), ("E",), SETTINGS)
    assert "the families do not share E" in why and all(family.form is None for family in joint)
    assert "fewer than two" in shared.share(analysed(0)[:1], ("E",), SETTINGS)[1]


def test_from_the_command_line(tmp_path, capsys):
    path = tmp_path / "runs.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["family", "params", "tokens", "loss"])
        for name in LAWS:
            runs = runs_of(name)
            writer.writerows([name, *row] for row in zip(runs.n, runs.d, runs.loss, strict=True))
    words = ["fit", f"--data={path}", f"--out={tmp_path / 'fit'}", "--budget=1e23", "--draws=100"]
    assert main([*words, "--share=E,beta"]) == 0
    out = capsys.readouterr().out
    assert "one E and beta for all families, told by all runs" in out or "the families do not share E and beta" in out
    assert json.loads((tmp_path / "fit" / "fit.json").read_text())["shared"]["terms"] == ["E", "beta"]
    assert main([*words, "--share=A"]) == 2
    assert "--share=A must name terms of E, alpha and beta" in capsys.readouterr().err


@pytest.mark.parametrize("names", [(), ("E", "gamma")])
def test_terms_that_are_none_are_one_line(names):
    with pytest.raises(ValueError, match="must name terms of E, alpha and beta"):
        shared.share([], names, SETTINGS)
