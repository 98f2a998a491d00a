"""What a sweep's config stands for: its runs, their costs, and the one line for what cannot be a plan."""

import ast
import dataclasses
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_sweep import write

from lgm import config as schema
from lgm.cli import main
from lgm.data import kept_hashes
from lgm.data.near_duplicates import overlap
from lgm.models import build, classes
from lgm.parsing import ConfigError
from lgm.scaling import sweep, sweeping
from lgm.train.optimizer import decay_start, learning_rate


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return sweep.load(str(write(tmp_path_factory.mktemp("sweep"))))


@pytest.fixture(scope="module")
def runs(plan):
    return sweep.expand(plan)


def test_every_combination_is_one_run_and_every_amount_of_data_one_config(runs):
    mmdit = [(run.size, run.objective, run.seed, run.lr) for run in runs if run.architecture == "mmdit"]
    assert sorted(mmdit) == sorted((size, objective, seed, rate * factor) for size in (1, 2) for seed in (0, 1)
                                   for objective, factor in (("flow", 1.0), ("eps", 0.5)) for rate in (1e-3, 3e-3))
    assert len(runs) == 16 + 4 and len({run.name for run in runs}) == 20
    assert {run.images for run in runs} == {(40, 80)}
    assert {run.family for run in runs} == {"mmdit flow", "mmdit eps", "unet flow", "unet eps"}
    groups = [run.group for run in runs]
    assert sorted(groups, key=groups.index) == groups  # runs of one program stand side by side


def test_one_size_may_be_trained_from_more_seeds(tmp_path):
    path = write(tmp_path, ("seeds=(0, 1)", "seeds=(0,)"), ("together=4", "together=4, seeds={1: (0, 5)}"))
    seeds = {(run.size, run.seed) for run in sweep.expand(sweep.load(str(path))) if run.architecture == "mmdit"}
    assert seeds == {(1, 0), (1, 5), (2, 0)}


def test_configs_are_ordinary_ones_and_share_their_trunk(runs):
    for run in runs:
        for config in run.configs:
            assert schema.from_dict(schema.to_dict(config)) == config
        first, last = run.configs
        assert dataclasses.replace(last, total_images=40, optimizer=first.optimizer) == first
        assert [decay_start(config) for config in run.configs] == [3, 6]
        rates = [[float(learning_rate(config)(step)) for step in range(config.steps)] for config in run.configs]
        assert rates[0][:4] == rates[1][:4] == pytest.approx([run.lr / 2, run.lr, run.lr, run.lr])
        assert rates[0][3:] == pytest.approx([run.lr, run.lr / 2])


def test_costs_are_counted(runs):
    run = next(run for run in runs if run.group == "mmdit-flow-2")
    assert run.shape.params == build(run.configs[0].model).count()
    assert run.shape.trainable == run.shape.params + build(run.configs[0].text.encoder).count()
    # two trunks' worth would be 120 images: the shared part is paid once
    assert run.flops == run.shape.flops * (6 + 2 + 4) * 8
    # image tokens at 6 FLOPs a parameter; text tokens, embeddings and attention are the rest
    assert 0.5 < run.shape.flops / (6 * 64 * run.shape.params) < 1.5


def test_encoders_that_are_frozen_in_the_step_cost_hours_and_no_budget(plan, tiny_config):
    config, kept = schema.load(tiny_config, [("data.latents", "step")]), schema.load(tiny_config)
    apart, plain = sweep.measure(plan, config), sweep.measure(plan, kept)
    assert apart == dataclasses.replace(plain, frozen=apart.frozen) and apart.frozen > 0 == plain.frozen
    assert sweep.measure(plan, config, together=True) == plain  # which reads latents that were encoded before
    run = lambda shape: sweep.Run("a", "a", "mmdit", "flow", 1, shape, (config,))
    assert run(apart).flops - run(plain).flops == pytest.approx(apart.frozen * config.total_images)


def test_widths_and_depths_alone_tell_the_base_of_mup(runs):
    large = next(run for run in runs if run.group == "mmdit-flow-2").configs[0]
    assert large.optimizer.mup_base == {"width": 16, "heads": 1}
    assert next(run for run in runs if run.group == "unet-flow-1").configs[0].optimizer.mup_base is None


def test_a_class_conditional_transformer_stands_beside_text_models(tmp_path):
    dit = """dit=dict(family="dit", sizes=(1, 2), lr=1e-3, base=dict(text=dict(classes=("one", "two"))),
                     shape=dict(head_size=16, aspect=16.0, channels=32, patch_size=2, classes=2)),
            unet="""
    path = write(tmp_path, ("sizes=(1, 2)", "sizes=(1,)"), ("unet=", dit))
    runs = sweep.expand(sweep.load(str(path)))
    text = {run.architecture: run.configs[0].text for run in runs}
    assert text["dit"].classes == ("one", "two") and text["dit"].encoder is None and text["mmdit"].encoder is not None
    assert len({run.configs[0].batch_size for run in runs}) == 1


def test_an_isoflop_plan_spends_each_budget_at_every_size(tmp_path):
    path = write(tmp_path, ("images=(40, 80)", "budgets=(1e9, 2e9), min_images=24, max_images=1000"))
    runs = sweep.expand(sweep.load(str(path)))
    for run in runs:
        for images, budget in zip(run.images, (1e9, 2e9), strict=False):
            assert abs(images - budget / run.shape.flops) <= 4  # half a batch
    assert len({run.images for run in runs}) > 1


def test_budgets_are_spent_about_a_guess_and_those_that_show_no_minimum_are_told(tmp_path):
    sizes = [run.shape.params for run in sweep.expand(sweep.load(str(write(tmp_path)))) if run.family == "mmdit flow"]
    small, large = min(sizes), max(sizes)
    guess = f"budgets=(1e9,), guess=({small / 1e9**0.5}, 0.5), reach={large / small / 1.01}"
    plan = sweep.load(str(write(tmp_path, ("images=(40, 80)", guess))))
    runs = sweep.expand(plan)
    assert {run.shape.params for run in runs if run.family == "mmdit flow"} == {small}
    assert "mmdit flow: 1e+09 FLOPs are spent by 1 size; a parabola needs 4" in sweep.thin(plan, runs)


def test_the_plan_is_listed_with_numbers(tmp_path, capsys):
    command = ["sweep", f"--config={write(tmp_path)}", f"--workdir={tmp_path / 'w'}", "--list",
               "--config.machine={'chips': 4, 'peak': 1e15, 'mfu': 0.5}"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [int(line.split()[0]) for line in lines if not line.startswith("#")] == list(range(20))
    assert "20 runs, 40 rows" in lines[20] and "minutes of 4 chips of 1000 TFLOP/s at 50% MFU" in lines[21]
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(("change", "part"), [
    (("images=(40, 80)", "images=(40, 80), budgets=(1e9,)"), "config.images and config.budgets"),
    (("images=(40, 80)", "images=(16, 80)"), "16 leave no trunk"),
    (("images=(40, 80)", "images=(40, 40)"), "config.images=(40, 40)"),
    (("seeds=(0, 1)", "seeds=()"), "config.seeds is empty"),
    (("cooldown=0.4", "cooldown=1.5"), "config.cooldown=1.5"),
    (("batch_size=8", "batch_size=8, seed=1"), "config.base.seed is set by config.seeds"),
    (("warmup_images=16", "warmup_images=16, lr=1e-3"), "config.base.optimizer.lr is set by config.architectures"),
    (("levels=2", "levels=0"), "config.base.evaluation.levels is missing"),
    (("lr={1: 2e-3}", "lr={2: 2e-3}"), "no rate for size 1"),
    (("lr={1: 2e-3}", "lr=-1"), "config.architectures.unet.lr=-1"),
    (('base="small"', 'base="sd9"'), "config.architectures.unet: size 1: base='sd9'"),
    (('family="unet"', 'family="vae"'), "config.architectures.unet.family='vae'"),
    (("cooldown=0.4", "cooldwn=0.4"), "config.cooldwn is an unknown key; did you mean 'cooldown'?"),
    (("images=(40, 80)", "budgets=(1e3,), min_images=24"), "config.budgets give no size"),
    (("together=4", "together=0"), "config.architectures.mmdit.together=0"),
    (("sizes=(1, 2)", "sizes=(0, 1)"), "config.architectures.mmdit: size 0: sizes are 1, 2"),
    (("together=4", "together=4, seeds={3: (0, 1)}"), "config.architectures.mmdit.seeds={3: (0, 1)} should name sizes"),
    (("together=4", "together=4, seeds={1: (0, 0)}"), "config.architectures.mmdit.seeds={1: (0, 0)} should name sizes"),
    (("together=4", "together=4, base=dict(seed=1)"), "config.architectures.mmdit.base.seed is set by config.seeds"),
    (("together=4", "together=4, base=dict(batch_size=4)"), "mmdit.base.batch_size must be the same for all"),
])
def test_bad_plans_are_one_line_and_write_nothing(tmp_path, capsys, change, part):
    command = ["sweep", f"--config={write(tmp_path, change)}", f"--workdir={tmp_path / 'w'}"]
    assert main(command) != 0
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith("lgm sweep: ") and part in line
    assert not (tmp_path / "w").exists()


def test_runs_that_share_a_program_take_images_of_one_size(tmp_path):
    changes = (("data=dict(", "data=dict(buckets=8, "), ("distance=3, ", ""))
    with pytest.raises(ValueError, match="config.architectures.mmdit.together=4: images of several sizes"):
        sweep.expand(sweep.load(str(write(tmp_path, *changes)), ()))
    alone = (("together=4", "together=1"), ("together=2", "together=1"))
    assert sweep.expand(sweep.load(str(write(tmp_path, *changes, *alone)), ()))


def test_a_number_that_is_no_run(tmp_path, capsys):
    command = ["sweep", f"--config={write(tmp_path)}", f"--workdir={tmp_path / 'w'}", "--only=20"]
    assert main(command) != 0
    assert "--only=20 is not a run of this plan; --list shows them, 0 to 19" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


def test_a_step_of_matrices_shrinks_with_their_fan_in():
    """muP with Adam: lr times fan-in at the base over fan-in here for matrices, lr for everything else."""
    from lgm.train.optimizer import width_factors

    make = lambda width: build(classes("mmdit")[0](channels=4, patch_size=1, width=width, depth=3,
                                                          heads=width // 16, text_dim=8, pooled_dim=8)).abstract()
    factors = width_factors(make(64), make(16))
    assert factors["blocks"]["image"]["mlp"]["fc1"]["kernel"] == 0.25
    assert factors["blocks"]["image"]["mlp"]["fc2"]["kernel"] == 0.25
    assert factors["out"]["kernel"] == 0.25
    assert factors["patches"]["kernel"] == factors["text"]["kernel"] == 1.0
    assert {leaf for path, leaf in jax.tree_util.tree_leaves_with_path(factors) if path[-1].key != "kernel"} == {1.0}


SECTIONS = ("base.optimizer", "base.evaluation", "base.data", "architectures.mmdit", "machine", "images", "seeds",
            "architectures.mmdit.lr", "architectures.mmdit.sizes", "objectives.flow", "objectives.flow.loss",
            "base.sampling")  # fmt: skip


@pytest.mark.parametrize("value", ["1", "'x'", "[1]", "{'name': [1]}", "None", "(0, 1)", "{}", "float('nan')"])
def test_a_plan_mistyped_is_one_line(value):
    """A plan, or one line; what is never there is a traceback."""
    config = str(Path(__file__).parents[2] / "configs/scaling/smoke.py")
    for key in SECTIONS:
        try:
            sweep.load(config, [(key, value)])
        except ConfigError as error:
            assert "\n" not in str(error) and "config." in str(error)


SHIPPED = ["smoke.py", "one_gpu.py", "pod.py:mmdit-flow", "pod.py:mmdit-eps", "pod.py:unet-flow", "pod.py:unet-eps"]


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_sweep_is_listed_and_its_budgets_can_show_a_minimum(name, capsys, tmp_path):
    config = Path(__file__).parents[2] / "configs/scaling" / name
    assert main(["sweep", f"--config={config}", f"--workdir={tmp_path}", "--list"]) == 0
    said = capsys.readouterr().out
    assert "training FLOPs" in said and "parabola" not in said and "expected optimum" not in said
    listed = re.search(r"# (\d+) runs, (\d+) rows", said)
    doc = " ".join(ast.get_docstring(ast.parse(Path(str(config).partition(":")[0]).read_text())).split())
    if not name.startswith("smoke"):
        assert re.search(rf"\b{listed[1]} runs\b.*?\b{listed[2]} rows\b", doc), (listed[0], doc)


def test_images_that_are_nearly_training_images_are_not_called_held_out_unless_told(tmp_path, capsys):
    data = "heldout_where=dict(subcategory=\"face-glasses\")"
    path = write(tmp_path, (data, data.replace("glasses", "hat")))
    assert main(["sweep", f"--config={path}", f"--workdir={tmp_path / 'runs'}", "--only=0"]) == 2
    said = capsys.readouterr().err
    assert "8 of 8 held-out images are near duplicates of training images: emoji64/" in said and said.count("\n") == 1
    assert "set config.near_duplicates='keep'" in said and not (tmp_path / "runs").exists()
    assert sweep.load(str(path), [("near_duplicates", "keep")]).near_duplicates == "keep"


def test_images_that_nobody_looked_at_are_not_called_held_out_unless_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sweeping, "overlap", lambda *sets: overlap(*sets, most=5))
    monkeypatch.setattr(kept_hashes, "read", lambda *words: np.zeros(0, kept_hashes.KEPT))
    assert main(["sweep", f"--config={write(tmp_path)}", f"--workdir={tmp_path / 'runs'}", "--only=0"]) == 2
    said = capsys.readouterr().err
    assert "are not looked for" in said and "set config.near_duplicates='keep'" in said and said.count("\n") == 1
