"""Metrics by name, as protocols ask for them: what each takes of the drawn images and of the real ones."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lgm.evaluate import distance, metrics
from lgm.evaluate.features import Features
from lgm.evaluate.statistics import Statistics, of_features
from lgm.parsing import ConfigError, near_miss
from lgm.registry import check_options


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """Images as metrics see them: `features` [N, D] by a network and `captions`, or the statistics alone, `given`, of
    images that are not at hand; `hash` of what they are."""

    network: Features
    features: np.ndarray | None
    captions: Sequence[str]
    given: Statistics | None = None
    hash: str = ""

    @functools.cached_property
    def statistics(self) -> Statistics:
        """Mean and covariance of the features."""
        return self.given or of_features(self.features, self.network.hash, self.network.name)


@dataclasses.dataclass(frozen=True)
class Metric:
    """act(drawn, real, **options) -> values by name. `drawn` and `real` are how many images of each it needs, at
    least; of `real` 0 where it looks at none. `from_statistics`: whether those of the real images do."""

    act: Callable[..., dict[str, Any]]
    drawn: int = 1
    real: int = 0
    from_statistics: bool = False


def _frechet(drawn: Measured, real: Measured) -> dict[str, Any]:
    return {"frechet": metrics.frechet(drawn.statistics, real.statistics)}


def _frechet_infinity(drawn: Measured, real: Measured, points: int = 15, seed: int = metrics.SEED) -> dict[str, Any]:
    found = metrics.frechet_infinity(drawn.features, real.statistics, points, seed=seed)
    return {"frechet_infinity": found.limit, "frechet_infinity_error": found.error, "frechet_bias": found.bias}


def _kernel(drawn: Measured, real: Measured) -> dict[str, Any]:
    value, error = distance.kernel(drawn.features, real.features)
    return {"kernel": value, "kernel_error": error}


def _kernel_subsets(drawn: Measured, real: Measured, subsets: int = 100, size: int = 1000,
                    seed: int = metrics.SEED) -> dict[str, Any]:
    value, deviation = distance.kernel_subsets(drawn.features, real.features, subsets, size, seed)
    return {"kernel_subsets": value, "kernel_subsets_deviation": deviation}


def _cmmd(drawn: Measured, real: Measured) -> dict[str, Any]:
    return {"cmmd": distance.cmmd(drawn.features, real.features)}


def _inception_score(drawn: Measured, real: Measured, splits: int = 10, seed: int = metrics.SEED) -> dict[str, Any]:
    value, deviation = metrics.inception_score(drawn.network.probabilities(drawn.features), splits, seed)
    return {"inception_score": value, "inception_score_deviation": deviation}


def _precision_recall(drawn: Measured, real: Measured, neighbours: int = 3) -> dict[str, Any]:
    return dict(zip(("precision", "recall"), metrics.precision_recall(drawn.features, real.features, neighbours),
                    strict=True))


def _density_coverage(drawn: Measured, real: Measured, neighbours: int = 5) -> dict[str, Any]:
    return dict(zip(("density", "coverage"), metrics.density_coverage(drawn.features, real.features, neighbours),
                    strict=True))


def _clip_score(drawn: Measured, real: Measured) -> dict[str, Any]:
    scores = metrics.clip_score(drawn.features, drawn.network.text(drawn.captions))
    return {"clip_score": float(scores.mean()), "clip_score_error": float(scores.std(ddof=1) / len(scores) ** 0.5)}


def _retrieval(drawn: Measured, real: Measured) -> dict[str, Any]:
    captions = list(dict.fromkeys(drawn.captions))
    return metrics.retrieval(drawn.features, drawn.network.text(captions), [captions.index(c) for c in drawn.captions])


METRICS: dict[str, Metric] = {
    "frechet": Metric(_frechet, 2, 2, True), "frechet_infinity": Metric(_frechet_infinity, 101, 2, True),
    "kernel": Metric(_kernel, distance.LEAST, distance.LEAST), "kernel_subsets": Metric(_kernel_subsets, 3, 3),
    "cmmd": Metric(_cmmd, 1, 1), "inception_score": Metric(_inception_score, 10),
    "precision_recall": Metric(_precision_recall, 4, 4), "density_coverage": Metric(_density_coverage, 6, 6),
    "clip_score": Metric(_clip_score, 2), "retrieval": Metric(_retrieval, 2),
}  # fmt: skip


def check(asked: Sequence[dict[str, Any]], count: int | None = None, real: Measured | None = None) -> None:
    """Raise ConfigError, one line, for metrics or options that there are not, and for fewer images than they need: of
    `count` drawn ones, and of the `real`, where those are known."""
    for section in asked:
        name, options = section["name"], {key: value for key, value in section.items() if key != "name"}
        if name not in METRICS:
            raise ConfigError(f"protocol.metrics: {name!r} is no metric{near_miss(name, METRICS)}")
        metric = METRICS[name]
        check_options("metric", functools.partial(metric.act, None, None), name, options)
        if count is not None and count < metric.drawn:
            raise ConfigError(f"protocol.metrics: {name!r} needs {metric.drawn} drawn images or more, and there are "
                              f"{count}")
        if real is None or not metric.real:
            continue
        if real.features is None and not metric.from_statistics:
            raise ConfigError(f"protocol.metrics: {name!r} needs the reference's images themselves, and that is a file "
                              "of statistics; give a folder or a data set, or ask for 'frechet' alone")
        if real.features is not None and len(real.features) < metric.real:
            raise ConfigError(f"protocol.metrics: {name!r} needs {metric.real} reference images or more, and there are "
                              f"{len(real.features)}")


def score(section: dict[str, Any], drawn: Measured, real: Measured) -> dict[str, Any]:
    """The values of a metric that `check` has passed."""
    options = {key: value for key, value in section.items() if key != "name"}
    return METRICS[section["name"]].act(drawn, real, **options)
