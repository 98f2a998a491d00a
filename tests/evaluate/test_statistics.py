"""Statistics that do not depend on order or division, their files, and what is refused."""

import numpy as np
import pytest

from lgm.evaluate import statistics
from lgm.evaluate.statistics import Accumulator, read_statistics, save_statistics
from lgm.parsing import ConfigError

RNG = np.random.default_rng(0)
X = (RNG.standard_normal((700, 9)) * RNG.uniform(0.01, 20, 9) + RNG.uniform(-50, 50, 9)).astype(np.float32)


def test_statistics_are_numpys():
    """To 1e-9 of the largest: features are rounded to 2^-18."""
    found = statistics.of_features(X, rows=100)
    np.testing.assert_allclose(found.mean, X.astype(np.float64).mean(0), rtol=0, atol=2**-19)
    np.testing.assert_allclose(found.covariance, np.cov(X.astype(np.float64), rowvar=False), rtol=1e-5, atol=1e-5)
    assert found.count == 700 and found.dim == 9


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_the_same_bits_in_any_order_and_division(parts):
    whole = statistics.of_features(X)
    shuffled = np.array_split(RNG.permutation(X), parts)
    first, *rest = [Accumulator(9).add(part) for part in shuffled]
    merged = first.merge(reversed(rest)).statistics()
    np.testing.assert_array_equal(merged.mean, whole.mean)
    np.testing.assert_array_equal(merged.covariance, whole.covariance)


def test_files_come_back(tmp_path):
    made = statistics.of_features(X, "abc", "net")
    save_statistics(tmp_path / "s.safetensors", made)
    read = read_statistics(tmp_path / "s.safetensors")
    np.testing.assert_array_equal(read.covariance, made.covariance)
    assert (read.count, read.features, read.name) == (700, "abc", "net")
    np.savez(tmp_path / "p.npz", mu=made.mean, sigma=made.covariance)  # what pytorch-fid writes
    read = read_statistics(tmp_path / "p.npz")
    np.testing.assert_array_equal(read.mean, made.mean)
    assert (read.count, read.features, read.name) == (None, "", "p.npz")


def test_bad_files_are_one_line(tmp_path):
    np.savez(tmp_path / "pickled.npz", mu=np.array([{}], object), sigma=np.eye(1))
    np.savez(tmp_path / "shape.npz", mu=np.ones(3), sigma=np.eye(2))
    np.savez(tmp_path / "lacks.npz", mu=np.ones(3))
    np.savez(tmp_path / "nan.npz", mu=np.ones(1), sigma=np.full((1, 1), np.nan))
    np.savez(tmp_path / "complex.npz", mu=np.ones(1, complex), sigma=np.ones((1, 1)))
    np.savez(tmp_path / "negative.npz", mu=np.ones(2), sigma=-np.eye(2))
    np.savez(tmp_path / "lopsided.npz", mu=np.ones(2), sigma=np.triu(np.ones((2, 2))))
    (tmp_path / "text.npz").write_text("no zip")
    (tmp_path / "text.safetensors").write_text("no tensors")
    for name, words in [("pickled.npz", "pickle"), ("shape.npz", "are not"), ("lacks.npz", "has no sigma"),
                        ("complex.npz", "complex128"), ("negative.npz", "no covariance"),
                        ("lopsided.npz", "not symmetric"), ("nan.npz", "finite"),
                        ("text.npz", "text.npz"), ("text.safetensors", "text.safetensors"),
                        ("absent.npz", "not there"), ("absent.safetensors", "not there")]:  # fmt: skip
        with pytest.raises(ConfigError, match=words) as error:
            read_statistics(tmp_path / name)
        assert "\n" not in str(error.value)


def test_features_that_cannot_be_summed_are_refused():
    for bad in (np.full((1, 9), np.nan), np.full((1, 9), 600.0)):
        with pytest.raises(ValueError, match="finite and below 512"):
            Accumulator(9).add(bad)
    with pytest.raises(ValueError, match="2 images"):
        Accumulator(9).add(X[:1]).statistics()
