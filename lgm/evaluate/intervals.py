"""How surely a metric is known from so many images: its deviation, were both samples drawn anew, and an interval.

Deviations are those of half-samples: parts of the images without repetition, whose values vary by
sqrt(part / (all - part)) as those of all would, drawn anew (the delete-d jackknife, Shao & Wu 1989). The bootstrap, in
whose samples images repeat, says something else of what looks at pairs and neighbours: of Frechet's distance it moves
the place, for its samples have fewer different images, and with a copy each it makes precision and recall 0. Intervals
are those of a normal law about the value, cut where a metric ends, and of a share no narrower than Wilson's (1927), for
none of eight is not none at all. They are of the value at so many images: a bias that comes of the number, as
Frechet's, is in the value and in its interval alike, and stands beside it.

Both samples vary, taken as independent; of a reference that is statistics alone, only the drawn. Two runs on one
reference differ more surely than their two intervals say. Of simulated features deviations are right to a quarter.
"""

import dataclasses
import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np

from lgm.evaluate.distance import LEAST
from lgm.evaluate.protocol import Intervals
from lgm.evaluate.scores import METRICS, Measured, Metric

MOST, FEWEST = 500, 50  # images in a part: of the larger sample at most, of the smaller at least, where it has as many


@dataclasses.dataclass(frozen=True)
class Halves:
    """Of values by name: their standard deviation at all images, and by how much more they are at endlessly many than
    here, where their bias is as 1 / N."""

    deviations: dict[str, float]
    biases: dict[str, float]


def half_samples(measure: Callable[[np.ndarray, np.ndarray | None], dict[str, float]], values: dict[str, float],
                 counts: tuple[int, int | None], draws: int, seed: int, least: int = LEAST) -> Halves | None:
    """What `draws` parts of two samples say of `values`, those of the whole.

    measure(rows of one, rows of the other or None) -> values by the same names. counts: of the samples' vectors, None
    for one that stays as it is. Part `i` of seed s is a function of (s, i). None where parts of at least `least` cannot
    be left out of either sample.
    """
    known = [count for count in counts if count is not None]
    share = min(0.5, max(MOST / max(known), FEWEST / min(known)))
    sizes = [None if count is None else max(int(count * share), least) for count in counts]
    if any(size is not None and size >= count for size, count in zip(sizes, counts, strict=True)):
        return None
    rows = lambda rng, size, count: None if size is None else np.sort(rng.choice(count, size, replace=False))
    found = []
    for draw in range(draws):
        rng = np.random.default_rng((seed, draw))
        found.append(measure(*(rows(rng, size, count) for size, count in zip(sizes, counts, strict=True))))
    scale = sizes[0] / (counts[0] - sizes[0])
    columns = {name: np.array([part[name] for part in found]) for name in found[0]}
    return Halves({name: float(column.std(ddof=1) * math.sqrt(scale)) for name, column in columns.items()},
                  {name: float((column.mean() - values[name]) * scale) for name, column in columns.items()})


def intervals_of(section: dict[str, Any], values: dict[str, Any], drawn: Measured, real: Measured, asked: Intervals
                 ) -> dict[str, dict[str, float]]:  # fmt: skip
    """{name: {low, high, deviation}} of a metric's values, and the `bias` of those whose bias falls as 1 / N; {} where
    there are too few images.

    Frechet's is known to deviation / sqrt(draws), and is more than this where images are fewer than features, so that
    the law does not hold yet.
    """
    options = {key: value for key, value in section.items() if key != "name"}
    metric, biases = METRICS[section["name"]], {}
    if metric.deviations is not None:
        deviations = metric.deviations(values, drawn, real, **options)
    else:
        halves = _halves(metric, options, values, drawn, real, asked)
        if halves is None:
            return {}
        deviations, biases = halves.deviations, halves.biases if metric.biased else {}
    if metric.biases is not None:
        biases = metric.biases(drawn, real)
    noise = {} if metric.noise is None else metric.noise(values, drawn, real, **options)
    width, (least, most) = NormalDist().inv_cdf((1 + asked.level) / 2), metric.bounds
    found = {}
    for name, deviation in deviations.items():
        deviation = math.hypot(deviation, noise.get(name, 0.0))
        low, high = values[name] - width * deviation, values[name] + width * deviation
        if metric.bounds == (0, 1):
            count = len(drawn.features) if metric.real == 0 else min(len(drawn.features), len(real.features))
            reach = _wilson(values[name], count, width)
            low, high = min(low, reach[0]), max(high, reach[1])
        found[name] = {"low": min(values[name], max(least, low)), "high": max(values[name], min(most, high)),
                       "deviation": deviation,
                       **({"bias": biases[name]} if name in biases else {})}
    return found


def _wilson(share: float, count: int, width: float) -> tuple[float, float]:
    """The interval of a share of `count`, so many deviations wide."""
    more = width**2 / count
    middle, half = share + more / 2, width * math.sqrt(share * (1 - share) / count + more / (4 * count))
    return (middle - half) / (1 + more), (middle + half) / (1 + more)


def _halves(metric: Metric, options: dict[str, Any], values: dict[str, Any], drawn: Measured, real: Measured,
            asked: Intervals) -> Halves | None:
    act, least = (metric.act, max(metric.drawn, metric.real)) if metric.halves is None else (metric.halves, LEAST)
    counts = len(drawn.features), None if real.features is None else len(real.features)

    def measure(rows: np.ndarray, others: np.ndarray | None) -> dict[str, float]:
        return act(drawn.part(rows), real if others is None else real.part(others), **options)

    return half_samples(measure, values, counts, asked.draws, asked.seed, least)
