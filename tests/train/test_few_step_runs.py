"""Losses of few-step training and of teachers, from a config to a picture."""

import dataclasses
import importlib
import re
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lgm import config as schema
from lgm import files, gaussian, losses
from lgm.cli import main
from lgm.drawing import draw, draw_latents
from lgm.parallel import make_layout
from lgm.parsing import ConfigError
from lgm.system import build_system
from lgm.train import denoise, teaching
from lgm.train.opening import load_run
from lgm.train.start import _check_same, open_system
from lgm.train.state import init_state, make_step

JUMP = (("model.jump", "True"), ("attention", "xla"))
TRIGONOMETRIC = (("process", "{'name': 'trigonometric'}"), ("loss.target", "v"), ("attention", "xla"),
                 ("loss.density", "{'name': 'log_tangent'}"))  # fmt: skip
EDM = (("process", "{'name': 'edm'}"), ("loss.target", "edm"))
BARE = (("evaluation.every_images", "0"), ("sampling.count", "0"))  # what a run is besides is tested elsewhere
FLUX = ("--config.model={'family': 'flux', 'channels': 32, 'patch_size': 1, 'width': 32, 'depth': 1, "
        "'single_depth': 1, 'heads': 2, 'text_dim': 32, 'pooled_dim': 32, 'rotary_axes': (4, 6, 6), "
        "'guidance': False}")  # fmt: skip
CAPTION = ["face with cowboy hat, noto style"]


def words(pairs):
    return [f"--config.{key}={value}" for key, value in pairs]


def step_of(path, overrides, batch=None):
    """(loss, gradient) of one batch of latents under a config, as the train step takes it."""
    config = schema.load(path, overrides)
    system, frozen = build_system(config)
    params = system.init(jax.random.key(0))
    tokens, mask = system.tokenize(CAPTION * 8)
    batch = {"latent": jax.random.normal(jax.random.key(1), (8, *system.latent_shape())), "tokens": tokens,
             "mask": mask} | (batch or {})  # fmt: skip
    drawn = batch | denoise.make_draw(config, system)(batch, jax.random.key(2))
    loss, frozen = denoise.make_loss(config, system), frozen | {"averaged": params}
    return jax.jit(jax.value_and_grad(lambda p: loss(p, frozen, drawn, jax.random.key(2))[0]))(params)


@pytest.mark.parametrize("overrides", [
    pytest.param((*JUMP, ("loss.name", "mean_flow"), ("loss.power", "0.0"), ("loss.same", "0.0")),
                 marks=pytest.mark.slow),
    pytest.param((*JUMP, ("loss.name", "mean_flow"), ("loss.scale", "1.5"), ("loss.kappa", "0.3"),
                  ("loss.interval", "(0.0, 0.8)")), marks=pytest.mark.slow),
    pytest.param((*JUMP, ("loss.name", "shortcut"), ("loss.levels", "3"), ("loss.scale", "1.5")),
                 marks=pytest.mark.slow),
    pytest.param((*TRIGONOMETRIC, ("loss.name", "consistency")), marks=pytest.mark.slow),
    pytest.param((("loss.name", "contrastive"), ("loss.weight", "0.1")), marks=pytest.mark.slow),
    pytest.param((*EDM, ("loss.name", "discrete_consistency"), ("loss.growth", "root")), marks=pytest.mark.slow),
], ids=lambda overrides: dict(overrides)["loss.name"])  # fmt: skip
def test_a_loss_by_name_has_finite_gradients_that_reach_the_network(tiny_config, overrides):
    value, gradient = step_of(tiny_config, overrides)
    assert np.isfinite(value)
    moved = {name: float(max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(part)))
             for name, part in gradient["denoiser"].items()}  # fmt: skip
    assert np.isfinite(list(moved.values())).all() and moved["out"] > 0, moved


def test_every_loss_stands_in_the_table_by_its_own_name():
    for name, place in losses.LOSSES.items():
        assert losses.loss(name).name == name and f'Loss("{name}"' in re.sub(r"\(\s+", "(", source(place))


def source(place):
    return Path(importlib.import_module(place.partition(":")[0]).__file__).read_text()


def test_a_loss_of_ones_own_is_trained_by_name(tiny_config, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "losses"))
    own = ("loss.name", "own_loss:ABSOLUTE")
    (one, _), (two, gradient) = (step_of(tiny_config, (own, ("loss.factor", factor))) for factor in ("1.0", "2.0"))
    assert float(two) == pytest.approx(2 * float(one), rel=1e-5)  # a rounding or two of float32
    assert float(jnp.abs(gradient["denoiser"]["out"]["kernel"]).max()) > 0
    assert schema.load(tiny_config, [own]).loss.name == own[1]


def test_a_shortcut_learns_its_jumps_from_the_averaged_network(tiny_config):
    """A step whose EMA is moved by hand has another loss; unless it is told not to ask it, which it then does not."""
    config = schema.load(tiny_config, (*JUMP, ("loss.name", "shortcut")))
    system, frozen = build_system(config)
    tokens, mask = system.tokenize(CAPTION * 8)
    batch = {"latent": jax.random.normal(jax.random.key(1), (8, *system.latent_shape())), "tokens": tokens,
             "mask": mask}  # fmt: skip
    optimizer = optax.sgd(0.0)
    loss, draw_for = denoise.make_loss(config, system), denoise.make_draw(config, system)
    step, state = jax.jit(make_step(config, loss, optimizer, draw_for)), init_state(
        system.init(jax.random.key(0)), optimizer)  # fmt: skip
    moved = jax.tree.map(lambda leaf: leaf + 0.05, state.ema)
    values = [float(step(one, frozen, batch)[1]["loss"]) for one in (state, dataclasses.replace(state, ema=moved))]
    assert abs(values[1] - values[0]) > 1e-4
    record = losses.loss("shortcut")
    make = lambda **options: record.make(losses.Setting(system.process, "flow", None, None), **options)
    assert record.extra(make()) == ("averaged",) and record.extra(make(averaged=False, scale=2.0)) == ("uncond",)


def test_a_draw_that_changes_as_training_goes_on_is_told_how_far_it_is():
    config, optimizer = schema.Config(name="x", model=None, total_images=80, batch_size=8), optax.sgd(0.1)
    draw = lambda batch, key, progress: {"told": jnp.full(8, progress)}
    loss = lambda params, frozen, batch, key: (params["w"], {"told": batch["told"].mean()})
    step, state = jax.jit(make_step(config, loss, optimizer, draw)), init_state({"w": jnp.ones(())}, optimizer)
    for number in range(3):
        state, metrics = step(state, {}, {"x": jnp.zeros(8)})
        assert float(metrics["told"]) == pytest.approx(number / 10)


@pytest.mark.slow
def test_pairs_of_a_teacher_are_the_ends_of_its_paths_and_what_a_reflow_learns(tiny_run, tiny_config, tmp_path,
                                                                                monkeypatch):
    overrides = (("loss.name", "reflow"), ("loss.teacher", {"workdir": str(tiny_run), "pairs": 20, "steps": 3}))
    overrides = tuple((key, str(value)) for key, value in overrides)
    config = schema.load(tiny_config, overrides)
    task = denoise.make_task(config, task_layout(), tmp_path)
    batch = next(task.batches)
    assert batch["noise"].shape == batch["latent"].shape == (8, 8, 8, 32)
    teacher = load_run(str(tiny_run), "ema")[:3]
    captions = _captions(config)
    told = [captions[i % len(captions)] for i in range(20)]
    latents, noise = draw_latents(*teacher, told, config.seed, solver="heun", steps=3, guidance=1.0)
    rows = batch["index"]
    np.testing.assert_array_equal(batch["noise"], noise[rows])
    np.testing.assert_allclose(batch["latent"], latents[rows], atol=1e-6)
    drawn = task.draw(batch, jax.random.key(0))
    np.testing.assert_array_equal(drawn["eps"], batch["noise"])

    calls = []
    monkeypatch.setattr(teaching, "draw_latents", lambda *given, **options: calls.append(1) or draw_latents(
        *given, **options))  # fmt: skip
    again = lambda **changes: next(denoise.make_task(dataclasses.replace(config, **changes), task_layout(),
                                                     tmp_path).batches)
    np.testing.assert_array_equal(again()["latent"], batch["latent"])
    assert not calls  # they are read
    (shard,) = (tmp_path / "pairs").glob("shard-*")
    whole = shard.read_bytes()
    shard.unlink()  # a file of its own, as a reader ahead may still have the old one in its memory
    shard.write_bytes(whole[:-100])
    np.testing.assert_array_equal(again()["latent"], batch["latent"])
    assert len(calls) == 1  # a file cut short is none
    assert not np.array_equal(again(seed=1)["noise"], batch["noise"])
    assert len(calls) == 2  # and pairs of other noise are others


@pytest.fixture(scope="module")
def reflowing(tiny_run):
    """What a config says of a reflow on 40 pairs of the tiny run, by one Euler step each."""
    return (("loss.name", "reflow"), ("text.caption_dropout", "0.0"), ("sampling.count", "0"),
            ("loss.teacher", str({"workdir": str(tiny_run), "pairs": 40, "solver": "euler", "steps": 1})))  # fmt: skip


@pytest.mark.slow
def test_pairs_drawn_beforehand_in_parts_are_those_that_a_run_draws(tiny_config, tiny_run, reflowing, tmp_path, capsys):
    """Written by two processes' words, one killed between, they are the same bits; training takes them as its own, and
    as the pairs that the teacher's step joins at that noise. Those of anything else are one line with its key."""
    cache = tmp_path / "cache"
    draw_them = lambda part, *more: main(["pairs", f"--config={tiny_config}", f"--out={cache}", f"--part={part}",
                                          "--rows=16", *words(reflowing), *more])  # fmt: skip
    assert draw_them("1/2") == 0 and "40 pairs, not complete yet" in capsys.readouterr().out
    left = cache / "shard-00001.safetensors"
    before = left.stat().st_mtime_ns
    assert draw_them("0/2") == 0 and "40 pairs, complete and verified" in capsys.readouterr().out
    (cache / "shard-00002.safetensors").unlink()
    assert draw_them("0/1") == 0  # what a kill left undone, and no more
    assert left.stat().st_mtime_ns == before

    batches, values = [], []
    for more in ((), (("loss.teacher.cache", str(cache)),)):
        config = schema.load(tiny_config, (*reflowing, *more))
        task = denoise.make_task(config, task_layout(), tmp_path / str(len(batches)))
        batches.append(next(task.batches))
        batch = batches[-1] | task.draw(batches[-1], jax.random.key(0))
        if not values:
            params, value = task.init(jax.random.key(0)), jax.jit(task.loss)
        values.append(float(value(params, task.frozen, batch, None)[0]))
    for name in ("latent", "noise", "tokens", "index"):
        np.testing.assert_array_equal(batches[0][name], batches[1][name])
    teacher = teaching.Teacher(*load_run(str(tiny_run), "ema")[:3])
    step = jax.jit(lambda x, words: x - teacher.predictor(teacher.params, *words)(x, jnp.ones(len(x)), None))
    ended = step(batch["noise"], (batch["tokens"], batch["mask"]))
    values.append(float(value(params, task.frozen, batch | {"latent": ended}, None)[0]))
    # a step that is compiled with its network in one call more rounds otherwise
    assert values[0] == values[1] and values[2] == pytest.approx(values[0], rel=1e-5)

    for key, text in (("loss.teacher.steps", "2"), ("loss.teacher.solver", "heun"), ("loss.teacher.guidance", "2.0"),
                      ("seed", "1"), ("loss.teacher.pairs", "41")):  # fmt: skip
        config = schema.load(tiny_config, (*reflowing, ("loss.teacher.cache", str(cache)), (key, text)))
        with pytest.raises(ValueError, match=rf"was made with config\.{key}=\S+, not {text}; ") as error:
            teaching.pairs(config, teacher, _captions(config), tmp_path)
        assert "\n" not in str(error.value)
    assert main(["pairs", f"--config={tiny_config}", f"--out={cache}"]) == 2
    assert "takes no pairs of a teacher; config.loss.name=reflow or one_step would" in capsys.readouterr().err


@pytest.mark.slow
def test_a_network_that_is_told_jumps_starts_from_one_that_is_not(tiny_config, tiny_run):
    """Whatever jump it is told, it says at first what the other says."""
    config = schema.load(tiny_config, (*JUMP, ("loss.name", "shortcut"), ("init_from", str(tiny_run))))
    system, frozen, start = open_system(config, task_layout())
    theirs, params, _, _ = load_run(str(tiny_run), "ema")
    mine = system.whole(start(None), frozen)
    x, t = jax.random.normal(jax.random.key(0), (2, *system.latent_shape())), jnp.array([0.3, 0.9])
    cond = theirs.condition(params, *system.tokenize(CAPTION * 2))
    told = dataclasses.replace(cond, jump=jnp.array([0.0, 0.7]))
    np.testing.assert_array_equal(system.denoise(mine, x, t, told), theirs.denoise(params, x, t, cond))
    moved = jax.tree.map(lambda leaf: leaf + 0.05, mine["denoiser"]["jump"])
    other = system.denoise(mine | {"denoiser": mine["denoiser"] | {"jump": moved}}, x, t, told)
    assert float(jnp.abs(other - theirs.denoise(params, x, t, cond)).max()) > 1e-3
    with pytest.raises(ConfigError, match=r"config.model.jump=False, but that of config.init_from=.* is True"):
        _check_same(theirs.config.model, config.model, "config.model", "config.init_from='x'")


def test_a_teacher_is_asked_with_guidance():
    """Of a network that says what it is told plus t: twice what the caption says, less what none says."""
    system = types.SimpleNamespace(
        condition=lambda params, tokens, mask: tokens.sum(1), unconditional=lambda count: (jnp.ones((count, 3)), None),
        denoise=lambda params, x, t, cond: x + (params * cond + t)[:, None])  # fmt: skip
    tokens, t = jnp.array([[1.0, 2.0], [5.0, 0.0]]), jnp.array([0.25, 0.5])
    found = teaching.Teacher(system, 10.0, None).guided(10.0, tokens, None, 2.0)(jnp.zeros((2, 1)), t, None)
    np.testing.assert_allclose(found[:, 0], 10.0 * (2.0 * jnp.array([3.0, 5.0]) - 3.0) + t)


@pytest.mark.parametrize("name, solver", [("reflow", "euler"), ("one_step", "euler"), ("mean_flow", "jump"),
                                          ("shortcut", "jump"), ("consistency", "consistency")])  # fmt: skip
def test_a_page_of_few_steps_takes_all_else_from_a_run(tiny_config, tmp_path, name, solver):
    run = schema.load(tiny_config, TRIGONOMETRIC[:2] if name == "consistency" else ())
    files.write_json(tmp_path / "config.json", schema.to_dict(run))
    page = Path(__file__).parents[2] / f"configs/few_steps/{name}.py"
    config = schema.load(f"{page}:{tmp_path}")
    build_system(config)
    assert config.loss.name == name and config.init_from == str(tmp_path) and config.data == run.data
    assert config.sampling.solver == solver and config.sampling.guidance == 1.0 and config.sampling.steps <= 4
    assert dataclasses.replace(config.model, **({"jump": False} if solver == "jump" else {})) == run.model
    with pytest.raises(ConfigError, match="is no run's folder"):
        schema.load(f"{page}:{tmp_path}/none")


def test_how_a_network_is_drawn_from_follows_its_loss(tiny_config):
    unsaid = lambda *more: schema.load(tiny_config, [("sampling", "{'count': 0}"), *more]).sampling
    of = {"mean_flow": (*JUMP,), "shortcut": JUMP, "consistency": TRIGONOMETRIC, "discrete_consistency": EDM}
    drawn = {name: unsaid(*more, ("loss.name", name)).solver for name, more in of.items()}
    assert drawn == {"mean_flow": "jump", "shortcut": "jump", "consistency": "consistency",
                     "discrete_consistency": "consistency"}  # fmt: skip
    assert (unsaid().solver, unsaid().steps) == ("euler", 30)
    taught = ("loss.teacher", "{'workdir': 'x'}")
    assert unsaid(taught, ("loss.name", "one_step")).steps == 1
    assert unsaid(taught, ("loss.name", "progressive"), ("loss.steps", "4")).steps == 4
    assert schema.load(tiny_config, [("sampling.solver", "heun")]).sampling.solver == "heun"


def test_a_digest_of_weights_tells_every_bit_and_every_place():
    tree = {"a": jax.random.normal(jax.random.key(0), (4, 3)), "b": jnp.zeros(2)}
    digests = {teaching.weights_digest(tree)}
    for change in (lambda a: a.at[2, 1].add(1e-7), lambda a: a[::-1], lambda a: a.T.reshape(4, 3), lambda a: -a,
                   lambda a: a.at[0, 0].set(a[1, 1]).at[1, 1].set(a[0, 0])):  # fmt: skip
        digests.add(teaching.weights_digest(tree | {"a": change(tree["a"])}))
    digests.add(teaching.weights_digest(tree | {"b": jnp.asarray([0.0, -0.0])}))
    assert len(digests) == 7
    assert teaching.weights_digest(jax.tree.map(np.asarray, tree)) in digests


def task_layout():
    return make_layout({"data": 1}, jax.devices()[:1])


def _captions(config):
    from lgm.data import open_images

    data = config.data
    return open_images(data.source, where=data.where, resolution=data.resolution, caption=data.caption).captions


@pytest.mark.slow
@pytest.mark.parametrize("overrides, solver", [
    ((*JUMP, ("loss.name", "mean_flow"), ("loss.scale", "1.5")), "jump"),
    ((*TRIGONOMETRIC, ("loss.name", "consistency"), ("accumulate", "2")), "consistency"),
    ((*EDM, ("loss.name", "discrete_consistency")), "consistency"),
    ((("loss.name", "progressive"), ("loss.steps", "1")), "euler"),
], ids=lambda value: value if isinstance(value, str) else dict(value)["loss.name"])  # fmt: skip
def test_a_run_of_each_kind_of_few_step_loss_draws_in_one_step(tiny_config, tiny_run, tmp_path, overrides, solver):
    if dict(overrides)["loss.name"] == "progressive":
        overrides += (("loss.teacher", {"workdir": str(tiny_run)}), ("sampling.steps", "1"))
    run, out = tmp_path / "run", tmp_path / "x.png"
    assert main(["train", f"--config={tiny_config}", f"--workdir={run}", *words(overrides + BARE)]) == 0
    assert main(["sample", f"--workdir={run}", f"--prompt={CAPTION[0]}", f"--out={out}", "--steps=1", "--guidance=1",
                 f"--solver={solver}"]) == 0  # fmt: skip
    assert out.is_file()
    if solver == "jump":  # which is told where its step ends
        system, params, frozen, _ = load_run(str(run), "raw")
        jumped, euler = (draw(system, params, frozen, CAPTION, seed=1, solver=name, steps=1, guidance=1.0)
                         for name in ("jump", "euler"))  # fmt: skip
        assert np.abs(jumped.astype(int) - euler).max() > 0


@pytest.mark.slow
def test_a_consistency_model_is_distilled_of_a_run(tiny_config, tmp_path):
    teacher, other = tmp_path / "teacher", tmp_path / "other"
    plain = words(TRIGONOMETRIC + BARE)
    assert main(["train", f"--config={tiny_config}", f"--workdir={teacher}", *plain]) == 0
    overrides = (*TRIGONOMETRIC, ("loss.name", "consistency"))
    named = (("loss.teacher", str({"workdir": str(teacher)})),)
    layout = make_layout({"data": 1}, jax.devices()[:1])
    values = []
    for given in ((), named):
        task = denoise.make_task(schema.load(tiny_config, (*overrides, *given)), layout, tmp_path)
        assert ("teacher" in task.frozen) == bool(given)
        batch = next(task.batches)
        batch |= task.draw(batch, jax.random.key(0))
        values.append(float(jax.jit(task.loss)(task.init(jax.random.key(0)), task.frozen, batch, None)[0]))
    assert np.isfinite(values).all() and values[0] != values[1]
    assert main(["train", f"--config={tiny_config}", f"--workdir={other}", *plain, "--config.loss.name=consistency",
                 "--config.loss.teacher=" + str({"workdir": str(other)})]) != 0  # which is no run yet


@pytest.mark.parametrize("overrides, part", [
    ([("loss.name", "meanflow")], "config.loss.name='meanflow': unknown; did you mean 'mean_flow'"),
    ([("loss.name", "mean_flow")], "needs config.model.jump=True"),
    ([("model.jump", "True")], "config.model.jump=True is for the losses mean_flow and shortcut"),
    ([*JUMP[:1], ("loss.name", "mean_flow")], "takes a forward derivative .* set config.attention='xla'"),
    ([*JUMP, ("loss.name", "mean_flow"), ("loss.target", "v")], "is stated for config.process.name='rectified_flow'"),
    ([*JUMP, ("loss.name", "mean_flow"), ("loss.sam", "0.5")], "loss 'mean_flow' has no option 'sam'; did you mean"),
    ([*JUMP, ("loss.name", "mean_flow"), ("loss.same", "2.0")], "config.loss: same=2.0 is a share"),
    ([("attention", "xla"), ("loss.name", "consistency")], "is stated for config.process.name='trigonometric'"),
    ([("loss.name", "reflow")], "needs config.loss.teacher"),
    ([("loss.teacher", "{'workdir': 'x'}")],
     "config.loss.teacher is for the losses reflow, one_step, .*guidance_distillation, not denoising"),
    ([("loss.name", "reflow"), ("loss.teacher", "{'workdir': 'x', 'pairs': 4}")], "pairs=4 is less than"),
    ([("loss.name", "guidance_distillation"), ("loss.teacher", "{'workdir': 'x'}")], "needs a network that is "),
    ([("loss.name", "own_los:ABSOLUTE")], "config.loss.name='own_los:ABSOLUTE': own_los cannot be imported"),
    ([("loss.name", "own_loss:Absolute")], "Absolute of own_loss is no lgm.losses.Loss"),
    ([("loss.name", "own_loss:ABSOLUTE"), ("loss.facto", "2.0")], "has no option 'facto'; did you mean 'factor'"),
    ([("sampling.solver", "jump")], "is for models of mean velocities"),
    ([("loss.name", "one_step"), ("loss.teacher", "{'workdir': 'x'}")],
     "config.sampling.steps=2: config.loss.name='one_step' trains a network to be drawn in 1 alone; set it to 1"),
    ([*TRIGONOMETRIC, ("loss.name", "consistency"), ("loss.teacher", "{'workdir': 'x', 'cache': 'y'}")],
     "config.loss.teacher.cache='y' is of pairs, and .*'consistency' asks its teacher in every step"),
    ([*TRIGONOMETRIC, ("loss.name", "consistency"), ("loss.warmup", "2.0")], "warmup=2.0 is a share of the training"),
    ([("loss.targt", "v")], "config.loss.targt is an unknown key; did you mean 'target'"),
    ([("loss.name", "contrastive"), ("loss.weight", "1.0")], "weight=1.0 must lie between 0 and 1"),
    ([("loss.name", "one_step"), ("loss.teacher", "{'workdir': 'x'}"), ("sampling.steps", "1"),
      ("loss.distance", "hubber")],
     "config.loss.distance: unknown distance 'hubber'"),
])  # fmt: skip
def test_losses_that_cannot_be_are_one_line(tiny_config, overrides, part):
    with pytest.raises(ConfigError, match=part) as error:
        build_system(schema.load(tiny_config, overrides))
    assert "\n" not in str(error.value)


def test_a_config_with_a_loss_of_its_own_survives_json(tiny_config):
    config = schema.load(tiny_config, [*JUMP, ("loss.name", "mean_flow"), ("loss.same", "0.5")])
    assert config.loss.options == {"same": 0.5} and schema.from_dict(schema.to_dict(config)) == config


@pytest.mark.slow
def test_guidance_is_distilled_of_a_run_into_a_network_that_is_told_the_scale(tiny_config, tmp_path):
    """The student's goal is the teacher's guided prediction; it is drawn in one pass a step by the scale it is told."""
    teacher, student, out = tmp_path / "teacher", tmp_path / "student", tmp_path / "x.png"
    flux = [f"--config.{key}={value}" for key, value in BARE] + [FLUX]
    assert main(["train", f"--config={tiny_config}", f"--workdir={teacher}", *flux]) == 0
    told = [FLUX.replace("'guidance': False", "'guidance': True"), "--config.loss.name=guidance_distillation",
            "--config.loss.scales=(2.0, 2.0)", f"--config.loss.teacher={dict(workdir=str(teacher))}"]  # fmt: skip
    assert main(["train", f"--config={tiny_config}", f"--workdir={student}", *words(BARE), *told]) == 0
    drawn = []
    for scale in (1.0, 5.0):
        assert main(["sample", f"--workdir={student}", f"--prompt={CAPTION[0]}", f"--out={out}", "--steps=1",
                     f"--guidance={scale}"]) == 0  # fmt: skip
        drawn.append(out.read_bytes())
    assert drawn[0] != drawn[1]

    overrides = [(key.removeprefix("--config."), value) for key, _, value in (word.partition("=") for word in told)]
    config = schema.load(tiny_config, [*BARE, *overrides])
    task = denoise.make_task(config, task_layout(), tmp_path)
    batch = next(task.batches)
    batch |= task.draw(batch, jax.random.key(0))
    system, params, _, _ = load_run(str(teacher), "ema")
    x_t = gaussian.add_noise(system.process, batch["latent"], batch["eps"], batch["t"])
    c, u = (system.denoise(params, x_t, batch["t"], system.condition(params, *words)) for words in (
        (batch["tokens"], batch["mask"]), system.unconditional(8)))  # fmt: skip
    trained = task.init(jax.random.key(0))
    theirs = build_system(config)[0]
    whole = theirs.whole(trained, task.frozen)
    cond = dataclasses.replace(theirs.condition(whole, batch["tokens"], batch["mask"]), guidance=jnp.full(8, 2.0))
    goal = u + 2.0 * (c - u)
    error = np.asarray(theirs.denoise(whole, x_t, batch["t"], cond) - goal, np.float64)
    value = float(task.loss(trained, task.frozen, batch, None)[0])
    assert value == pytest.approx(np.mean(error**2), rel=1e-4)  # float32 networks, summed in another order
