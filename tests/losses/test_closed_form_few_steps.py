"""Losses on pairs and of mean velocities against their closed forms on Gaussian data.

Data are N(MEAN, STD^2) in each element. Under a rectified flow a path keeps (x_t - (1 - t) MEAN) / spread(t), so that
the mean velocity between any two times, and the data at the end of the path from any noise, are known.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgm import gaussian, losses

MEAN, STD, COUNT = 0.4, 0.6, 8192
FLOW = gaussian.rectified_flow()
UNIFORM, EVEN = losses.density("uniform", draws="stratified"), losses.weighting("constant")
SHAPE = (COUNT, 16)
X = MEAN + STD * jax.random.normal(jax.random.key(0), SHAPE)
EPS = jax.random.normal(jax.random.key(1), SHAPE)
PAIRS = MEAN + STD * EPS, EPS  # the ends of the ODE's paths


def spread(t):
    return jnp.sqrt(jnp.square((1.0 - t) * STD) + jnp.square(t))


def velocity(x, t):
    """The exact E[eps - x | x_t]."""
    slope = (t - (1.0 - t) * STD**2) / jnp.square(spread(t))
    return gaussian.wide(slope, x) * (x - gaussian.wide((1.0 - t) * MEAN, x)) - MEAN


def mean_velocity(x, t, s, cond=None):
    """The exact mean of the velocity along the path from t down to s."""
    width = jnp.where(t > s, t - s, 1.0)
    ratio = gaussian.wide(spread(s) / spread(t), x)
    landed = gaussian.wide((1.0 - s) * MEAN, x) + ratio * (x - gaussian.wide((1.0 - t) * MEAN, x))
    return jnp.where(gaussian.wide(t > s, x), (x - landed) / gaussian.wide(width, x), velocity(x, t))


T = (np.arange(100_000) + 0.5) / 100_000
LEFT = float(np.mean(STD**2 / np.square(np.asarray(spread(T), np.float64))))  # E of the variance of eps - x given x_t


def nothing(x, t, *rest):
    return jnp.zeros_like(x)


def test_a_reflow_of_a_network_that_predicts_nothing_errs_by_what_joins_the_pair():
    objective = losses.denoising(FLOW, "flow", UNIFORM, EVEN)  # on pairs
    t_B = UNIFORM(jax.random.key(2), PAIRS[0].shape[:1])
    value = float(objective.given(nothing, PAIRS[0], None, t_B, PAIRS[1])[0])
    assert value == pytest.approx((1 - STD) ** 2 + MEAN**2, rel=0.01)  # 130,000 squared normals
    # what its minimum is: the velocity of the pair's straight line, which is that of the same path
    line = lambda x, t, cond: (x - gaussian.wide((1 - t) * MEAN, x)) * gaussian.wide(
        (1 - STD) / (t + (1 - t) * STD), x) - MEAN
    assert float(objective.given(line, PAIRS[0], None, t_B, PAIRS[1])[0]) < 1e-10


@pytest.mark.parametrize("name", losses.DISTANCES)
def test_one_step_errs_by_the_distance_of_what_it_lands_on(name):
    objective = losses.one_step(FLOW, "flow", losses.distance(name))
    value = float(objective(nothing, PAIRS, None, jax.random.key(2))[0])  # which lands on the noise
    square = (1 - STD) ** 2 + MEAN**2
    root = np.mean(np.sqrt(np.sum(np.square(np.asarray(EPS - PAIRS[0])), 1) + (0.00054 * 4) ** 2)) - 0.00054 * 4
    assert value == pytest.approx(square if name == "squared" else root, rel=0.01)
    exact = lambda x, t, cond: x - (MEAN + STD * x)
    assert float(objective(exact, PAIRS, None, jax.random.key(2))[0]) < 1e-5


def test_contrastive_takes_the_share_of_another_pair_away():
    objective = losses.contrastive(FLOW, "flow", UNIFORM, EVEN, weight=0.3)
    value, metrics = objective(nothing, X, None, jax.random.key(2))
    square = 1 + STD**2 + MEAN**2
    assert float(metrics["denoising"]) == pytest.approx(square, rel=0.01)
    assert float(value) == pytest.approx(0.7 * square, rel=0.01)


def test_mean_flow_of_the_exact_mean_velocity_leaves_the_variance_of_the_velocity():
    objective = losses.mean_flow(FLOW, UNIFORM, same=0.5, power=0.0)
    metrics = jax.jit(lambda key: objective(mean_velocity, X, None, key)[1])(jax.random.key(2))
    # t is the larger of two draws: of density 2 t
    left = float(np.mean(2 * T * STD**2 / np.square(np.asarray(spread(T), np.float64))))
    assert float(metrics["velocity_error"]) == pytest.approx(left, rel=0.03)
    # at unequal times the regression's target is noisier by what v is off times the change of u, never less
    assert float(metrics["mean_flow_error"]) > 0.5 * left
    # guided by a scale, the velocity is scale v + (1 - scale) u: its variance is scale^2 of it
    guided = losses.mean_flow(FLOW, UNIFORM, same=1.0, power=0.0, scale=2.0)
    value = float(guided(mean_velocity, X, None, jax.random.key(2), uncond=())[0])
    assert value == pytest.approx(4 * left * SHAPE[1], rel=0.03)  # the sum over an example's elements


# a network of constants of our own: u = (told + t / 2 + s / 4) x_t, so that du/dt = (told + t / 2 + s / 4) v + x_t / 2
TOLD, NONE = 0.7, -0.4
straight = lambda x, t, s, told: gaussian.wide(told + 0.5 * t + 0.25 * s, x) * x


@pytest.mark.parametrize(("power", "scale", "kappa", "interval"), [
    (1.0, 1.0, 0.0, (0.0, 1.0)), (0.5, 2.0, 0.0, (0.0, 1.0)), (1.0, 1.5, 0.4, (0.0, 1.0)), (0.0, 1.5, 0.4, (0.2, 0.6)),
])  # fmt: skip
def test_mean_flow_is_the_released_formula(power, scale, kappa, interval):
    """The guided velocity omega v + kappa u_c + (1 - omega - kappa) u_0 inside the interval, v itself for examples
    whose caption is dropped; error |u - (v - (t - s) du/dt)|^2, a sum; divided by (error + 0.01)^p."""
    objective = losses.mean_flow(FLOW, UNIFORM, same=0.25, power=power, scale=scale, kappa=kappa, interval=interval)
    x, drawn = X[:64], objective.draw(jax.random.key(3), (64, SHAPE[1]))
    dropped = np.arange(64) % 4 == 0
    value, metrics = objective.given(straight, x, TOLD, *drawn, uncond=NONE, dropped=jnp.asarray(dropped))
    t, s, eps, x = (np.asarray(a, np.float64) for a in (*drawn, x))
    t, s = t[:, None], s[:, None]
    x_t, v = (1 - t) * x + t * eps, eps - x
    u = lambda told, s: (told + 0.5 * t + 0.25 * s) * x_t
    guided = scale * v + kappa * u(TOLD, t) + (1 - scale - kappa) * u(NONE, t)
    v = np.where((t < interval[0]) | (t > interval[1]) | dropped[:, None], v, guided)
    goal = v - (t - s) * ((TOLD + 0.5 * t + 0.25 * s) * v + 0.5 * x_t)
    error = np.square(u(TOLD, s) - goal).sum(1)
    assert float(value) == pytest.approx(np.mean(error / (error + 0.01) ** power), rel=1e-5)
    assert float(metrics["mean_flow_error"]) == pytest.approx(np.mean(error) / SHAPE[1], rel=1e-5)


def test_mean_flows_options_are_checked():
    for options, line in ((dict(kappa=1.0), "kappa=1.0 must lie"), (dict(interval=(0.5, 0.2)), "interval=.0.5, 0.2."),
                          (dict(offset=0.0), "offset=0.0 above 0")):  # fmt: skip
        with pytest.raises(ValueError, match=line):
            losses.mean_flow(FLOW, UNIFORM, **options)
    with pytest.raises(ValueError, match="give uncond"):
        losses.mean_flow(FLOW, UNIFORM, kappa=0.5)(straight, X, TOLD, jax.random.key(0))


def test_a_shortcuts_smallest_jumps_are_guided_and_the_others_are_not():
    """2410.12557's code: the bootstrap target of the finest level is two Euler steps of the guided velocity."""
    objective, paired = losses.shortcut(FLOW, UNIFORM, share=0.5, levels=3, scale=2.5), 32
    x, drawn = X[:64], objective.draw(jax.random.key(3), (64, SHAPE[1]))
    told, none = jnp.full(64, TOLD), jnp.full(64, NONE)
    _, metrics = objective.given(straight, x, told, *drawn, uncond=none)
    level, place, _, eps, x = (np.asarray(a, np.float64)[:paired] for a in (*drawn, x))
    assert {1, 2, 3} == set(level)
    t = (np.floor(place * 2 ** (level - 1)) + 1) / 2 ** (level - 1)
    t, d, finest = t[:, None], 0.5 ** level[:, None], level[:, None] == 3
    x_t = (1 - t) * x + t * eps
    u = lambda x, t, s, told: (told + 0.5 * t + 0.25 * s) * x
    def made(x, t):
        free = u(x, t, t, NONE)
        return np.where(finest, free + 2.5 * (u(x, t, t, TOLD) - free), u(x, t, t - d, TOLD))
    first = made(x_t, t)
    second = made(x_t - d * first, t - d)
    error = np.square(u(x_t, t, t - 2 * d, TOLD) - 0.5 * (first + second)).mean()
    assert float(metrics["consistency_error"]) == pytest.approx(error, rel=1e-5)
    with pytest.raises(ValueError, match="give uncond"):
        objective.given(straight, X[:64], told, *drawn)


def test_a_shortcut_of_the_exact_mean_velocity_agrees_with_itself_and_errs_by_the_variance():
    objective = losses.shortcut(FLOW, UNIFORM, share=0.5, levels=9)
    metrics = jax.jit(lambda key: objective(mean_velocity, X, None, key)[1])(jax.random.key(2))
    assert float(metrics["velocity_error"]) == pytest.approx(LEFT, rel=0.03)
    # two jumps are one but for the last level, whose halves of 1/512 are Euler's steps
    assert float(metrics["consistency_error"]) < 1e-4
    wrong = lambda x, t, s, cond: mean_velocity(x, t, s) + gaussian.wide(t - s, x)  # two jumps of d are off by d less
    off = jax.jit(lambda key: objective(wrong, X, None, key)[1])(jax.random.key(2))
    assert float(off["consistency_error"]) > 0.01


@pytest.mark.parametrize(("process", "target"), [
    (FLOW, "flow"), (gaussian.trigonometric(), "v"), (gaussian.ddpm(steps=10), "eps"), (gaussian.edm(), "x")])
def test_progressive_distillation_lands_where_two_steps_of_the_teacher_land(process, target):
    """2202.00512, algorithm 2, in the paper's own form: alpha, sigma and two steps of DDIM, whose implied data are what
    the student is compared with, here by its x."""
    teacher = lambda x, t, cond: 0.6 * x + 0.1 * gaussian.wide(jnp.cos(3.0 * t), x)
    predict = lambda x, t, cond: -0.2 * x
    objective, x = losses.progressive(process, target, EVEN, steps=4), X[:64]
    drawn = objective.draw(jax.random.key(3), (64, SHAPE[1]))
    value, _ = objective.given(predict, x, None, *drawn, teacher=teacher)
    last = 1.0 if process.steps is None else 0.9
    t, eps = np.asarray(drawn.t), drawn.eps
    assert set(np.round(t / last * 4)) == {1, 2, 3, 4}
    alpha = lambda t: np.where(t > 1e-6, np.asarray(process.a(jnp.float32(t))), 1.0)[:, None]
    sigma = lambda t: np.where(t > 1e-6, np.asarray(process.b(jnp.float32(t))), 0.0)[:, None]
    data = lambda prediction, z, t: np.asarray(gaussian.endpoints(process, target, prediction, jnp.float32(z), t).x)
    z = alpha(t) * np.asarray(x) + sigma(t) * np.asarray(eps)
    x_hat = data(teacher(jnp.float32(z), drawn.t, None), z, drawn.t)
    mid, end = t - last / 8, t - last / 4
    z_mid = alpha(mid) * x_hat + sigma(mid) / sigma(t) * (z - alpha(t) * x_hat)
    x_mid = data(teacher(jnp.float32(z_mid), jnp.float32(mid), None), z_mid, jnp.float32(mid))
    z_end = alpha(end) * x_mid + sigma(end) / sigma(mid) * (z_mid - alpha(mid) * x_mid)
    ratio = sigma(end) / sigma(t)
    goal = (z_end - ratio * z) / (alpha(end) - ratio * alpha(t))
    # a student of that x lands there in one DDIM step, and errs by nothing
    student = lambda x_t, t_B, cond: gaussian.target(process, target, jnp.float32(goal),
                                                     (x_t - jnp.float32(alpha(t) * goal)) / jnp.float32(sigma(t)), t_B)
    exact, _ = objective.given(student, x, None, *drawn, teacher=teacher)
    assert float(exact) < 1e-6 * float(value)
    off = np.asarray(predict(jnp.float32(z), drawn.t, None)) - np.asarray(student(jnp.float32(z), drawn.t, None))
    assert float(value) == pytest.approx(np.square(off).mean(), rel=1e-4)


def test_a_target_that_is_silent_in_pure_noise_is_not_distilled_progressively():
    with pytest.raises(ValueError, match="target 'eps' says nothing of the data at t=1"):
        losses.progressive(FLOW, "eps", EVEN)
    with pytest.raises(ValueError, match="steps=0 must be at least 1"):
        losses.progressive(FLOW, "flow", EVEN, steps=0)


def test_consistency_of_the_exact_map_has_no_tangent_but_the_examples_own_noise():
    # N(0, 1) data: the ODE stands still, F = (cos - 1) x_t / sin, and a teacher's velocity is 0
    objective = losses.consistency(losses.density("log_tangent"))
    angle = lambda t: 0.5 * jnp.pi * t
    exact = lambda x, t, cond: x * gaussian.wide((jnp.cos(angle(t)) - 1.0) / jnp.sin(angle(t)), x)
    teacher = lambda x, t, cond: jnp.zeros_like(x)
    x = jax.random.normal(jax.random.key(0), SHAPE)
    distilled = objective(exact, x, None, jax.random.key(2), teacher=teacher)[1]["tangent"]
    trained = objective(exact, x, None, jax.random.key(2))[1]["tangent"]
    assert float(distilled) < 1e-4 < 0.01 < float(trained)
