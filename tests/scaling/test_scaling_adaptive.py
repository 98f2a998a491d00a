"""Sweeps that fill their plan: from a guess far off they come to the minima, and go on from any results."""

import csv
import math
import types

import numpy as np
import pytest
import tiny_sweep

from lgm.cli import main
from lgm.parsing import ConfigError
from lgm.scaling import adaptive, laws, one_run, results, sweep

LAW = laws.theta(400.0, 410.0, 1.69, 0.34, 0.28)
COST = laws.Cost(6.0, 1.0, 1.0)
SIZES = {size: float(n) for size, n in enumerate(np.geomspace(1e6, 1e11, 41), 1)}
BUDGETS = (1e18, 1e19, 1e20, 1e21)


def plan_of(guess):
    return sweep.Sweep("s", {}, {"a": sweep.Architecture("mmdit", tuple(SIZES), 1e-3)}, {"flow": {}}, budgets=BUDGETS,
                       guess=guess)  # fmt: skip


def known():
    run = lambda n: types.SimpleNamespace(shape=types.SimpleNamespace(params=n, flops=6 * n),
                                          configs=[types.SimpleNamespace(batch_size=1)])
    return {("a", "flow"): {size: run(n) for size, n in SIZES.items()}}


def filled(guess, noise=0.0, most=None):
    """Every entry there is when the plan is filled, and after how many rounds; `most` entries have results at first."""
    random, results, rounds = np.random.default_rng(0), {}, 0
    loss = lambda name, objective, size, images: results.get((size, images))
    while True:
        wanted, done = adaptive.entries(plan_of(guess), known(), loss)
        if done:
            return wanted, rounds
        for entry in wanted[:most]:
            key = entry["size"], entry["images"]
            results.setdefault(key, float(laws.loss(LAW, SIZES[key[0]], key[1])) * math.exp(
                noise * random.standard_normal()))
        most, rounds = None, rounds + 1


@pytest.mark.parametrize("off", [1.0, 6.0, 1 / 6])
def test_every_budget_ends_about_its_minimum(off):
    """From a guess off by a factor 6: two sizes on either side of the true optimum, of the first budget too, and fewer
    runs than half of those that would spend each budget at every size within the guess's error."""
    best = {budget: float(laws.optimum(LAW, COST, budget)[0]) for budget in BUDGETS}
    exponent = math.log(best[1e21] / best[1e18]) / math.log(1e3)
    wanted, _ = filled((off * best[1e18] / 1e18**exponent, exponent))
    for budget in BUDGETS:
        spent = sorted(SIZES[one["size"]] for one in wanted
                       if abs(6 * SIZES[one["size"]] * one["images"] / budget - 1) < 0.01)
        below = sum(n < best[budget] for n in spent)
        assert 5 <= len(spent) <= 8
        if off == 1.0 or budget > 1e18:
            assert min(below, len(spent) - below) >= 2, (budget, best[budget], spent)
    assert len(wanted) <= 4 * 8


def test_noise_does_not_lead_it_astray():
    best = {budget: float(laws.optimum(LAW, COST, budget)[0]) for budget in BUDGETS}
    wanted, _ = filled((best[1e18] / 1e18**0.5, 0.5), noise=0.002)
    spent = [SIZES[one["size"]] for one in wanted if abs(6 * SIZES[one["size"]] * one["images"] / 1e21 - 1) < 0.01]
    assert min(spent) < best[1e21] < max(spent)


def test_what_comes_next_is_a_function_of_the_results():
    """Stopped after three runs of the first round, it asks for what it would have asked for."""
    guess = (3e7 / 1e18**0.5, 0.5)
    assert filled(guess)[0] == filled(guess, most=3)[0]


@pytest.mark.parametrize(("change", "part"), [
    (dict(guess=None), "give config.budgets and config.guess"), (dict(budgets=()), "give config.budgets"),
    (dict(architectures={"a": sweep.Architecture("mmdit", (1, 2), 1e-3)}), "sizes are 2; --adaptive chooses 5"),
])
def test_plans_that_cannot_be_filled_are_one_line(change, part):
    import dataclasses

    with pytest.raises(ConfigError, match=part) as caught:
        adaptive.check(dataclasses.replace(plan_of((1.0, 0.5)), **change))
    assert "\n" not in str(caught.value)


def test_a_sweep_is_filled_and_started_again_trains_nothing(tmp_path, capsys, monkeypatch):
    """Runs are not trained but measured by a law, in a sixth of a minute of one core where training takes five: that
    what one budget trained is gone on with by the next this does not show (`test_sweep_runs` does)."""
    change = lambda budgets, guess: tiny_sweep.write(
        tmp_path, ("sizes=(1, 2), lr=(1e-3, 3e-3)", "sizes=(1, 2, 3, 4, 5, 6), lr=1e-3"), ("together=4", "together=1"),
        ("images=(40, 80), seeds=(0, 1)", f"budgets={budgets}, guess={guess}, min_images=32, reach=3.0, seeds=(0,)"),
        ("distance=3, ", ""),
        ("            eps=dict(process=dict(name=\"ddpm\"), loss=dict(target=\"eps\"), lr_factor=0.5),\n", ""),
        ("""            unet=dict(family="unet", sizes=(1,), lr={1: 2e-3}, together=2, how="turns",
                      shape=dict(base="small", channels=32, text_dim=16)),
""", ""))  # fmt: skip
    trained = []

    def train(run, workdir, say, quiet=False):
        for config in run.configs:
            if results.read(workdir, run, config) is None:
                trained.append((run.size, config.total_images))
                results.claim(workdir, run)
                loss = 0.3 + 40 / run.shape.params**0.5 + 3 / config.total_images**0.4
                results.write(workdir, run, config, {"v_loss": loss, "vlb_bits": 1.0}, 1.0)

    monkeypatch.setattr(one_run, "train", train)
    third = adaptive.shapes(sweep.load(str(change((1e9,), (1.0, 0.5)))))["mmdit", "flow"][3].shape
    budgets = tuple(images * third.flops for images in (120, 240))
    path = change(budgets, (third.params / budgets[0] ** 0.5, 0.5))
    words = ["sweep", f"--config={path}", f"--workdir={tmp_path / 'run'}"]
    assert main([*words, "--adaptive"]) == 0 and len(trained) == len(set(trained)) >= 10
    table = (tmp_path / "run" / "runs.csv").read_bytes()
    rows = list(csv.DictReader(table.decode().splitlines()))
    by_budget = {budget: {row["size"] for row in rows if abs(float(row["flops"]) / budget - 1) < 0.2}
                 for budget in budgets}
    assert all(len(sizes) >= 5 for sizes in by_budget.values()), by_budget
    capsys.readouterr()
    trained.clear()
    assert main([*words, "--adaptive"]) == 0 and (tmp_path / "run" / "runs.csv").read_bytes() == table
    assert "still missing" not in capsys.readouterr().out and not trained
    assert main([*words, "--adaptive", "--list"]) == 2
