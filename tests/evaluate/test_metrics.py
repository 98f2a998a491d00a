"""Scores of features: torch-fidelity's numbers on the same features, formulas written out, closed forms."""

import warnings

import numpy as np
import pytest
import torch

from lgm.evaluate import distance, metrics, statistics

RNG = np.random.default_rng(1)
X = RNG.standard_normal((260, 16)).astype(np.float32)
Y = (RNG.standard_normal((300, 16)) * 0.8 + 0.3).astype(np.float32)


@pytest.mark.slow  # needs torch-fidelity
def test_fid_is_torch_fidelitys(package):
    theirs = package("torch_fidelity.metric_fid")
    one, two = (theirs.fid_features_to_statistics(torch.from_numpy(part)) for part in (X, Y))
    one, two = ({key: value.astype(np.float64) for key, value in part.items()} for part in (one, two))
    expected = theirs.fid_statistics_to_metric(one, two, False)["frechet_inception_distance"]
    ours = metrics.frechet(statistics.of_features(X), statistics.of_features(Y))
    assert ours == pytest.approx(expected, rel=1e-5)
    assert ours == pytest.approx(distance.frechet(X, Y), rel=1e-5)


@pytest.mark.slow  # needs torch-fidelity
def test_kid_is_torch_fidelitys(package):
    expected = package("torch_fidelity.metric_kid").kid_features_to_metric(
        torch.from_numpy(X), torch.from_numpy(Y), kid_subsets=7, kid_subset_size=90, verbose=False)
    mean, deviation = distance.kernel_subsets(X, Y, 7, 90)
    assert mean == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-4)  # theirs is in float32
    assert deviation == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-3)


@pytest.mark.slow  # needs torch-fidelity
def test_precision_and_recall_are_torch_fidelitys(package):
    theirs = package("torch_fidelity.metric_prc")
    expected = theirs.prc_features_to_metric(torch.from_numpy(X), torch.from_numpy(Y), verbose=False)
    assert metrics.precision_recall(X, Y) == pytest.approx((expected["precision"], expected["recall"]), abs=1e-6)


@pytest.mark.slow  # needs torch-fidelity
def test_the_inception_score_is_torch_fidelitys(package):
    logits = torch.from_numpy(3 * X)
    expected = package("torch_fidelity.metric_isc").isc_features_to_metric(logits)
    found = metrics.inception_score(logits.double().softmax(1).numpy())
    assert found == pytest.approx(tuple(expected.values()), rel=1e-9)


def test_the_inception_score_of_certain_classes():
    certain = np.eye(4)[np.arange(40) % 4]
    assert metrics.inception_score(certain, 1)[0] == pytest.approx(4)  # as many as there are classes


def test_density_and_coverage_as_written_in_the_paper():
    gap = lambda a, b: np.linalg.norm(a[:, None] - b[None], axis=-1)
    radii = np.sort(gap(Y, Y), 1)[:, 5]
    inside = gap(X, Y) < radii
    assert metrics.density_coverage(X, Y) == pytest.approx((inside.sum() / (5 * len(X)), inside.any(0).mean()))
    same = metrics.density_coverage(*RNG.standard_normal((2, 2000, 3)))
    assert same == pytest.approx((1, 1 - 2**-5), abs=0.04)  # what the paper derives for equal distributions


def test_cmmd_as_its_authors_compute_it():
    x, y = (torch.nn.functional.normalize(torch.from_numpy(part).double()) for part in (X, Y))
    kernel = lambda a, b: torch.exp(-torch.cdist(a, b) ** 2 / (2 * 10**2)).mean()
    expected = 1000 * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))
    assert distance.cmmd(X, Y) == pytest.approx(float(expected), rel=1e-6)
    assert distance.cmmd(X, X) == pytest.approx(0, abs=1e-9)


def test_clip_score_is_a_hundred_cosines():
    cosine = torch.nn.functional.cosine_similarity(torch.from_numpy(X), torch.from_numpy(Y[:260]))
    np.testing.assert_allclose(metrics.clip_score(X, Y[:260]), 100 * cosine.clamp(min=0).numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="one for each"):
        metrics.clip_score(X, Y)


def test_retrieval():
    captions = np.eye(6)
    images = np.concatenate([np.eye(6), np.eye(6)[::-1] + 0.1])  # two of each caption
    of = np.r_[np.arange(6), np.arange(6)[::-1]]
    assert set(metrics.retrieval(images, captions, of).values()) == {1.0}
    wrong = metrics.retrieval(np.roll(np.eye(6), 1, 0), captions, ranks=(1,))
    assert set(wrong.values()) == {0.0}
    alike = metrics.retrieval(np.ones((6, 6)), captions, ranks=(1, 6))
    assert alike["text_to_image_R@1"] == 0 and alike["text_to_image_R@6"] == 1  # ties are lost
    random = metrics.retrieval(*RNG.standard_normal((2, 400, 64)), ranks=(40,))
    assert list(random.values()) == pytest.approx([0.1, 0.1], abs=0.06)
    with pytest.raises(ValueError, match="0 to 5"):
        metrics.retrieval(images, captions, np.full(12, 6))


def test_the_extrapolated_distance_has_less_bias():
    """Of samples of one distribution the distance is all bias, and the limit near that of the other sample alone."""
    x, y = RNG.standard_normal((1500, 12)), RNG.standard_normal((20000, 12))
    found = metrics.frechet_infinity(x, statistics.of_features(y), points=8)
    assert abs(found.limit) < 0.25 * found.distance
    assert found.bias == pytest.approx(found.distance - found.limit, rel=0.3)
    assert found.count == 1500
    with pytest.raises(ValueError, match="extrapolation"):
        metrics.frechet_infinity(x[:90], statistics.of_features(y))


def test_statistics_of_two_networks_do_not_compare():
    one = statistics.of_features(X, "aaaa", "first")
    with pytest.raises(ValueError, match="aaaa .first. and bbbb .second."):
        metrics.frechet(one, statistics.of_features(Y, "bbbb", "second"))
    with pytest.raises(ValueError, match="16 features .first. and of 15"):
        metrics.frechet(one, statistics.of_features(Y[:, :15]))
    with pytest.raises(ValueError, match="too small"):
        metrics.precision_recall(X[:3], Y)


@pytest.fixture(autouse=True)
def no_warnings():
    """A warning of ours would be an error in the arithmetic."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="lgm")
        yield
