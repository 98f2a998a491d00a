"""What images are scored by, from features alone; float64 on the host, every random choice from a stated seed.

x are features of generated images, y of real ones. Frechet's and the kernel distances are in `distance`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from lgm.evaluate import statistics
from lgm.evaluate.distance import frechet_of_normals, pair, squared
from lgm.evaluate.statistics import Statistics

SEED = 2020  # of random choices, as torch-fidelity has it, whose numbers are those here


def inception_score(probabilities_NC: np.ndarray, splits: int = 10, seed: int | None = SEED) -> tuple[float, float]:
    """(mean, standard deviation) over `splits` parts of exp of the mean KL(p(y|x) || p(y)) (Salimans et al. 2016,
    1606.03498). Higher is better; it sees no real images, grows with the images a part, and is of the classes' domain.

    seed: of the shuffle before images are parted, None for none. Raises ValueError for fewer images than parts.
    """
    p = np.asarray(probabilities_NC, np.float64)
    if p.ndim != 2 or len(p) < splits or splits < 1:
        raise ValueError(f"an Inception score in {splits} parts needs as many images; there are {len(p)}")
    p = p if seed is None else p[np.random.RandomState(seed).permutation(len(p))]
    scores = [np.exp(_divergences(part).mean()) for part in _splits(p, splits)]
    return float(np.mean(scores)), float(np.std(scores))


def inception_score_error(probabilities_NC: np.ndarray, splits: int = 10, seed: int | None = SEED) -> float:
    """The standard error of `inception_score`'s mean, by the delta method: the variance of a part's mean divergence is
    that of its images' divergences over their number; that of p(y) is of second order."""
    p = np.asarray(probabilities_NC, np.float64)
    p = p if seed is None else p[np.random.RandomState(seed).permutation(len(p))]
    found = [_divergences(part) for part in _splits(p, splits)]
    return float(np.sqrt(sum(np.exp(2 * part.mean()) * part.var() / len(part) for part in found)) / splits)


def precision_recall(x_ND: np.ndarray, y_MD: np.ndarray, neighbours: int = 3) -> tuple[float, float]:
    """(share of x within the real manifold, share of y within the generated one), improved precision and recall
    (Kynkaanniemi et al. 2019, 1904.06991).

    A manifold is the union of balls round its samples that reach to their k-th neighbour. Both fall as features get
    more and samples fewer, and one outlier's ball may hold much: compare at one number of images.
    Raises ValueError for samples of no more than `neighbours`.
    """
    x, y = pair(x_ND, y_MD, neighbours + 1)

    def inside(points, centres):
        radii = _radii(centres, neighbours)
        return float(np.concatenate([(part <= radii).any(1) for part in _parts(points, centres)]).mean())

    return inside(x, y), inside(y, x)


def density_coverage(x_ND: np.ndarray, y_MD: np.ndarray, neighbours: int = 5) -> tuple[float, float]:
    """(density, coverage) (Naeem et al. 2020, 2002.09797): how many real balls a generated image lies in, over k, which
    may exceed 1, and the share of real balls that hold one.

    Of equal distributions both are close to 1: coverage is 1 - 2^-k. Raises ValueError as `precision_recall` does.
    """
    x, y = pair(x_ND, y_MD, neighbours + 1)
    radii, within, covered = _radii(y, neighbours), 0, np.zeros(len(y), bool)
    for part in _parts(x, y):
        inside = part < radii
        within += int(inside.sum())
        covered |= inside.any(0)
    return within / (neighbours * len(x)), float(covered.mean())


def clip_score(images_ND: np.ndarray, captions_ND: np.ndarray) -> np.ndarray:
    """[N] 100 max(cos, 0) of each image and its caption (Hessel et al. 2021, 2104.08718, whose weight is 2.5).

    Compares within one network only. Raises ValueError for another number of captions than images.
    """
    images, captions = (_directions(part) for part in pair(images_ND, captions_ND, 1))
    if len(images) != len(captions):
        raise ValueError(f"{len(images)} images and {len(captions)} captions; a CLIP score needs one for each")
    return 100 * np.maximum((images * captions).sum(1), 0.0)


def retrieval(images_ND: np.ndarray, captions_MD: np.ndarray, of_N: Sequence[int] | None = None,
              ranks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Recall at each rank: `image_to_text_R@k`, the share of images whose caption is among the k nearest by angle, and
    `text_to_image_R@k`, the share of captions one of whose images is.

    of_N: the number of each image's caption, 0 to N - 1 by default; captions are to differ. Ties count as lost. It
    grows as there are fewer captions: of M at random k / M. Raises ValueError where `of_N` does not fit.
    """
    images, captions = (_directions(part) for part in pair(images_ND, captions_MD, 1))
    of = np.arange(len(images)) if of_N is None else np.asarray(of_N)
    if of.shape != (len(images),) or of.min() < 0 or of.max() >= len(captions):
        raise ValueError(f"{len(images)} images need a number of 0 to {len(captions) - 1} each, their caption's")
    found, best = {}, np.full(len(captions), len(images))
    ahead_N = np.empty(len(images), int)
    for start in range(0, len(images), 1024):
        rows = slice(start, start + 1024)
        scores = images[rows] @ captions.T
        own = scores[np.arange(len(scores)), of[rows]]
        ahead_N[rows] = (scores >= own[:, None]).sum(1) - 1
    for start in range(0, len(captions), 1024):
        scores = captions[start : start + 1024] @ images.T
        for row, line in enumerate(scores, start):
            if (mine := line[of == row]).size:
                best[row] = (line[of != row] >= mine.max()).sum()
    asked = np.isin(np.arange(len(captions)), of)
    for rank in ranks:
        found[f"image_to_text_R@{rank}"] = float((ahead_N < rank).mean())
        found[f"text_to_image_R@{rank}"] = float((best[asked] < rank).mean())
    return found


@dataclasses.dataclass(frozen=True)
class Extrapolated:
    """A Frechet distance at `count` images, that of endlessly many by the line distance(N) = limit + slope / N, its
    standard error, and the bias at `count`, slope / count."""

    distance: float
    limit: float
    error: float
    bias: float
    count: int


def frechet_infinity(x_ND: np.ndarray, real: Statistics, points: int = 15, least: int | None = None,
                     seed: int = SEED) -> Extrapolated:
    """FID_infinity (Chong & Forsyth 2020, 1911.07023): distances of `points` numbers of images, `least` to all, spread
    evenly in 1 / N, and the line through them at 1 / N = 0.

    Only the generated sample's bias is taken out; that of `real`, of its own number of images, stays. `least` is a
    tenth of the images by default, and 100 or more; below about the number of features the law is no line.
    Raises ValueError for too few images.
    """
    x = np.asarray(x_ND, np.float64)
    least = max(100, len(x) // 10) if least is None else least
    if points < 3 or not 2 <= least < len(x):
        raise ValueError(f"an extrapolation needs 3 points or more from {least} images up; there are {len(x)}")
    counts = np.unique(np.rint(1 / np.linspace(1 / least, 1 / len(x), points)).astype(int))
    rng = np.random.RandomState(seed)
    found = []
    for count in counts[:-1]:
        found.append(frechet(statistics.of_features(x[rng.choice(len(x), count, replace=False)]), real))
    found.append(frechet(statistics.of_features(x), real))
    design = np.stack([np.ones(len(counts)), 1 / counts], 1)
    (limit, slope), *_ = np.linalg.lstsq(design, np.asarray(found), rcond=None)
    spread = ((found - design @ [limit, slope]) ** 2).sum() / max(len(counts) - 2, 1)
    error = np.sqrt(spread * np.linalg.inv(design.T @ design)[0, 0])
    return Extrapolated(found[-1], float(limit), float(error), float(slope / len(x)), len(x))


def frechet(x: Statistics, y: Statistics) -> float:
    """Frechet's distance of two statistics; of Inception's features FID. Raises ValueError, one line, where they are of
    different networks or numbers of features."""
    if x.dim != y.dim:
        raise ValueError(f"statistics of {x.dim} features ({x.name or 'x'}) and of {y.dim} ({y.name or 'y'}) do not "
                         "compare; take both of one network")
    if x.features and y.features and x.features != y.features:
        raise ValueError(f"statistics of the features {x.features} ({x.name or 'x'}) and {y.features} "
                         f"({y.name or 'y'}) do not compare; take both of one network")
    return frechet_of_normals(x.mean, x.covariance, y.mean, y.covariance)


def _splits(p_NC: np.ndarray, splits: int) -> list[np.ndarray]:
    return [p_NC[i * len(p_NC) // splits : (i + 1) * len(p_NC) // splits] for i in range(splits)]


def _divergences(p_NC: np.ndarray) -> np.ndarray:
    """[N] KL(p(y|x) || p(y)) of each image."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p_NC > 0, p_NC * (np.log(p_NC) - np.log(p_NC.mean(0))), 0.0).sum(1)


def _directions(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _parts(x: np.ndarray, y: np.ndarray, rows: int = 1024):
    """Squared distances [rows, M] of x to y, some rows at a time."""
    for start in range(0, len(x), rows):
        yield squared(x[start : start + rows], y)


def _radii(x: np.ndarray, neighbours: int) -> np.ndarray:
    """[N] squared distances of x to their k-th neighbours among x, themselves not counted."""
    return np.concatenate([np.partition(part, neighbours, 1)[:, neighbours] for part in _parts(x, x)])
