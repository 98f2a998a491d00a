"""Losses against their closed form on Gaussian data, and their gradients at both ends of t."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgm import gaussian, losses
from lgm.losses import densities
from lgm.models import Conditioning

STD, MEAN = 0.6, 0.4  # of the data, N(MEAN, STD^2) in each of 16 elements
BATCH, DRAWS = 4096, 8
PROCESSES = {
    "ddpm": gaussian.ddpm(),
    "zero terminal": gaussian.ddpm(zero_terminal_snr=True),
    "vp": gaussian.continuous_vp(),
    "edm": gaussian.edm(),
    "flow": gaussian.rectified_flow(),
    "trigonometric": gaussian.trigonometric(),
}
SLOW = ("ddpm", "zero terminal", "vp", "trigonometric")
FEW = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in PROCESSES]
# the density of t that each weighting is shown under, and the targets of the network, so that each target has two
CASES = {
    "constant": ("logit_normal", {"shift": 2.0}, "v"),
    "snr": ("uniform", {}, "x"),
    "min_snr": ("cosmap", {}, "v"),
    "truncated_snr": ("uniform", {}, "edm"),
    "p2": ("logit_normal", {}, "eps"),
    "edm": ("mode", {}, "edm"),
    "sigmoid": ("uniform", {}, "flow"),
    "vlb": ("uniform", {}, "eps"),
    "flow": ("mode", {}, "flow"),
    "sd3": ("uniform", {}, "x"),
}
WRONG_STD, WRONG_MEAN = 0.8, 0.1  # of the data that the predictor believes in: its error, too, falls with the noise


def predictor(process, target):
    """The best prediction of x for other data, said in the target's kind."""

    def predict(x_t, t_B, cond=None):
        a, b = (gaussian.wide(c(t_B), x_t) for c in (process.a, process.b))
        x_hat = WRONG_MEAN + a * WRONG_STD**2 / (a**2 * WRONG_STD**2 + b**2) * (x_t - a * WRONG_MEAN)
        return gaussian.target(process, target, x_hat, (x_t - a * x_hat) / jnp.maximum(b, 1e-6), t_B)

    return predict


def x_error(a, b):
    """E (x - x_hat)^2 of that predictor: x_hat is Gaussian, jointly with x."""
    gain = a * WRONG_STD**2 / (a**2 * WRONG_STD**2 + b**2)
    return (1 - gain * a) ** 2 * (STD**2 + (MEAN - WRONG_MEAN) ** 2) + gain**2 * b**2


def target_error(process, target, t):
    """E of the squared error of that predictor at t; per x error it is ((a q - b p) / b)^2."""
    on = jnp.asarray(t, jnp.float32)
    a, b = (np.asarray(c(on), np.float64) for c in (process.a, process.b))
    p, q = (np.asarray(c, np.float64) for c in gaussian.coefficients(process, target, on))
    return ((a * q - b * p) / b) ** 2 * x_error(a, b)


def expectation(process, name):
    """The integral over t of density x weighting x error, by a rule whose points are dense at both ends."""
    density, options, target = CASES[name]
    u = (np.arange(200_000) + 0.5) / 200_000
    t, slope = u**2 * (3 - 2 * u), 6 * u * (1 - u)
    inside = (t > 1e-6) & (t < 1 - 1e-6)
    t, slope = t[inside], slope[inside]
    on = jnp.asarray(t, jnp.float32)
    weight = np.asarray(densities.pdf(density, **options)(on), np.float64) * np.asarray(
        losses.weighting(name)(process, target, on), np.float64)  # fmt: skip
    return float(np.sum(weight * target_error(process, target, t) * slope) / 200_000)


@functools.cache
def monte_carlo(process_name):
    """name -> (mean, standard error) of every weighting's loss over batches of fresh data, as one compiled program."""
    process = PROCESSES[process_name]

    @jax.jit
    def all_of(key):
        data_key, key = jax.random.split(key)
        x = MEAN + STD * jax.random.normal(data_key, (BATCH, 16))
        values = []
        for name, (density, options, target) in CASES.items():
            draw = losses.density(density, draws="stratified", **options)
            objective = losses.denoising(process, target, draw, losses.weighting(name))
            values.append(objective(predictor(process, target), x, None, key)[0])
        return jnp.stack(values)

    values = np.stack([all_of(key) for key in jax.random.split(jax.random.key(0), DRAWS)]).astype(np.float64)
    return dict(zip(CASES, zip(values.mean(0), values.std(0, ddof=1) / DRAWS**0.5, strict=True), strict=True))


@pytest.mark.parametrize("process_name", FEW)
def test_every_weighted_loss_is_its_expectation(process_name):
    for name, (mean, error) in monte_carlo(process_name).items():
        exactly = expectation(PROCESSES[process_name], name)
        # 6 standard errors as 8 draws tell them, and 1% for what rare noise levels add to a few heavy-tailed ones
        assert abs(mean - exactly) < 6 * error + 0.01 * exactly, (name, mean, error, exactly)
        assert error < 0.1 * exactly, (name, error, exactly)  # and so the comparison says something


def test_the_simple_loss_over_a_table_is_the_mean_of_its_entries():
    process, k = PROCESSES["ddpm"], np.arange(1000) / 1000
    objective = losses.denoising(process, "eps", losses.density("discrete", draws="stratified"),
                                 losses.weighting("constant"))  # fmt: skip
    x = MEAN + STD * jax.random.normal(jax.random.key(0), (20_000, 16))
    value = float(objective(predictor(process, "eps"), x, None, jax.random.key(1))[0])
    exactly = float(target_error(process, "eps", k).mean())
    assert value == pytest.approx(exactly, rel=0.01)  # 320,000 squared normals under error(t)


def test_a_density_may_be_traded_for_a_weighting():
    process, target = PROCESSES["flow"], "flow"
    even, constant = losses.density("uniform", draws="stratified"), losses.weighting("constant")
    logit = losses.pdf("logit_normal")
    traded = {
        "drawn": (losses.density("logit_normal", draws="stratified"), constant),
        "weighted": (even, losses.importance(logit, losses.pdf("uniform"))),
        "drawn elsewhere": (losses.density("mode", draws="stratified"), losses.importance(logit, losses.pdf("mode"))),
        "made of a weighting": losses.traded(process, target, losses.weighting("sd3"), draws="stratified"),
    }
    t = jnp.linspace(1e-5, 1 - 1e-5, 20_001)
    exactly = float(np.mean(np.asarray(logit(t)) * target_error(process, target, t)))
    x = MEAN + STD * jax.random.normal(jax.random.key(0), (20_000, 16))
    for name, pair in traded.items():
        objective = losses.denoising(process, target, *pair)
        value = float(objective(predictor(process, target), x, None, jax.random.key(1))[0])
        assert value == pytest.approx(exactly, rel=0.01), (name, value, exactly)


@pytest.mark.parametrize("name, target, process_name", [
    ("vlb", "eps", "ddpm"), ("min_snr", "v", "ddpm"), ("edm", "x", "edm"), ("sigmoid", "eps", "vp")])  # fmt: skip
def test_times_drawn_in_proportion_to_a_weighting_leave_the_expectation_and_take_the_variance(
        name, target, process_name):
    process, weighting = PROCESSES[process_name], losses.weighting(name)
    density, left = losses.traded(process, target, weighting)
    error = lambda t: 1.0 + jnp.sin(6.0 * t)
    even, drawn = jax.random.uniform(jax.random.key(0), (100_000,)), density(jax.random.key(1), (100_000,))
    before, after = weighting(process, target, even) * error(even), left(process, target, drawn) * error(drawn)
    allowed = 5 * float(jnp.std(before) + jnp.std(after)) / 100_000**0.5
    assert abs(float(before.mean() - after.mean())) < allowed
    assert float(jnp.std(left(process, target, drawn))) < 0.2 * float(jnp.std(weighting(process, target, even)))


def linear(dtype):
    """A network of two parameters in `dtype`, of any number of times."""

    def predict_with(params):
        def predict(x_t, t_B, *rest):
            t = gaussian.wide(t_B, x_t).astype(dtype)
            y = x_t.astype(dtype) * params["scale"].astype(dtype) + jnp.tanh(params["bias"].astype(dtype) + t)
            return y * (1 + gaussian.wide(rest[0], x_t).astype(dtype)) if len(rest) == 2 else y

        return predict

    return predict_with


def at(t):
    """The density that always draws t."""
    return lambda key, shape: jnp.full(shape, t)


EVEN = losses.weighting("constant")
OTHERS = {
    "contrastive": lambda d, p: losses.contrastive(p, "flow", d, EVEN),
    "mean_flow": lambda d, p: losses.mean_flow(p, d, same=0.5),
    "shortcut": lambda d, p: losses.shortcut(p, d),
    "consistency": lambda d, p: losses.consistency(d),
    "one_step": lambda d, p: losses.one_step(p, "flow", losses.distance("pseudo_huber")),
    "one_step squared": lambda d, p: losses.one_step(p, "flow"),
}
PARAMS = {"scale": jnp.float32(0.3), "bias": jnp.float32(0.1)}


def assert_finite(name, loss, gradient):
    assert loss.dtype == jnp.float32
    leaves = [loss, *jax.tree.leaves(gradient)]
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in leaves), (name, leaves)


ENDS = jnp.array([0.0, 1e-6, 0.5, 1.0 - 1e-6, 1.0])


@pytest.mark.parametrize("process_name", FEW)
def test_gradients_of_every_weighted_loss_are_finite_at_both_ends(process_name):
    process, eps = PROCESSES[process_name], jax.random.normal(jax.random.key(1), (len(ENDS), 4))
    shape = (2, len(gaussian.TARGETS), len(losses.WEIGHTINGS), len(ENDS))

    @jax.jit
    @jax.jacrev
    def every_example(params):
        """What each example adds to `denoising`: dtypes x targets x weightings x times, one time an example."""
        values = []
        for dtype in (jnp.float32, jnp.bfloat16):
            x, predict = jnp.ones((len(ENDS), 4), dtype), linear(dtype)(params)
            for target in gaussian.TARGETS:
                error_B = losses.denoising_at(process, target, predict, x, None, ENDS, eps)
                values += [losses.weighting(name)(process, target, ENDS) * error_B for name in losses.WEIGHTINGS]
        return jnp.stack(values).reshape(shape)

    for leaf, gradient in every_example(PARAMS).items():
        bad = np.argwhere(~np.isfinite(np.asarray(gradient)))
        where = [(gaussian.TARGETS[j], list(losses.WEIGHTINGS)[k], float(ENDS[m])) for _, j, k, m in bad]
        assert gradient.shape == shape and not where, (leaf, where)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", OTHERS)
def test_gradients_of_the_other_losses_are_finite_at_both_ends(name, dtype):
    x, eps = jax.random.normal(jax.random.key(0), (2, 8, 4)).astype(dtype)
    given = (x, eps) if name.startswith("one_step") else x
    for process in (PROCESSES["flow"], PROCESSES["trigonometric"]):
        value = jax.jit(lambda params, t, p=process: OTHERS[name](at(t), p)(
            linear(dtype)(params), given, None, jax.random.key(0))[0])  # fmt: skip
        for t in (0.0, 1.0):
            assert_finite((t, process.name), *jax.value_and_grad(value)(PARAMS, jnp.float32(t)))


def test_the_exact_mean_velocity_is_where_mean_flow_pulls_to():
    # data N(0, STD^2): paths keep x_t / spread(t), so u is known; the loss's own target is u in the mean
    process = PROCESSES["flow"]
    spread = lambda t: jnp.sqrt(jnp.square((1.0 - t) * STD) + jnp.square(t))

    def exact(x, t, s):
        width = jnp.where(t > s, t - s, 1.0)
        slope = (t - (1.0 - t) * STD**2) / jnp.square(spread(t))
        return x * gaussian.wide(jnp.where(t > s, (1.0 - spread(s) / spread(t)) / width, slope), x)

    objective = losses.mean_flow(process, losses.density("uniform"), same=0.3, power=0.0)

    @jax.jit
    def slope(key, wrong):
        data_key, key = jax.random.split(key)
        x = STD * jax.random.normal(data_key, (BATCH, 16))
        off = lambda c: lambda x, t, s, cond: exact(x, t, s) * (1.0 + c[0]) + c[1] * gaussian.wide(t, x) + c[2]
        return jax.grad(lambda c: objective(off(c), x, None, key)[0])(wrong)

    keys = jax.random.split(jax.random.key(0), 16)
    slopes = np.array([slope(key, jnp.zeros(3)) for key in keys])
    error = slopes.std(0, ddof=1) / 4
    assert (np.abs(slopes.mean(0)) < 4.5 * error).all(), (slopes.mean(0), error)
    # beside it the pull is back, and far above that noise
    for i in range(3):
        pull = np.array(slope(keys[0], jnp.zeros(3).at[i].set(0.2)))[i]
        assert pull > 10 * error[i], (i, pull, error)


def test_consistency_training_pulls_to_the_exact_map():
    # data N(0, 1): x_t is N(0, 1) at every angle, the ODE stands still, so f(x_t, t) = x_t: F = (cos - 1) x_t / sin
    objective = losses.consistency(losses.density("log_tangent"), offset=1.0)

    @jax.jit
    def slope(key, wrong):
        data_key, key = jax.random.split(key)
        x = jax.random.normal(data_key, (BATCH, 16))
        angle = lambda t: 0.5 * jnp.pi * t
        exact = lambda x, t: x * gaussian.wide((jnp.cos(angle(t)) - 1.0) / jnp.sin(angle(t)), x)
        off = lambda c: lambda x, t, cond: exact(x, t) * (1.0 + c[0]) + c[1]
        return jax.grad(lambda c: objective(off(c), x, None, key)[0])(wrong)

    keys = jax.random.split(jax.random.key(0), 16)
    slopes = np.array([slope(key, jnp.zeros(2)) for key in keys])
    error = slopes.std(0, ddof=1) / 4
    assert (np.abs(slopes.mean(0)) < 4.5 * error).all(), (slopes.mean(0), error)
    pull = np.array(slope(keys[0], jnp.array([0.2, 0.2])))
    assert (np.abs(pull) > 10 * error).all(), (pull, error)


SCALES = jnp.linspace(1e-5, 1 - 1e-5, 101)


@pytest.mark.parametrize("name", ["constant", "snr", "sd3"])
def test_weights_are_positive_and_of_the_times_shape(name):
    for process in PROCESSES.values():
        for target in gaussian.TARGETS:
            weight = losses.weighting(name)(process, target, SCALES)
            assert weight.shape == SCALES.shape and bool((weight > 0).all())


@pytest.mark.parametrize("call, message", [
    (lambda: losses.mean_flow(PROCESSES["flow"], at(0.5), same=2.0), "same=2.0 is a share of examples"),
    (lambda: losses.shortcut(PROCESSES["flow"], at(0.5), share=1.0), "share=1.0 of the batch must lie between"),
    (lambda: losses.shortcut(PROCESSES["flow"], at(0.5), levels=0), "levels=0 must be at least 1"),
    (lambda: losses.shortcut(PROCESSES["flow"], at(0.5))(None, jnp.zeros((1, 2)), None, jax.random.key(0)),
     "share=0.25 of a batch of 1 leaves one part empty"),
    (lambda: losses.mean_flow(PROCESSES["flow"], at(0.5), scale=2.0)(
        lambda x, t, s, c: x, jnp.zeros((2, 2)), Conditioning(), jax.random.key(0)), "give uncond"),
    (lambda: losses.consistency(at(0.5), offset=-1.0), "offset=-1.0 must be at least 0"),
    (lambda: losses.contrastive(PROCESSES["flow"], "flow", at(0.5), EVEN, weight=1.0), "weight=1.0 must lie between"),
    (lambda: losses.distance("hubber"), "unknown distance 'hubber'"),
    (lambda: losses.distance("pseudo_huber", scale=0.0), "scale=0.0 must be above 0"),
    (lambda: losses.guidance_distillation(PROCESSES["flow"], "flow", at(0.5), EVEN, (3.0, 1.0)),
     r"scales=\(3.0, 1.0\) must be two numbers that rise"),
    (lambda: losses.one_step(PROCESSES["flow"], "eps"), "target 'eps' says nothing of the data at t=1"),
    (lambda: losses.mean_flow(PROCESSES["flow"], at(0.5), power=-1.0), "power=-1.0 must be at least 0"),
    (lambda: losses.density("unifrom"), "unknown density of t 'unifrom'; did you mean 'uniform'"),
    (lambda: losses.weighting("sigmoid", bais=1.0), "weighting 'sigmoid' has no option 'bais'; did you mean 'bias'"),
    (lambda: losses.denoising(PROCESSES["flow"], "velocity", at(0.5), EVEN), "unknown prediction target 'velocity'"),
    (lambda: losses.density("logit-normal"), "unknown density of t 'logit-normal'; did you mean 'logit_normal'"),
    (lambda: losses.density("logit_normal", std=0.0), "std=0.0 must be above 0"),
    (lambda: losses.density("logit_normal", mean="high"), "mean='high' must be a number"),
    (lambda: losses.density("mode", scale=3.0), "scale=3.0 of 'mode' must lie between -1 and"),
    (lambda: losses.pdf("mode", scale=3.0), "scale=3.0 of 'mode' must lie between -1 and"),
    (lambda: losses.pdf("discrete"), "unknown density with a pdf 'discrete'"),
    (lambda: losses.density("uniform", shift=-1.0), "shift=-1.0 must be a number above 0"),
    (lambda: losses.density("edm_log_normal", sigma_min=2.0, sigma_max=1.0), "sigma_min=2.0 must lie above 0"),
    (lambda: losses.density("discrete", steps=0), "steps=0 must be at least 1"),
    (lambda: losses.density("discrete", steps=10.5), "steps=10.5 must be a whole number"),
    (lambda: losses.weighting("minsnr"), "unknown weighting 'minsnr'; did you mean 'min_snr'"),
    (lambda: losses.weighting("min_snr", gamma=-5.0), "gamma=-5.0 must be above 0"),
    (lambda: losses.weighting("p2", k=0.0), "k=0.0 must be above 0"),
    (lambda: losses.weighting("edm", sigma_data=0.0), "sigma_data=0.0 must be above 0"),
    (lambda: losses.weighting("sd3", density="bimodal"), "unknown density with a pdf 'bimodal'"),
])  # fmt: skip
def test_what_cannot_be_is_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
