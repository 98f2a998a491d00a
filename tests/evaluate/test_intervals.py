"""Deviations from one pair of samples are those of many pairs drawn anew, and intervals hold as often as they say."""

import numpy as np
import pytest

from lgm.evaluate import distance, metrics
from lgm.evaluate.intervals import half_samples, intervals_of
from lgm.evaluate.protocol import Intervals
from lgm.evaluate.scores import METRICS, Measured

WIDTH = np.arange(1, 9) ** -0.5  # of eight features, as unequal as those of networks


class Network:
    """Of which a few metrics ask for more than features."""

    name, hash, dim = "made here", "0", 8

    def probabilities(self, features):
        odds = np.exp(2 * features)
        return odds / odds.sum(1, keepdims=True)

    def text(self, captions):
        return np.random.default_rng(9).standard_normal((len(captions), 8))


def samples(seed, n=120, m=150):
    """(drawn, real) of one pair of distributions; each seed is a pair of samples."""
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, 8)) * WIDTH, rng.standard_normal((m, 8)) * WIDTH * 1.3 + 0.3 * WIDTH
    return (Measured(Network(), part, [f"{i}" for i in range(len(part))]) for part in (x, y))


def both(name, seed, **options):
    drawn, real = samples(seed)
    section = {"name": name, **options}
    values = METRICS[name].act(drawn, real, **options)
    return values, intervals_of(section, values, drawn, real, Intervals(draws=60, seed=seed))


@pytest.mark.parametrize(("name", "options"), [
    ("frechet", {}), ("kernel", {}), ("kernel_subsets", {"subsets": 40, "size": 60}), ("cmmd", {}),
    ("inception_score", {"splits": 4}), ("precision_recall", {}), ("density_coverage", {}), ("clip_score", {}),
])  # fmt: skip
def test_a_deviation_is_that_of_samples_drawn_anew(name, options):
    """Over 80 pairs of samples, whose own deviation errs by 8%; half-samples are right to a quarter."""
    found = [both(name, seed, **options) for seed in range(6)]
    drawn = [METRICS[name].act(*samples(seed), **options) for seed in range(100, 180)]
    for value, around in found[0][1].items():
        assert around["low"] <= found[0][0][value] <= around["high"]
        true = np.std([values[value] for values in drawn], ddof=1)
        assert np.mean([one[1][value]["deviation"] for one in found]) == pytest.approx(true, rel=0.35), value


def test_intervals_hold_as_often_as_they_say():
    """Of the unbiased kernel distance; its expectation is the mean over 400 pairs of samples."""
    truth = np.mean([distance.kernel(*(part.features for part in samples(seed)))[0] for seed in range(1000, 1400)])
    around = [both("kernel", seed)[1]["kernel"] for seed in range(100)]
    assert 0.88 <= np.mean([one["low"] <= truth <= one["high"] for one in around]) <= 1


def test_biases_that_come_of_the_number_of_images():
    """Frechet's against the distance at many; CMMD's against the mean without each vector with itself."""
    found = [both("frechet", seed) for seed in range(12)]
    far = distance.frechet(*(part.features for part in samples(2, 20000, 20000)))
    bias = np.mean([around["frechet"]["bias"] for _, around in found])
    assert bias == pytest.approx(np.mean([values["frechet"] for values, _ in found]) - far, rel=0.4)
    values, around = both("cmmd", 1)
    unit = [part.features / np.linalg.norm(part.features, axis=1, keepdims=True) for part in samples(1)]
    kernel = lambda x, y: np.exp(distance.squared(x, y) / -200)
    alone = [kernel(part, part)[~np.eye(len(part), dtype=bool)].mean() for part in unit]
    unbiased = 1000 * (sum(alone) - 2 * kernel(*unit).mean())
    assert values["cmmd"] - around["cmmd"]["bias"] == pytest.approx(unbiased, rel=1e-9)


def test_a_share_of_none_or_all_has_an_interval():
    """Wilson's, of none of n: 0 to z^2 / (n + z^2)."""
    drawn, real = (Measured(Network(), shift + np.random.default_rng(3).standard_normal((12, 8)), [])
                   for shift in (0, 100))
    around = intervals_of({"name": "precision_recall"}, {"precision": 0.0, "recall": 0.0}, drawn, real, Intervals())
    assert around["precision"]["low"] == 0
    assert around["precision"]["high"] == pytest.approx(1.96**2 / (12 + 1.96**2), rel=1e-3)


def test_a_reference_of_statistics_alone_and_too_few_images():
    drawn, real = samples(0)
    given = Measured(Network(), None, [], real.statistics)
    section, values = {"name": "frechet"}, {"frechet": metrics.frechet(drawn.statistics, given.statistics)}
    alone, both = (intervals_of(section, values, drawn, other, Intervals(draws=60))["frechet"]
                   for other in (given, real))
    assert 0 < alone["deviation"] < both["deviation"]
    assert half_samples(lambda *rows: {"a": 0.0}, {"a": 0.0}, (3, 9), 4, 0) is None


def test_parts_are_of_seed_and_number_and_no_image_stands_in_one_twice():
    seen = {}
    for seed, draws in ((0, 3), (0, 5), (1, 3)):
        rows = seen[seed, draws] = []
        keep = lambda one, other, rows=rows: rows.append((one, other)) or {"a": 0.0}
        half_samples(keep, {"a": 0.0}, (9, 2000), draws, seed)
    assert all(len(set(one)) == 4 and len(set(other)) == 1000 for part in seen.values() for one, other in part)
    for first, again in zip(seen[0, 3], seen[0, 5], strict=False):
        assert (first[0] == again[0]).all() and (first[1] == again[1]).all()
    assert any((one[0] != other[0]).any() for one, other in zip(seen[0, 3], seen[1, 3], strict=True))
