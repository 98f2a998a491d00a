"""Consistency between neighbouring levels: the published schedules and densities as formulas, and normal data, whose
paths are known.

Normal data of deviation s on EDM's process: the path through x_t goes on to x_t sqrt((s^2 + u^2) / (s^2 + t^2)) at u,
and one Euler step of the exact field, or Heun's, is a product with a number.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from lgm import gaussian, losses
from lgm.losses.discrete_consistency import doubling, root

EDM = gaussian.edm()
LOW, HIGH, STD = 0.002, 80.0, 0.5
BETWEEN = losses.distance("pseudo_huber")
SHAPE = (20_000, 2)


def karras(count, rho=7.0):
    """All N levels, rising (2303.01469, section 3)."""
    i = np.arange(count + 1)
    return (LOW ** (1 / rho) + i / count * (HIGH ** (1 / rho) - LOW ** (1 / rho))) ** rho


def sigma(t_B):
    return np.exp(np.log(LOW) + (np.log(HIGH) - np.log(LOW)) * np.asarray(t_B, np.float64))


def test_the_number_of_levels_grows_as_published():
    done, total = np.arange(0, 8000, 7), 8000
    doubled = np.minimum(10 * 2 ** np.floor(done / np.floor(total / (np.log2(1280 // 10) + 1))), 1280) + 1
    np.testing.assert_array_equal(1 + doubling(10, 1280)(jnp.float32(done) / total), doubled)
    rooted = np.ceil(np.sqrt(done / total * ((150 + 1) ** 2 - 2**2) + 2**2) - 1) + 1
    off = np.abs(1 + root(2, 150)(jnp.float32(done) / total) - rooted)
    assert off.max() <= 1 and off.mean() < 0.01  # where float32 rounds a whole number up
    assert doubling(17, 17)(jnp.float32(0.3)) == 17


@pytest.mark.parametrize("even", [False, True])
def test_levels_are_drawn_as_published_and_are_neighbours(even):
    objective = losses.discrete_consistency(EDM, "edm", BETWEEN, start=10, end=40, even=even)
    t_B, s_B, _ = jax.jit(lambda: objective.draw(jax.random.key(0), SHAPE, 0.0))()
    levels = karras(10)
    number = np.abs(np.log(sigma(s_B))[:, None] - np.log(levels)).argmin(1)
    np.testing.assert_allclose(sigma(s_B), levels[number], rtol=1e-4)
    np.testing.assert_allclose(sigma(t_B), levels[number + 1], rtol=1e-4)
    edges = erf((np.log(levels) + 1.1) / (np.sqrt(2) * 2.0))
    mass = np.full(10, 0.1) if even else np.diff(edges) / np.diff(edges).sum()
    counts = np.bincount(number, minlength=10) / SHAPE[0]
    np.testing.assert_allclose(counts, mass, atol=5 * np.sqrt(0.25 / SHAPE[0]))
    assert (np.asarray(s_B)[number == 0] == 0).all()
    t_B, _, _ = objective.draw(jax.random.key(0), SHAPE, 1.0)
    found = np.abs(np.log(sigma(t_B))[:, None] - np.log(karras(40))).min(1)
    np.testing.assert_allclose(found, 0.0, atol=1e-4)


def exact(process, x, t_B):
    """The network F whose x is the end of the path on the lowest level."""
    sigma = gaussian.wide(process.b(t_B), x)
    end = x * jnp.sqrt((STD**2 + LOW**2) / (STD**2 + sigma**2))
    return gaussian.target(process, "edm", end, (x - end) / sigma, t_B)


def field(process, x, t_B):
    """The network F of the exact denoiser."""
    sigma = gaussian.wide(process.b(t_B), x)
    mean = x * STD**2 / (STD**2 + sigma**2)
    return gaussian.target(process, "edm", mean, (x - mean) / sigma, t_B)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_distillation_of_the_exact_field_is_off_by_the_solvers_error_alone(solver):
    objective = losses.discrete_consistency(EDM, "edm", losses.distance("squared"), start=17, end=17, weighted=False,
                                            solver=solver)  # fmt: skip
    x = STD * jax.random.normal(jax.random.key(1), (512, 3))
    t_B, s_B, eps = objective.draw(jax.random.key(0), x.shape, 0.5)
    teacher = lambda x, t_B, _: field(EDM, x, t_B)
    value, _ = objective.given(lambda x, t_B, _: exact(EDM, x, t_B), x, None, t_B, s_B, eps, teacher=teacher)
    t, s = sigma(t_B)[:, None], sigma(s_B)[:, None]
    x_t = np.asarray(x) + t * np.asarray(eps)
    slope = lambda x, t: x * t / (STD**2 + t**2)
    moved = x_t + (s - t) * slope(x_t, t)
    if solver == "heun":
        moved = x_t + (s - t) * 0.5 * (slope(x_t, t) + slope(moved, s))
    end = lambda x, t: x * np.sqrt((STD**2 + LOW**2) / (STD**2 + t**2))
    goal = np.where(s < 1.01 * LOW, moved, end(moved, s))
    # float32: levels to 1e-5 of themselves, ends to 1e-6
    np.testing.assert_allclose(value, np.mean(np.square(end(x_t, t) - goal)), rtol=2e-3)


def test_training_is_the_published_sum_and_its_goal_has_no_gradient():
    objective = losses.discrete_consistency(EDM, "edm", BETWEEN, start=10, end=1280)
    x = STD * jax.random.normal(jax.random.key(1), (64, 4, 4, 3))
    t_B, s_B, eps = objective.draw(jax.random.key(0), x.shape, 0.3)
    predict = lambda gain: lambda x, t_B, _: gain * jnp.tanh(x) * (1.0 + gaussian.wide(t_B, x))
    loss = lambda gain: objective.given(predict(gain), x, None, t_B, s_B, eps)[0]
    t, s = (sigma(u).reshape(-1, 1, 1, 1) for u in (t_B, s_B))
    data, eps = np.asarray(x, np.float64), np.asarray(eps, np.float64)

    def end(gain, x, t, t_B):  # c_skip x + c_out F
        F = gain * np.tanh(x) * (1 + np.asarray(t_B, np.float64).reshape(-1, 1, 1, 1))
        return STD**2 / (t**2 + STD**2) * x + t * STD / np.sqrt(t**2 + STD**2) * F

    def published(gain, goal_gain):
        x_t, x_s = data + t * eps, data + s * eps
        goal = np.where(s < 1.01 * LOW, x_s, end(goal_gain, x_s, s, s_B))
        d, axes = 48, (1, 2, 3)
        c = 0.00054 * np.sqrt(d)
        huber = np.sqrt(np.square(end(gain, x_t, t, t_B) - goal).sum(axes) + c**2) - c
        return np.mean(huber / (t - s).reshape(-1))

    np.testing.assert_allclose(loss(0.7), published(0.7, 0.7), rtol=1e-3)
    step = 1e-4
    slope = (published(0.7 + step, 0.7) - published(0.7 - step, 0.7)) / (2 * step)
    np.testing.assert_allclose(jax.grad(loss)(0.7), slope, rtol=1e-3)


def test_what_cannot_be_is_one_line():
    make = lambda **options: losses.discrete_consistency(options.pop("process", EDM), "edm", BETWEEN, **options)
    with pytest.raises(ValueError, match="lie between the ends of process 'edm', which 'rectified_flow' has not"):
        make(process=gaussian.rectified_flow())
    with pytest.raises(ValueError, match="start=20 must be at least 1 and at most end=10"):
        make(start=20, end=10)
    with pytest.raises(ValueError, match="unknown growth 'double'; did you mean 'doubling'"):
        make(growth="double")
    with pytest.raises(ValueError, match="solver='rk' of the teacher's step must be one of euler, heun"):
        make(solver="rk")
