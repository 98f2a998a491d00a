"""Runs whose loss rises far above where it was end, and say so; the rule sees the same after a resume."""

import math
from types import SimpleNamespace

import pytest

from lgm.config import Log, Optimizer
from lgm.train.divergence import Watch


def config(**optimizer):
    return SimpleNamespace(batch_size=100, log=Log(every_images=400), optimizer=Optimizer(**optimizer))


def fed(watch, losses):
    return [step for step, loss in enumerate(losses, 1) if watch.see(step, loss)]


def test_means_of_a_thousand_images_are_compared_with_the_lowest_before():
    losses = [2.0] * 10 + [1.0] * 10 + [3.9] * 10 + [*[3.0] * 9, 14.0]
    assert fed(Watch.of(config(stop_above=4)), losses) == [40]
    assert fed(Watch.of(config(stop_above=3)), losses) == [30, 40]
    assert fed(Watch.of(config()), losses) == []


def test_a_single_step_is_no_divergence():
    assert fed(Watch.of(config(stop_above=4)), [1.0] * 15 + [20.0] + [1.0] * 14) == []


def test_a_loss_below_zero_has_no_ratio():
    assert fed(Watch.of(config(stop_above=4)), [-1.0] * 10 + [50.0] * 10 + [100.0] * 10) == []


@pytest.mark.parametrize("cut", [7, 10, 13, 25])
def test_a_resumed_watch_sees_what_the_first_would_have(cut):
    losses = [1 + math.sin(7 * i) / 3 for i in range(20)] + [9.0] * 10
    settings = config(stop_above=4)
    whole, first = Watch.of(settings), Watch.of(settings)
    assert fed(whole, losses) == [30] and fed(first, losses[:cut]) == []
    resumed = Watch.of(settings, first.state)
    assert [step + cut for step in fed(resumed, losses[cut:])] == [30] and resumed == whole
