"""Best learning rates and batch sizes: those of a known law are found, with intervals that hold them."""

import csv
import json

import numpy as np
import pytest

from lgm.cli import main
from lgm.scaling import laws, tuning
from lgm.scaling.table import Tried

LAW = laws.theta(400.0, 410.0, 1.69, 0.34, 0.28)
SIZES, AMOUNTS = np.geomspace(1e7, 1e9, 5), np.geomspace(1e9, 3e10, 4)


def best(n, d):
    """The learning rate of a law: falling with size and with data."""
    return 3e-3 * (n / 1e7) ** -0.3 * (d / 1e9) ** -0.1


def tried(rates=(0.25, 0.5, 1, 2, 4), noise=0.001, seed=0, amounts=AMOUNTS, off=1.0):
    random = np.random.default_rng(seed)
    rows = []
    for n in SIZES:
        for d in amounts:
            for factor in rates:
                rate = 3e-3 * (n / 1e7) ** -0.3 * factor * off
                more = 1 + 0.01 * np.log(rate / best(n, d)) ** 2
                rows.append((n, d, laws.loss(LAW, n, d) * more * np.exp(noise * random.standard_normal()), rate))
    n, d, loss, rate = map(np.array, zip(*rows, strict=True))
    return Tried(n, d, loss, {"learning_rate": rate})


def test_exact_parabolas_give_the_exact_law():
    trend = tuning.fit(tried(noise=0.0, rates=(0.5, 1, 2)), "learning_rate", draws=100)
    assert trend.terms == ("1", "N", "D") and trend.reason is None
    np.testing.assert_allclose(trend.coefficients[1:], [-0.3, -0.1], atol=1e-6)
    assert trend.at(1e10, 1e11)[0] == pytest.approx(best(1e10, 1e11), rel=1e-4)


def test_intervals_hold_the_law_as_often_as_they_say():
    """Of 60 tables at least 50: of a binomial of 0.95 fewer are one in ten thousand."""
    inside = np.zeros(3)
    for seed in range(60):
        trend = tuning.fit(tried(seed=seed), "learning_rate", draws=300, seed=seed)
        for i, (name, truth) in enumerate((("N", -0.3), ("D", -0.1))):
            low, high = tuning.summary(trend)["exponents"][name]["interval"]
            inside[i] += low <= truth <= high
        low, high = trend.at(1e10, 1e11)[1]
        inside[2] += low <= best(1e10, 1e11) <= high
    assert (inside >= 50).all() and inside.mean() < 60, inside


def test_a_best_value_at_the_end_of_those_tried_is_none():
    trend = tuning.fit(tried(off=30.0), "learning_rate", draws=100)
    assert trend.at(1e9, 1e10) is None and "0 of 20 sizes and amounts have a minimum inside" in trend.reason
    assert all(place["best"] is None for place in trend.places)


def test_data_that_grows_with_size_is_told_as_one_line():
    table = tried(noise=0.0)
    in_step = (AMOUNTS[-1] / AMOUNTS[0]) ** (np.log(table.n / 1e7) / np.log(100))
    kept = np.isclose(table.d / AMOUNTS[0], in_step, rtol=0.5)
    some = Tried(table.n[kept], table.d[kept], table.loss[kept], {"learning_rate": table.knobs["learning_rate"][kept]})
    trend = tuning.fit(some, "learning_rate", draws=100)
    assert trend.terms == ("1", "N")


def test_one_value_at_each_size_has_no_trend():
    assert tuning.fit(tried(rates=(1,)), "learning_rate") is None


def test_batch_sizes_are_compared_at_their_best_rates():
    """Two knobs: the loss has a minimum in each; rows of the other's worse values do not move it."""
    random, rows = np.random.default_rng(1), []
    for n in SIZES:
        for batch in (64, 128, 256, 512, 1024):
            for rate in (1e-3, 2e-3, 4e-3):
                true = 200 * (n / 1e7) ** 0.2
                more = 1 + 0.01 * np.log(batch / true) ** 2 + 0.02 * np.log(rate / 2e-3) ** 2
                loss = laws.loss(LAW, n, 1e10) * more
                rows.append((n, 1e10, loss * np.exp(1e-4 * random.standard_normal()), rate, batch))
    n, d, loss, rate, batch = (np.array(column, float) for column in zip(*rows, strict=True))
    table = Tried(n, d, loss, {"learning_rate": rate, "batch_size": batch})
    trend = tuning.fit(table, "batch_size", draws=200)
    low, high = tuning.summary(trend)["exponents"]["N"]["interval"]
    assert low <= 0.2 <= high and high - low < 0.1
    rates = tuning.fit(table, "learning_rate", draws=200)
    assert all(place["best"] == pytest.approx(2e-3, rel=0.05) for place in rates.places)


def test_the_answer_says_the_rate_to_train_at(tmp_path, capsys):
    table, path = tried(), tmp_path / "runs.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["params", "tokens", "loss", "learning_rate"])
        writer.writerows(zip(table.n, table.d, table.loss, table.knobs["learning_rate"], strict=True))
    assert main(["fit", f"--data={path}", f"--out={tmp_path / 'fit'}", "--budget=1e20", "--draws=200"]) == 0
    assert "    learning rate 0.00" in capsys.readouterr().out
    fitted = json.loads((tmp_path / "fit" / "fit.json").read_text())
    row = fitted["answers"][0]
    low, high = row["tuned"]["learning_rate"]["interval"]
    assert low <= best(row["params"], row["data"]) <= high
    assert "Best learning rate" in (tmp_path / "fit" / "report.html").read_text()
