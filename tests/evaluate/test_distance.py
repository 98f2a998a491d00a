"""Distances of samples: closed forms of normal distributions, scipy's matrix root, and standard errors that hold."""

import numpy as np
import pytest
import scipy.linalg

from lgm.evaluate import distance

RNG = np.random.default_rng(0)


def covariance(rank, size=12):
    root = RNG.standard_normal((size, rank))
    return root @ root.T


@pytest.mark.parametrize(("rank_x", "rank_y"), [(12, 12), (12, 3), (4, 5)])
def test_frechet_is_that_of_scipys_matrix_root(rank_x, rank_y):
    """scipy's root of the product loses half its digits where the product is singular; ours does not take one."""
    mean, cov_x, cov_y = RNG.standard_normal(12), covariance(rank_x), covariance(rank_y)
    theirs = mean @ mean + np.trace(cov_x + cov_y - 2 * scipy.linalg.sqrtm(cov_x @ cov_y).real)
    ours = distance.frechet_of_normals(mean, cov_x, np.zeros(12), cov_y)
    assert ours == pytest.approx(theirs, rel=1e-9 if rank_x == rank_y == 12 else 1e-5)


def test_frechet_of_normals_in_closed_form():
    """Covariances that commute: the sum of squared differences of means and standard deviations."""
    basis = np.linalg.qr(RNG.standard_normal((6, 6)))[0]
    one, two, mean = (RNG.uniform(0.1, 3, 6) for _ in range(3))
    cov = lambda deviations: basis * deviations**2 @ basis.T
    found = distance.frechet_of_normals(mean, cov(one), np.zeros(6), cov(two))
    assert found == pytest.approx((mean**2).sum() + ((one - two) ** 2).sum(), rel=1e-12)
    assert distance.frechet_of_normals(mean, cov(one), mean, cov(one)) == pytest.approx(0, abs=1e-12)


def test_frechet_of_large_samples_is_that_of_their_distributions():
    x, y = RNG.standard_normal((40_000, 3)), 0.5 + 2 * RNG.standard_normal((50_000, 3))
    assert distance.frechet(x, y) == pytest.approx(3 * 0.25 + 3 * 1.0, rel=0.03)
    assert distance.frechet(x[:, :1], y[:, :1]) == pytest.approx(0.25 + 1.0, rel=0.05)


def kernel_of_normals(shift, size):
    """E of (x . y / D + 1)^3 for x ~ N(0, I), y ~ N(shift, I): E 1 + 3 s + 3 s^2 + s^3 of s = x . y / D."""
    square = (shift @ shift + size) / size**2  # of s; x is symmetric, so that odd powers vanish
    return 1 + 3 * square


def test_the_kernel_distance_is_unbiased_and_its_error_that_of_repetition():
    """Of x ~ N(0, I) and y ~ N(shift, I) all three expected kernels are polynomials in the moments."""
    size, shift = 4, np.array([0.6, -0.3, 0.0, 0.2])
    norm = shift @ shift
    # y . y' / D: mean |shift|^2 / D and, of what is added to it, second and third moments
    mean, second, third = norm / size, (2 * norm + size) / size**2, 6 * norm / size**3
    yy = 1 + 3 * mean + 3 * (mean**2 + second) + mean**3 + 3 * mean * second + third
    truth = 1 + 3 / size + yy - 2 * kernel_of_normals(shift, size)
    draws = [distance.kernel(RNG.standard_normal((60, size)), shift + RNG.standard_normal((45, size)))
             for _ in range(2000)]
    values, errors = np.array(draws).T
    assert values.mean() == pytest.approx(truth, abs=4 * values.std() / 2000**0.5)
    assert np.sqrt((errors**2).mean()) == pytest.approx(values.std(), rel=0.15)


def test_the_kernel_distance_by_its_definition_and_a_jackknife_by_leaving_out():
    x, y = RNG.standard_normal((9, 5)), 1 + RNG.standard_normal((7, 5))

    def value(x, y):
        k = lambda a, b: (a @ b.T / 5 + 1) ** 3
        off = lambda k: (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))
        return off(k(x, x)) + off(k(y, y)) - 2 * k(x, y).mean()

    found, error = distance.kernel(x, y)
    assert found == pytest.approx(value(x, y), rel=1e-12)
    without = [[value(np.delete(x, i, 0), y) for i in range(9)], [value(x, np.delete(y, i, 0)) for i in range(7)]]
    expected = sum((len(part) - 1) / len(part) * ((np.array(part) - np.mean(part)) ** 2).sum() for part in without)
    assert error == pytest.approx(expected**0.5, rel=1e-9)
    assert distance._sums(x, y, rows=4) == pytest.approx(distance._sums(x, y), rel=1e-12)


@pytest.mark.parametrize("shapes", [((2, 3), (9, 3)), ((9, 3), (9, 4)), ((9,), (9, 3))])
def test_samples_that_do_not_compare(shapes):
    with pytest.raises(ValueError, match="too small|do not compare"):
        distance.kernel(*(np.zeros(shape) for shape in shapes))
