"""Mean and covariance of features as they come, the same to the last bit in any order and any division of the images.

Features are rounded to multiples of 2^-18 and held as two whole numbers of 15 and 12 bits, whose products and sums a
float64 holds exactly, so that sums do not depend on their order. The rounding is that of float32 at 32 and moves a
Frechet distance of D features by D x 1.2e-12.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import safetensors.numpy

from lgm.files import local, place, write_atomically
from lgm.interop.tensor_files import open_weights, read_metadata
from lgm.parsing import ConfigError
from lgm.untrusted import regular

_LOW, _FRACTION = 12, 18  # bits
LARGEST = 2.0 ** (_LOW + 15 - _FRACTION)  # of a feature
MOST = 1 << 23  # vectors, whose sums stay exact


@dataclasses.dataclass(frozen=True)
class Statistics:
    """count vectors' mean [D] and unbiased covariance [D, D], float64; `features` is the hash of the network that gave
    them, `pictures` the size and the filter that brought pictures to it ("64x64", "64x64 lanczos"), each "" where
    a file does not say; `name` is the network's, or the file's."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int | None = None
    features: str = ""
    name: str = ""
    pictures: str = ""

    @property
    def dim(self) -> int:
        """How many features there are."""
        return len(self.mean)


class Accumulator:
    """Exact sums of feature vectors [D] and of their products."""

    def __init__(self, dim: int):
        self.count = 0
        self.sums = np.zeros((2, dim))  # of the high and of the low parts
        self.products = np.zeros((3, dim, dim))  # high x high, high x low, low x low

    def add(self, features_BD: np.ndarray) -> Accumulator:
        """Count more vectors. Raises ValueError, one line, for ones that are not finite or too large."""
        x = np.asarray(features_BD, np.float64)
        if x.ndim != 2 or x.shape[1] != self.sums.shape[1]:
            raise ValueError(f"features of shape {x.shape} are not [B, {self.sums.shape[1]}]")
        if not (np.abs(x) < LARGEST).all():  # not finite, too
            raise ValueError(f"features must be finite and below {LARGEST:g}; the largest is {np.abs(x).max():g}")
        if self.count + len(x) > MOST:
            raise ValueError(f"more than {MOST} vectors cannot be summed exactly; take fewer images")
        whole = np.rint(x * 2.0**_FRACTION)
        high = np.floor(whole / 2.0**_LOW)
        low = whole - high * 2.0**_LOW
        self.count += len(x)
        self.sums += high.sum(0), low.sum(0)
        self.products += high.T @ high, high.T @ low, low.T @ low
        return self

    def merge(self, others: Iterable[Accumulator]) -> Accumulator:
        """Count what others have counted, too."""
        for other in others:
            if self.count + other.count > MOST:
                raise ValueError(f"more than {MOST} vectors cannot be summed exactly; take fewer images")
            self.count += other.count
            self.sums += other.sums
            self.products += other.products
        return self

    def statistics(self, features: str = "", name: str = "") -> Statistics:
        """Mean and covariance of what was counted. Raises ValueError for fewer than two vectors."""
        if self.count < 2:
            raise ValueError(f"a covariance needs 2 images or more, not {self.count}")
        unit = 2.0**-_FRACTION
        sums = (self.sums[0] * 2.0**_LOW + self.sums[1]) * unit
        crossed = self.products[1] + self.products[1].T
        products = (self.products[0] * 4.0**_LOW + crossed * 2.0**_LOW + self.products[2]) * unit**2
        mean = sums / self.count
        covariance = (products - np.outer(sums, mean)) / (self.count - 1)
        return Statistics(mean, (covariance + covariance.T) / 2, self.count, features, name)


def of_features(features_ND: np.ndarray, features: str = "", name: str = "", rows: int = 4096) -> Statistics:
    """The statistics of vectors that are all at hand."""
    total = Accumulator(features_ND.shape[1])
    for start in range(0, len(features_ND), rows):
        total.add(features_ND[start : start + rows])
    return total.statistics(features, name)


def save_statistics(path: str | Path, statistics: Statistics) -> None:
    """Write a safetensors file of mu and sigma, float64, with what they are of as metadata."""
    said = {"count": json.dumps(statistics.count), "features": statistics.features, "name": statistics.name,
            "pictures": statistics.pictures}
    tensors = {"mu": np.ascontiguousarray(statistics.mean), "sigma": np.ascontiguousarray(statistics.covariance)}
    write_atomically(place(path), safetensors.numpy.save(tensors, metadata=said))


def read_statistics(path: str | Path) -> Statistics:
    """Statistics from a file of `save_statistics` or from an .npz with mu and sigma, as pytorch-fid and others write.

    Raises ConfigError, one line, for anything else; pickled arrays are refused.
    """
    path = local(path)
    try:
        found, said = _read_npz(regular(path)) if path.suffix == ".npz" else _read_safetensors(path)
        if kinds := [key for key in ("mu", "sigma") if found[key].dtype.kind not in "fV"]:  # bfloat16 is a V to numpy
            raise ValueError(f"{kinds[0]} is of {found[kinds[0]].dtype}; statistics are real numbers")
        mean, covariance = (np.asarray(found[key], np.float64) for key in ("mu", "sigma"))
    except FileNotFoundError:
        raise ConfigError(f"{path} is not there; give a .safetensors or .npz file with mu and sigma") from None
    except KeyError as error:
        raise ConfigError(f"{path} has no {error.args[0]}; statistics are mu [D] and sigma [D, D]") from None
    except ValueError as error:
        raise ConfigError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    if mean.ndim != 1 or covariance.shape != mean.shape * 2 or not mean.size:
        raise ConfigError(f"{path}: mu {mean.shape} and sigma {covariance.shape} are not [D] and [D, D]")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ConfigError(f"{path} holds values that are not finite")
    largest = np.abs(covariance).max()
    if covariance.diagonal().min() < 0 or np.abs(covariance - covariance.T).max() > 1e-3 * largest:
        raise ConfigError(f"{path}: sigma is no covariance: it is not symmetric, or has variances below 0")
    count = said.get("count", "null")
    return Statistics(mean, covariance, int(count) if count.isdigit() else None, said.get("features", ""),
                      said.get("name") or path.name, said.get("pictures", ""))


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    weights = open_weights(path)
    return {name: weights.get(name) for name in ("mu", "sigma") if name in weights.names}, read_metadata(path)


def _read_npz(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    import zipfile

    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in ("mu", "sigma") if name in file.files}, {}
    except (zipfile.BadZipFile, OSError, EOFError, TypeError, AttributeError) as error:
        raise ValueError(f"it is no .npz of plain arrays ({' '.join(str(error).split())})") from None
    except ValueError:  # NumPy takes any other file for a pickle
        raise ValueError("it is no .npz of plain arrays; a pickle is not read") from None
