"""Few-step training on mixtures in the plane: what each loss promises, measured."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgm import gaussian, losses, sampling
from lgm.evaluate import toy
from lgm.evaluate.mixture import Mixture, energy_distance, ring
from lgm.evaluate.straightness import straightness

FLOW, RING = gaussian.rectified_flow(), ring()
UNIFORM = losses.density("uniform")
EVEN = losses.weighting("constant")
BATCH, STEPS, COUNT = 256, 3000, 2000
ONE, MANY = (1.0, 0.0), tuple(np.linspace(1.0, 0.0, 33))


def noise(seed, count=COUNT):
    return jax.random.normal(jax.random.key(seed), (count, 2))


def quality(x, data=RING):
    """Energy distance to fresh data; two samples of the data are about 0.001 apart."""
    return float(energy_distance(x, data.sample(jax.random.key(99), COUNT)))


# reflow's data: six Gaussians on a spiral, between which paths bend more than to a ring
ANGLES = 1.1 * np.arange(1, 7)
SPIRAL = Mixture(ANGLES[:, None] / 2.2 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], -1), np.full(6, 0.1),
                 np.full(6, 1 / 6))  # fmt: skip


@functools.partial(jax.jit, static_argnums=(0, 2))
def by_euler(predict, x_T, times):
    return sampling.sample(sampling.solver("euler"), FLOW, "flow", predict, x_T, times)


exact, spiral = RING.predictor(FLOW, "flow"), SPIRAL.predictor(FLOW, "flow")


@functools.cache
def reflowed(rounds):
    """The network after so many rounds of reflow, the first on pairs of the exact flow."""
    teacher = spiral if rounds == 1 else reflowed(rounds - 1)
    eps = noise(10 + rounds, 8192)
    solver = sampling.solver("heun")
    x = jax.jit(lambda e: sampling.sample(solver, FLOW, "flow", teacher, e, np.linspace(1.0, 0.0, 65)))(eps)
    objective = losses.denoising(FLOW, "flow", UNIFORM, EVEN)

    def loss(params, averaged, key):
        rows_key, key = jax.random.split(key)
        rows = jax.random.randint(rows_key, (BATCH,), 0, len(x))
        t_B = UNIFORM(key, (BATCH,))
        return objective.given(lambda x_t, t, cond: toy.apply(params, x_t, t), x[rows], None, t_B, eps[rows])[0]

    params = toy.fit(loss, toy.init(jax.random.key(rounds)), STEPS, jax.random.key(20 + rounds))
    return lambda x, t: toy.apply(params, x, t)


@pytest.mark.slow
def test_each_round_of_reflow_is_straighter_and_one_step_of_it_better():
    models = [spiral, reflowed(1), reflowed(2)]
    bent = [float(jax.jit(lambda e, m=m: straightness(FLOW, "flow", m, e))(noise(1, 1000))) for m in models]
    assert bent[0] > 50 * bent[1] and bent[1] > 1.5 * bent[2], bent
    # how far one Euler step lands from where the model's own path ends
    apart = [rms(by_euler(m, noise(2), ONE) - by_euler(m, noise(2), MANY)) for m in models]
    assert apart[0] > 4 * apart[1] and apart[1] > 1.1 * apart[2], apart
    single = [quality(by_euler(m, noise(2), ONE), SPIRAL) for m in models]
    assert single[0] > 50 * max(single[1:]) and max(single[1:]) < 0.01, single
    # the distribution is kept: many steps of the last are still the data
    assert quality(by_euler(models[2], noise(3), MANY), SPIRAL) < 0.01


def rms(x):
    return float(jnp.sqrt(jnp.mean(jnp.square(x))))


@pytest.mark.slow
def test_a_reflowed_model_distils_into_one_step():
    eps = noise(30, 8192)
    x = by_euler(reflowed(1), eps, MANY)
    for name in losses.DISTANCES:
        objective = losses.one_step(FLOW, "flow", losses.distance(name))

        def loss(params, averaged, key, objective=objective):
            rows = jax.random.randint(key, (BATCH,), 0, len(x))
            return objective(lambda x_t, t, cond: toy.apply(params, x_t, t), (x[rows], eps[rows]), None, key)[0]

        params = toy.fit(loss, toy.init(jax.random.key(4)), 2000, jax.random.key(5))
        one = by_euler(network_of(params), noise(2), ONE)
        ends = by_euler(reflowed(1), noise(2), MANY)
        apart, euler = rms(one - ends), rms(by_euler(reflowed(1), noise(2), ONE) - ends)
        assert apart < 0.8 * euler, (name, apart, euler)


def network_of(params):
    return lambda x, t: toy.apply(params, x, t)


def jumper(objective, by_average=False):
    def loss(params, averaged, key):
        data_key, key = jax.random.split(key)
        predict = lambda x, t, s, cond: toy.apply(params, x, t, t - s)
        means = lambda x, t, s, cond: toy.apply(averaged, x, t, t - s)
        extra = {"averaged": (means, None, None)} if by_average else {}
        return objective(predict, RING.sample(data_key, BATCH), None, key, **extra)[0]

    params = toy.fit(loss, toy.init(jax.random.key(6), times=2), 4000, jax.random.key(7))
    return lambda x, t, s: toy.apply(params, x, t, t - s)


JUMPS = {
    "mean flow": lambda: jumper(losses.mean_flow(FLOW, UNIFORM, same=0.5)),
    "shortcut": lambda: jumper(losses.shortcut(FLOW, UNIFORM), by_average=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", JUMPS)
def test_one_jump_is_better_than_one_euler_step_and_many_are_the_data(name):
    predict = JUMPS[name]()
    walked = jax.jit(lambda e, times: sampling.sample(sampling.solver("jump"), FLOW, "flow", predict, e, times))
    draw = lambda times: quality(walked(noise(2), jnp.asarray(times)))
    one, few, euler = draw(ONE), draw(np.linspace(1.0, 0.0, 9)), quality(by_euler(exact, noise(2), ONE))
    assert one < 0.1 * euler, (one, euler)
    # straighter, too: the model's one jump and its eight end in one place, where Euler's steps of the flow do not
    ends = [by_euler(exact, noise(2), times) for times in (ONE, tuple(np.linspace(1.0, 0.0, 9)))]
    jumps = [walked(noise(2), jnp.asarray(times)) for times in (ONE, np.linspace(1.0, 0.0, 9))]
    assert rms(jumps[0] - jumps[1]) < 0.5 * rms(ends[0] - ends[1]), (name, rms(jumps[0] - jumps[1]))
    assert few < 0.03, few


@pytest.mark.slow
def test_consistency_training_maps_noise_to_data_in_one_step():
    process = gaussian.trigonometric()
    scale = float(jnp.std(RING.sample(jax.random.key(0), 20000)))  # the loss is stated for data of unit variance
    objective = losses.consistency(losses.density("log_tangent", mean=-0.4, std=1.2))

    def loss(params, averaged, key):
        data_key, key = jax.random.split(key)
        predict = lambda x, t, cond: toy.apply(params, x, t)
        return objective(predict, RING.sample(data_key, BATCH) / scale, None, key)[0]

    params = toy.fit(loss, toy.init(jax.random.key(8)), 6000, jax.random.key(9), lr=1e-3)
    solver = sampling.solver("consistency")
    draw = jax.jit(lambda e, times: scale * sampling.sample(
        solver, process, "v", lambda x, t: toy.apply(params, x, t), e, times, jax.random.key(3)))
    euler = quality(by_euler(exact, noise(2), ONE))
    one, two = quality(draw(noise(2), jnp.array(ONE))), quality(draw(noise(2), jnp.array([1.0, 0.5, 0.0])))
    assert one < 0.2 * euler, (one, two, euler)


def test_guidance_is_distilled_into_one_pass():
    from lgm.models import Conditioning

    objective = losses.guidance_distillation(FLOW, "flow", UNIFORM, EVEN, (1.0, 5.0))
    teacher = lambda x, t, cond: x * (1.0 + cond.pooled)  # c - u = x pooled: guided is x (1 + w pooled)
    cond, uncond = (Conditioning(pooled=jnp.full((64, 1), v)) for v in (0.5, 0.0))
    right = lambda x, t, cond: x * (1.0 + cond.guidance[:, None] * cond.pooled)
    wrong = lambda x, t, cond: x * (1.0 + cond.pooled)
    x = jax.random.normal(jax.random.key(0), (64, 2))
    both = dict(teacher=teacher, unguided=lambda x, t, _: teacher(x, t, uncond))
    value = lambda predict: float(objective(predict, x, cond, jax.random.key(1), **both)[0])
    assert value(right) < 1e-12
    assert value(wrong) > 0.1
