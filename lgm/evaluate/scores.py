"""Metrics by name, as protocols ask for them: what each takes of the drawn images and of the real ones."""

import dataclasses
import functools
import inspect
import math
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
    said: dict[str, np.ndarray] = dataclasses.field(default_factory=dict, repr=False)  # captions' features so far

    def part(self, rows: np.ndarray) -> "Measured":
        """Some of the images, by their numbers."""
        captions = [self.captions[row] for row in rows.tolist()] if len(self.captions) else []
        return dataclasses.replace(self, features=self.features[rows], captions=captions)

    def text(self, captions: Sequence[str]) -> np.ndarray:
        """[M, D] features of captions, each computed once."""
        if new := [caption for caption in dict.fromkeys(captions) if caption not in self.said]:
            self.said.update(zip(new, self.network.text(new), strict=True))
        return np.stack([self.said[caption] for caption in captions])

    @functools.cached_property
    def root(self) -> np.ndarray:
        """R of the features' covariance R^T R."""
        if self.given is not None:
            return distance.root_of_covariance(self.given.covariance)
        return distance.root(np.asarray(self.features, np.float64))

    @functools.cached_property
    def statistics(self) -> Statistics:
        """Mean and covariance of the features."""
        return self.given or of_features(self.features, self.network.hash, self.network.name)


@dataclasses.dataclass(frozen=True)
class Metric:
    """act(drawn, real, **options) -> values by name. `drawn` and `real` are how many images of each it needs, at
    least; of `real` 0 where it looks at none. `from_statistics`: whether those of the real images do.

    Its deviations are those of half-samples (`evaluate.intervals`) measured by `halves` in place of `act` where that
    costs less, or `deviations(values, drawn, real, **options)` by name where they are known without; `noise`, as these,
    is what its own random choices add. `bounds`: what it can be. `biased`: whether half-samples tell its bias, which
    falls as 1 / N; `biases(drawn, real)` by name where they are known without. `asks`: a part that its network must
    have, "classes" or "text".
    """

    act: Callable[..., dict[str, Any]]
    drawn: int = 1
    real: int = 0
    from_statistics: bool = False
    halves: Callable[..., dict[str, Any]] | None = None
    deviations: Callable[..., dict[str, float]] | None = None
    noise: Callable[..., dict[str, float]] | None = None
    bounds: tuple[float, float] = (-math.inf, math.inf)
    biased: bool = False
    biases: Callable[[Measured, Measured], dict[str, float]] | None = None
    asks: str = ""


def _frechet(drawn: Measured, real: Measured) -> dict[str, Any]:
    return {"frechet": metrics.frechet(drawn.statistics, real.statistics)}


def _frechet_of_few(drawn: Measured, real: Measured, name: str = "frechet", **options) -> dict[str, Any]:
    """The distance without covariances, which a half-sample is too small for."""
    mean = real.features.mean(0, dtype=np.float64) if real.given is None else real.given.mean
    return {name: distance.frechet_of_roots(drawn.features.mean(0, dtype=np.float64), drawn.root, mean, real.root)}


def _frechet_infinity(drawn: Measured, real: Measured, points: int = 15, seed: int = metrics.SEED) -> dict[str, Any]:
    found = metrics.frechet_infinity(drawn.features, real.statistics, points, seed=seed)
    return {"frechet_infinity": found.limit, "frechet_infinity_error": found.error, "frechet_bias": found.bias}


def _kernel(drawn: Measured, real: Measured) -> dict[str, Any]:
    value, error = distance.kernel(drawn.features, real.features)
    return {"kernel": value, "kernel_error": error}


def _kernel_of_few(drawn: Measured, real: Measured, **options) -> dict[str, Any]:
    return {"kernel_subsets": distance.kernel(drawn.features, real.features)[0]}


def _kernel_subsets(drawn: Measured, real: Measured, subsets: int = 100, size: int = 1000,
                    seed: int = metrics.SEED) -> dict[str, Any]:
    value, deviation = distance.kernel_subsets(drawn.features, real.features, subsets, size, seed)
    return {"kernel_subsets": value, "kernel_subsets_deviation": deviation}


def _cmmd(drawn: Measured, real: Measured) -> dict[str, Any]:
    return {"cmmd": distance.cmmd(drawn.features, real.features)}


def _inception_score(drawn: Measured, real: Measured, splits: int = 10, seed: int = metrics.SEED) -> dict[str, Any]:
    value, deviation = metrics.inception_score(drawn.network.probabilities(drawn.features), splits, seed)
    return {"inception_score": value, "inception_score_deviation": deviation}


def _inception_score_error(values, drawn: Measured, real: Measured, splits: int = 10, seed: int = metrics.SEED):
    probabilities = drawn.network.probabilities(drawn.features)
    return {"inception_score": metrics.inception_score_error(probabilities, splits, seed)}


def _precision_recall(drawn: Measured, real: Measured, neighbours: int = 3) -> dict[str, Any]:
    return dict(zip(("precision", "recall"), metrics.precision_recall(drawn.features, real.features, neighbours),
                    strict=True))


def _density_coverage(drawn: Measured, real: Measured, neighbours: int = 5) -> dict[str, Any]:
    return dict(zip(("density", "coverage"), metrics.density_coverage(drawn.features, real.features, neighbours),
                    strict=True))


def _clip_score(drawn: Measured, real: Measured) -> dict[str, Any]:
    scores = metrics.clip_score(drawn.features, drawn.text(drawn.captions))
    return {"clip_score": float(scores.mean()), "clip_score_error": float(scores.std(ddof=1) / len(scores) ** 0.5)}


def _retrieval(drawn: Measured, real: Measured) -> dict[str, Any]:
    captions = list(dict.fromkeys(drawn.captions))
    return metrics.retrieval(drawn.features, drawn.text(captions), [captions.index(c) for c in drawn.captions])


def _retrieval_errors(values, drawn: Measured, real: Measured) -> dict[str, float]:
    """Of shares of as many images or captions, among as many others."""
    counts = {"image": len(drawn.captions), "text": len(set(drawn.captions))}
    return {name: math.sqrt(share * (1 - share) / counts[name.partition("_")[0]]) for name, share in values.items()}


METRICS: dict[str, Metric] = {
    "frechet": Metric(_frechet, 2, 2, True, _frechet_of_few, bounds=(0, math.inf), biased=True),
    "frechet_infinity": Metric(
        _frechet_infinity, 101, 2, True, functools.partial(_frechet_of_few, name="frechet_infinity"),
        noise=lambda values, *_, **__: {"frechet_infinity": values["frechet_infinity_error"]}),
    "kernel": Metric(_kernel, distance.LEAST, distance.LEAST,
                     deviations=lambda values, *_, **__: {"kernel": values["kernel_error"]}),
    "kernel_subsets": Metric(
        _kernel_subsets, 3, 3, halves=_kernel_of_few,
        noise=lambda values, *_, subsets=100, **__: {"kernel_subsets": values["kernel_subsets_deviation"]
                                                     / math.sqrt(subsets)}),
    "cmmd": Metric(_cmmd, 2, 2, bounds=(0, math.inf),
                   biases=lambda drawn, real: {"cmmd": distance.cmmd_bias(drawn.features, real.features)}),
    "inception_score": Metric(_inception_score, 10, deviations=_inception_score_error, bounds=(1, math.inf),
                              asks="classes"),
    "precision_recall": Metric(_precision_recall, 4, 4, bounds=(0, 1)),
    "density_coverage": Metric(_density_coverage, 6, 6, bounds=(0, math.inf)),
    "clip_score": Metric(_clip_score, 2, bounds=(0, 100), asks="text",
                         deviations=lambda values, *_, **__: {"clip_score": values["clip_score_error"]}),
    "retrieval": Metric(_retrieval, 2, deviations=_retrieval_errors, bounds=(0, 1), asks="text"),
}  # fmt: skip


_LEAST = {"neighbours": 1, "points": 3, "seed": 0, "size": 3, "splits": 1, "subsets": 1}  # of metrics' options
_MOST = 2**32 - 1  # of NumPy's seeds


def check(sections: Sequence[dict[str, Any]], count: int | None = None, real: Measured | None = None) -> None:
    """Raise ConfigError, one line, for metrics or options that there are not, and for fewer images than they need: of
    `count` drawn ones, and of the `real`, where those are known."""
    for section in sections:
        name, options = section["name"], {key: value for key, value in section.items() if key != "name"}
        if name not in METRICS:
            raise ConfigError(f"protocol.metrics: {name!r} is no metric{near_miss(name, METRICS)}")
        metric = METRICS[name]
        check_options("metric", functools.partial(metric.act, None, None), name, options)
        for key, value in options.items():
            if key in _LEAST and not _LEAST[key] <= value <= _MOST:
                raise ConfigError(f"protocol.metrics: {name!r}: {key}={value} must lie in [{_LEAST[key]}, {_MOST}]")
        parameters = inspect.signature(metric.act).parameters
        asked = {key: options.get(key, parameter.default) for key, parameter in parameters.items()}
        least = max(asked.get("neighbours", 0) + 1, asked.get("splits", 0), asked.get("size", 0))
        if count is not None and count < (needed := max(metric.drawn, least)):
            raise ConfigError(f"protocol.metrics: {name!r} needs {needed} drawn images or more, and there are {count}")
        if real is not None and metric.asks:
            real.network.check(metric.asks)
        if real is None or not metric.real:
            continue
        if real.features is None and not metric.from_statistics:
            raise ConfigError(f"protocol.metrics: {name!r} needs the reference's images themselves, and that is a file "
                              "of statistics; give a folder or a data set, or ask for 'frechet' alone")
        if real.features is not None and len(real.features) < (needed := max(metric.real, least)):
            raise ConfigError(f"protocol.metrics: {name!r} needs {needed} reference images or more, and there are "
                              f"{len(real.features)}")


def score(section: dict[str, Any], drawn: Measured, real: Measured) -> dict[str, Any]:
    """The values of a metric that `check` has passed."""
    options = {key: value for key, value in section.items() if key != "name"}
    return METRICS[section["name"]].act(drawn, real, **options)
