"""How far one sample of feature vectors is from another: Frechet's distance and kernel distances, in float64.

They are as good as their features. Of those of an Inception network they are FID and KID; of any other network, as of
an autoencoder's encoder (`evaluate.drawn`), they order runs of one project and compare with nothing published.
"""

import numpy as np

LEAST = 3  # vectors in a sample of which the kernel distance has an error


def frechet(x_ND: np.ndarray, y_MD: np.ndarray) -> float:
    """Frechet's distance (squared) of the normal distributions with the samples' means and covariances.

    Dowson and Landau 1982; of Inception's features Heusel et al. 2017 (1706.08500). It is biased upwards by about
    1 / N, so compare samples of one size only. Raises ValueError for samples of fewer than two.
    """
    x, y = pair(x_ND, y_MD, 2)
    return frechet_of_roots(x.mean(0), root(x), y.mean(0), root(y))


def root(x_ND: np.ndarray) -> np.ndarray:
    """[min(N, D), D] R of a sample's unbiased covariance R^T R."""
    centred = (x_ND - x_ND.mean(0)) / np.sqrt(len(x_ND) - 1)
    return np.linalg.qr(centred, mode="r") if len(x_ND) > x_ND.shape[1] else centred


def root_of_covariance(covariance: np.ndarray) -> np.ndarray:
    """[D, D] R of a covariance R^T R, which may be singular."""
    values, vectors = np.linalg.eigh(np.atleast_2d(covariance))
    return np.sqrt(np.clip(values, 0, None))[:, None] * vectors.T


def frechet_of_roots(mean_x: np.ndarray, root_x: np.ndarray, mean_y: np.ndarray, root_y: np.ndarray) -> float:
    """`frechet_of_normals` of covariances R^T R, R [any, D]: the trace of the root of their product is the sum of the
    singular values of R_x R_y^T, which is small where vectors are few."""
    shared = np.linalg.svd(root_x @ root_y.T, compute_uv=False).sum()
    return float(((mean_x - mean_y) ** 2).sum() + (root_x**2).sum() + (root_y**2).sum() - 2 * shared)


def frechet_of_normals(mean_x: np.ndarray, cov_x: np.ndarray, mean_y: np.ndarray, cov_y: np.ndarray) -> float:
    """|m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)); means [D], covariances [D, D], which may be singular.

    The trace of the root is that of R S_y R with R the root of S_x, which is symmetric: no complex root of a product.
    """
    cov_x, cov_y = np.atleast_2d(cov_x), np.atleast_2d(cov_y)
    values, vectors = np.linalg.eigh(cov_x)
    root = vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T
    shared = np.sqrt(np.clip(np.linalg.eigvalsh(root @ cov_y @ root), 0, None)).sum()
    return float(((mean_x - mean_y) ** 2).sum() + np.trace(cov_x) + np.trace(cov_y) - 2 * shared)


def kernel(x_ND: np.ndarray, y_MD: np.ndarray) -> tuple[float, float]:
    """The unbiased squared maximum mean discrepancy under (x . y / D + 1)^3, and its standard error.

    The estimator is equation 3 of Gretton et al. 2012, the kernel that of Binkowski et al. 2018 (1801.01401); without
    bias it may fall below zero. The error is the jackknife's, the two samples taken as independent. Raises ValueError
    for samples of fewer than `LEAST`.
    """
    x, y = pair(x_ND, y_MD, LEAST)
    m, n = len(x), len(y)
    within_x, within_y, across_x, across_y = _inner_sums(x), _inner_sums(y), _sums(x, y), _sums(y, x)
    value = _discrepancy(within_x.sum(), within_y.sum(), across_x.sum(), m, n)
    # the same without each of the vectors in turn
    no_x = _discrepancy(within_x.sum() - 2 * within_x, within_y.sum(), across_x.sum() - across_x, m - 1, n)
    no_y = _discrepancy(within_x.sum(), within_y.sum() - 2 * within_y, across_x.sum() - across_y, m, n - 1)
    variance = sum((len(part) - 1) * part.var() for part in (no_x, no_y))
    return float(value), float(np.sqrt(variance))


def kernel_subsets(x_ND: np.ndarray, y_MD: np.ndarray, subsets: int = 100, size: int = 1000,
                   seed: int = 2020) -> tuple[float, float]:
    """KID as it is published: (mean, standard deviation) of `kernel`'s value over subsets of `size` images, drawn as
    torch-fidelity draws them. The deviation is that of one subset, not an error of the mean; `kernel` has one.

    Raises ValueError for samples of fewer than `size`.
    """
    x, y = pair(x_ND, y_MD, max(size, LEAST))
    rng, found = np.random.RandomState(seed), []
    for _ in range(subsets):
        a, b = (part[rng.choice(len(part), size, replace=False)] for part in (x, y))
        across = _sums(a, b).sum()
        found.append(_discrepancy(_inner_sums(a).sum(), _inner_sums(b).sum(), across, size, size))
    return float(np.mean(found)), float(np.std(found))


def cmmd(x_ND: np.ndarray, y_MD: np.ndarray) -> float:
    """CMMD (Jayasumana et al. 2024, 2401.09603): 1000 times the squared maximum mean discrepancy of normalized CLIP
    embeddings under exp(-|x - y|^2 / 200).

    As its authors' code, the means take in each vector's kernel with itself: never below zero, and biased upwards by
    at most 2000 / N times 1 minus the mean kernel, some 10 / N. Published numbers are of CLIP ViT-L/14 at 336 pixels.
    """
    x, y = (part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12) for part in pair(x_ND, y_MD, 1))
    rows = lambda a: (a[i : i + 1024] for i in range(0, len(a), 1024))
    mean = lambda a, b: sum(np.exp(squared(part, b) / -200).sum() for part in rows(a)) / (len(a) * len(b))
    return float(1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y)))


def cmmd_bias(x_ND: np.ndarray, y_MD: np.ndarray) -> float:
    """By how much `cmmd` is too large on average: what its means take in of each vector with itself."""
    total = 0.0
    for part in pair(x_ND, y_MD, 2):
        unit = part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12)
        kernels = sum(np.exp(squared(unit[i : i + 1024], unit) / -200).sum() for i in range(0, len(unit), 1024))
        total += (1 - (kernels - len(unit)) / (len(unit) * (len(unit) - 1))) / len(unit)
    return float(1000 * total)


def squared(x_ND: np.ndarray, y_MD: np.ndarray) -> np.ndarray:
    """[N, M] squared distances of every x to every y."""
    sums = (x_ND**2).sum(1)[:, None] + (y_MD**2).sum(1) - 2 * x_ND @ y_MD.T
    return np.maximum(sums, 0.0)


def _discrepancy(within_x, within_y, across, m: int, n: int):
    return within_x / (m * (m - 1)) + within_y / (n * (n - 1)) - 2 * across / (m * n)


def _sums(x: np.ndarray, y: np.ndarray, rows: int = 1024) -> np.ndarray:
    """[N] sums over y of the kernel of every x."""
    parts = [((x[i : i + rows] @ y.T / x.shape[1] + 1) ** 3).sum(1) for i in range(0, len(x), rows)]
    return np.concatenate(parts)


def _inner_sums(x: np.ndarray) -> np.ndarray:
    """[N] sums of the kernel of every x with all others."""
    return _sums(x, x) - ((x**2).mean(1) + 1) ** 3


def pair(x: np.ndarray, y: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Two samples of features in float64. Raises ValueError for ones that do not compare or of fewer than `least`."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"features of shapes {x.shape} and {y.shape} do not compare; give [N, D] and [M, D]")
    if min(len(x), len(y)) < least:
        raise ValueError(f"samples of {len(x)} and {len(y)} are too small for a distance; give {least} or more")
    return x, y
