"""What a config and the words of `lgm sample` say of drawing and training reaches the solver and the loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lgm import config as schema
from lgm import gaussian, sampling
from lgm.cli import main
from lgm.drawing import draw
from lgm.losses.densities import pdf
from lgm.parsing import ConfigError
from lgm.pictures import Start
from lgm.system import build_system
from lgm.train.opening import load_run

CAPTIONS = ["face with cowboy hat, noto style", "partying face, twemoji style"]


@functools.cache
def system_of(path, *overrides):
    return build_system(schema.load(path, overrides))


@pytest.fixture(scope="module")
def run(tiny_run):
    system, params, frozen, _ = load_run(str(tiny_run), "ema")
    return system, params, frozen


def apart(x, y):
    return np.abs(x.astype(int) - y.astype(int)).mean()


@pytest.mark.slow
def test_each_setting_of_drawing_changes_the_picture(run):
    plain = draw(*run, CAPTIONS, seed=1)
    np.testing.assert_array_equal(draw(*run, CAPTIONS, seed=1, rule={"name": "plain"}), plain)
    changed = {
        "rule": {"rule": "rescaled:share=1.0", "guidance": 6.0},
        "projected": {"rule": {"name": "projected", "momentum": -0.5, "limit": 3.0}},
        "interval": {"interval": (0.0, 0.6)},
        "negative": {"negative": "red heart, noto style"},
        "schedule": {"schedule": {"spacing": "karras", "rho": 3.0, "shift": 2.0}},
    }
    for name, words in changed.items():
        drawn = draw(*run, CAPTIONS, seed=1, **words)
        assert drawn.shape == plain.shape and apart(drawn, plain) > 0, name


@pytest.mark.slow
def test_a_stochastic_solver_draws_each_image_alike_in_any_batch(run):
    words = dict(seed=3, solver={"name": "ddim", "eta": 1.0}, guidance=1.0)
    both, one = draw(*run, CAPTIONS, **words), draw(*run, CAPTIONS[:1], **words)
    np.testing.assert_array_equal(both[0], one[0])
    assert apart(draw(*run, CAPTIONS, **words | {"seed": 4})[0], both[0]) > 1
    assert apart(draw(*run, CAPTIONS, **words | {"solver": "euler"})[0], both[0]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["dpmpp_2m_sde", "ddim:eta=0.5", "dpmpp_2s_sde", "dpm_2_ancestral", "heun:s_churn=2",
                                    "lcm"])  # one of each way to draw noise
def test_what_a_stochastic_solver_draws_on_its_way_follows_the_seed(run, monkeypatch, solver):
    """Under the same x_T: one seed is one picture, another seed another."""
    system = run[0]
    x_T = sampling.noise(7, range(16), system.latent_shape())
    monkeypatch.setattr(sampling, "noise", lambda seed, rows, shape: x_T)
    jax.clear_caches()  # a program compiled before has its own noise
    drawn = lambda seed, solver: draw(*run, CAPTIONS[:1], seed=seed, solver=solver, guidance=1.0, steps=3)
    one = drawn(1, solver)
    np.testing.assert_array_equal(drawn(1, solver), one)
    assert apart(drawn(2, solver), one) > 0.5
    np.testing.assert_array_equal(drawn(1, "euler"), drawn(2, "euler"))


@pytest.mark.slow
def test_a_masked_image_is_kept_where_the_mask_is_black(run):
    system, _, frozen = run
    image = np.full((64, 64, 3), 0.8, np.float32)
    image[16:48, 16:48] = 0.2
    mask = np.zeros((64, 64), bool)
    kept = draw(*run, CAPTIONS[:1], start=Start(image, 1.0, mask))[0]
    pixels = np.round(image[None] * 255).astype(np.uint8)
    through = np.asarray(system.decode(frozen, system.encode(frozen, pixels)))[0]
    assert apart(kept, through) < 1.0  # the autoencoder's own reconstruction, and rounding
    mask[:, 32:] = True
    half = draw(*run, CAPTIONS[:1], start=Start(image, 1.0, mask))[0]
    assert apart(half[:, :16], through[:, :16]) < 4.0 < apart(half[:, 40:], through[:, 40:])
    weak, strong = (draw(*run, CAPTIONS[:1], start=Start(image, s), steps=8)[0] for s in (0.2, 1.0))
    assert apart(weak, through) < apart(strong, through)


def test_every_word_of_the_command_line_is_drawn_with(tiny_run, tmp_path):
    picture = tmp_path / "start.png"
    Image.new("RGB", (80, 90), "orange").save(picture)
    Image.new("L", (80, 90), 255).save(tmp_path / "mask.png")
    out = tmp_path / "x.png"
    words = ["--solver=unipc:order=3", "--schedule=karras:rho=5", "--rule=projected:momentum=-0.5", "--steps=4",
             "--interval=0.05,0.9", "--negative=red heart, noto style", "--guidance=3", f"--image={picture}",
             "--strength=0.9", f"--mask={tmp_path / 'mask.png'}"]  # fmt: skip
    assert main(["sample", f"--workdir={tiny_run}", f"--prompt={CAPTIONS[0]}", f"--out={out}", *words]) == 0
    assert out.is_file()


@pytest.mark.parametrize("arguments, part", [
    (["--solver=unipc:order=9"], "order=9 must be 1, 2 or 3"),
    (["--solver=unipc:order=two"], "solver 'unipc': order='two' must be a whole number"),
    (["--solver=unipc:order"], "should read NAME or NAME:OPTION=VALUE"),
    (["--rule=rescale"], "unknown guidance rule 'rescale'; did you mean 'rescaled'"),
    (["--rule=rescaled:share=2"], "share=2 of the rescaled prediction must lie between 0 and 1"),
    (["--rule=projected:momentum=3"], "momentum=3 lie between -1 and 1"),
    (["--interval=0.9,0.1"], "interval=(0.9, 0.1) must rise within [0, 1]"),
    (["--interval=low"], "--interval=low is not a list of numbers"),
    (["--schedule=karas"], "unknown spacing 'karas'; did you mean 'karras'"),
    (["--schedule=karras:rho=0"], "rho=0 of spacing 'karras' must be above 0"),
    (["--schedule=even:shift=wide"], "shift='wide' must be above 0"),
    (["--schedule=trailing"], "counts a table's entries"),
    (["--strength=0.5"], "strength goes with image"),
    (["--mask=x.png"], "mask goes with image"),
    (["--image=none.png"], "none.png cannot be read as an image"),
])  # fmt: skip
def test_words_that_cannot_be_drawn_are_one_line(tiny_run, tmp_path, capsys, arguments, part):
    out = tmp_path / "x.png"
    assert main(["sample", f"--workdir={tiny_run}", "--prompt=face", f"--out={out}", *arguments]) != 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and part in lines[0], lines
    assert not out.exists()


@pytest.mark.parametrize("overrides, part", [
    ([("sampling.solver", "{'name': 'unipc', 'order': 9}")], "config.sampling.solver: .*order=9 must be"),
    ([("sampling.solver", "{'order': 2}")], "config.sampling.solver: .* has no name"),
    ([("sampling.rule", "rescale")], "config.sampling.rule: unknown guidance rule 'rescale'"),
    ([("sampling.interval", "[0.9, 0.1]")], "config.sampling.interval=.* must rise"),
    ([("sampling.clip", "-1.0")], "config.sampling.clip=-1.0 must be above 0"),
    ([("sampling.schedule.spacing", "karas")], "config.sampling.schedule: unknown spacing 'karas'"),
    ([("sampling.schedule.shift", "{'base': 3}")], "config.sampling.schedule: shift=.* should be a number"),
    ([("loss.density", "{'name': 'logit_normal', 'std': -1.0}")], "config.loss.density: .*std=-1.0 must be above 0"),
    ([("loss.density", "{'name': 'logit_normal', 'std': 'wide'}")], "std='wide' must be a number"),
    ([("loss.weighting", "{'name': 'min_snr', 'gamma': 0.0}")], "config.loss.weighting: .*gamma=0.0 must be above 0"),
    ([("loss.weighting", "{'name': 'importance'}")], "config.loss.weighting.density: .* has no name"),
    ([("process", "{'name': 'edm'}"), ("loss.target", "edm"),
      ("loss.density", "{'name': 'edm_log_normal', 'sigma_max': 10.0}")], "sigma_max=10.0 and .*=80.0 must agree"),
])  # fmt: skip
def test_settings_that_cannot_be_are_one_line(tiny_config, overrides, part):
    with pytest.raises(ConfigError, match=part) as error:
        build_system(schema.load(tiny_config, overrides))
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_an_edm_run_has_a_loss_of_one_at_first_and_draws_from_noise_of_80(tiny_config):
    overrides = (("process", "{'name': 'edm', 'sigma_data': 1.0}"), ("loss.target", "edm"),
                 ("loss.density", "{'name': 'edm_log_normal'}"))  # fmt: skip
    system, frozen = system_of(tiny_config, *overrides)
    params = system.init(jax.random.key(0))
    scale = system.sampler(system.config.sampling).scale
    assert scale == pytest.approx((80**2 + 1) ** 0.5)
    x = jax.random.normal(jax.random.key(1), (16, *system.latent_shape()))
    tokens, mask = system.tokenize([CAPTIONS[0]] * 16)
    seen = []

    def predict(x_t, t, cond):
        seen.append(gaussian.network_input(system.process, x_t, t))
        return system.denoise(params, x_t, t, cond)

    value, _ = system.objective(predict, x, system.condition(params, tokens, mask), jax.random.key(2))
    # unit data: the target F has unit variance, and so has what the network is given, at every noise level
    assert float(value) == pytest.approx(1.0, abs=0.02)
    assert float(jnp.std(seen[0])) == pytest.approx(1.0, abs=0.02)


@pytest.mark.slow
def test_an_edm_run_trains_and_draws(tiny_config, tmp_path):
    run, out = tmp_path / "run", tmp_path / "x.png"
    overrides = ["--config.process={'name': 'edm', 'sigma_data': 1.0}", "--config.loss.target=edm",
                 "--config.loss.density={'name': 'edm_log_normal'}", "--config.sampling.solver=heun"]  # fmt: skip
    assert main(["train", f"--config={tiny_config}", f"--workdir={run}", *overrides]) == 0
    assert main(["sample", f"--workdir={run}", f"--prompt={CAPTIONS[0]}", f"--out={out}"]) == 0 and out.is_file()


def test_a_shift_follows_the_resolution(tiny_config):
    system, _ = system_of(tiny_config)
    assert system.shift({"base_resolution": 32}) == 2.0  # sqrt of four times as many pixels
    assert system.shift("tokens") == gaussian.token_shift(64)
    moved = system_of(tiny_config, ("sampling.schedule.shift", "tokens"))[0]
    expected = gaussian.shift_time(np.linspace(1, 0, 3), gaussian.token_shift(64))
    np.testing.assert_allclose(moved.sampler(moved.config.sampling).timesteps.times, expected, atol=1e-6)


def test_an_eps_prediction_of_a_flow_starts_where_it_tells_the_data(tiny_config):
    system, _ = system_of(tiny_config, ("loss.target", "eps"))
    sampler = system.sampler(system.config.sampling)
    assert sampler.timesteps.times[0] == np.float32(0.999)
    assert sampler.scale == pytest.approx((0.999**2 + 0.001**2) ** 0.5)


@pytest.mark.parametrize("density, weighting", [
    ("{'name': 'weighting'}", "{'name': 'sd3'}"),
    ("{'name': 'uniform'}", "{'name': 'importance', 'density': {'name': 'logit_normal'}}"),
    ("{'name': 'mode'}", "{'name': 'importance', 'density': {'name': 'logit_normal'}}"),
    ("{'name': 'logit_normal', 'draws': 'stratified'}", "constant"),
])  # fmt: skip
def test_configs_that_trade_density_for_weighting_have_one_expectation(tiny_config, density, weighting):
    weighting = weighting if weighting.startswith("{") else "{'name': 'constant'}"
    system, _ = system_of(tiny_config, ("loss.density", density), ("loss.weighting", weighting))
    x = jax.random.normal(jax.random.key(0), (20000, 4))
    # a network whose error depends on t alone
    predict = lambda x_t, t, cond: jnp.sin(3 * t)[:, None] - x_t / gaussian.wide(t + 0.1, x_t)
    value, _ = jax.jit(lambda key: system.objective(predict, x, None, key))(jax.random.key(1))

    grid = jnp.linspace(1e-5, 1 - 1e-5, 20001)
    a, b = 1 - grid, grid
    c = 1 / (grid + 0.1)
    error = jnp.sin(3 * grid) ** 2 + (1 - c * a) ** 2 + (1 + c * b) ** 2
    exactly = float(jnp.mean(pdf("logit_normal")(grid) * error))
    assert float(value) == pytest.approx(exactly, rel=0.03)  # 20,000 draws of t
