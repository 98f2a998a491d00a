"""Averages made of checkpoints afterwards against those that training would have kept, of weights that walk."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from lgm.config import EMA
from lgm.train.averaging import mixture, summed
from lgm.train.state import ema_decay

KEPT, BATCH, STEPS = EMA(half_life_images=200), 8, 400
AT = range(40, STEPS + 1, 40)


def walk():
    """[STEPS + 1, 1000] weights that go by independent steps."""
    return np.cumsum(np.random.default_rng(0).standard_normal((STEPS + 1, 1000)), 0)


def averages(theta, ema):
    """[STEPS + 1, ...]: the average that training keeps after each step, by its own rule."""
    decays = np.asarray(ema_decay(ema, BATCH, jnp.arange(STEPS)), np.float64)
    found = [theta[0]]
    for decay, now in zip(decays, theta[1:], strict=True):
        found.append(found[-1] + (1 - decay) * (now - found[-1]))
    return np.array(found)


@pytest.mark.parametrize("half_life", [60, 100, 400, 1000])
def test_an_average_of_another_length_is_near_the_one_that_training_would_have_kept(half_life):
    theta = walk()
    kept = averages(theta, KEPT)
    wanted = averages(theta, dataclasses.replace(KEPT, half_life_images=half_life))[-1]
    shares, error = mixture(KEPT, half_life, BATCH, list(AT))
    parts = [kept[step] for step in AT] + [theta[step] for step in AT]
    found = summed(parts, shares.ravel())
    measured = np.linalg.norm(found - wanted) / np.linalg.norm(theta[-1] - wanted)
    assert shares.sum() == pytest.approx(1.0, abs=1e-9)
    assert measured == pytest.approx(error, rel=0.15) and error < 0.2  # 1000 walks: a few percent of their mean
    assert error < np.linalg.norm(kept[-1] - wanted) / np.linalg.norm(theta[-1] - wanted)


def test_the_average_that_was_kept_is_taken_as_it_is():
    shares, error = mixture(KEPT, KEPT.half_life_images, BATCH, list(AT))
    assert error < 1e-9
    np.testing.assert_allclose(shares, np.eye(1, 2 * len(AT), len(AT) - 1).reshape(2, -1), atol=1e-7)
