"""The autoencoder's features tell good samples from bad ones: distances rise with what is wrong with the images."""

import types

import numpy as np
import pytest
from PIL import Image, ImageFilter

from lgm.config import Evaluation
from lgm.data import open_images
from lgm.evaluate import distance, drawn
from lgm.parsing import ConfigError
from lgm.weights import load_autoencoder


class Parts(types.SimpleNamespace):
    __hash__ = object.__hash__  # as a System's: by identity


@pytest.fixture(scope="module")
def system():
    """The parts of a System that features and checks need, and its frozen parameters."""
    autoencoder, weights = load_autoencoder("emoji64")
    config = types.SimpleNamespace(evaluation=Evaluation(distance=8))
    return Parts(autoencoder=autoencoder, config=config, layout=None), {"autoencoder": weights}


@pytest.fixture(scope="module")
def features(system):
    return lambda images: drawn.features(*system, images)


@pytest.fixture(scope="module")
def real():
    return open_images("emoji64", where={"split": "heldout"}).images()


@pytest.fixture(scope="module")
def of_real(features, real):
    return features(real)


@pytest.fixture(scope="module")
def reference(features):
    train = open_images("emoji64", where={"split": "train"})
    return features(train.take(range(0, len(train), 16)).images())


def test_held_out_images_are_as_near_as_training_images_can_be(of_real, reference):
    value, error = distance.kernel(of_real, reference)
    assert abs(value) < 3 * error and of_real.shape == (195, 160)


def blurred(images, radius):
    return np.stack([np.asarray(Image.fromarray(i).filter(ImageFilter.GaussianBlur(radius))) for i in images])


def grained(images, deviation):
    noise = np.random.default_rng(0).normal(0, deviation, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8)


def greyed(images, part):
    return np.where((np.arange(len(images)) % 100 < 100 * part)[:, None, None, None], np.uint8(128), images)


def repeated(images, kept):
    return images[np.arange(len(images)) % kept]


@pytest.mark.parametrize(("change", "amounts"), [(blurred, (1, 4)), (grained, (25, 100)), (greyed, (0.2, 0.9)),
                                                 (repeated, (40, 3))])
def test_distances_rise_with_what_is_wrong(features, of_real, real, reference, change, amounts):
    found = [of_real, *(features(change(real, amount)) for amount in amounts)]
    for values in ([distance.kernel(part, reference)[0] for part in found],
                   [distance.frechet(part, reference) for part in found]):
        assert values == sorted(values) and values[-1] > 3 * values[0]


def test_too_few_held_out_images_are_one_line(system):
    with pytest.raises(ConfigError, match="evaluation.distance=8 needs 3 held-out images or more.*leave 2"):
        drawn.check_enough(system[0], [None, None])
    drawn.check_enough(system[0], [None] * 3)
