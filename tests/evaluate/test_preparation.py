"""Resizing as the libraries named do it, pixel for pixel."""

import jax
import numpy as np
import pytest
import torch
from PIL import Image

from lgm.evaluate.preparation import Preparation

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 24, 40, 3), np.uint8)


def prepared(images=IMAGES, **options):
    """Grey levels 0 to 255 after preparation."""
    return np.asarray(Preparation(mean=(0.0,) * 3, std=(1.0,) * 3, **options)(images))


@pytest.mark.parametrize("size", [15, 64])
@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_pillow(name, size):
    """With 8 bits to the last bit; without rounding, as clean-fid resizes, to 1e-3 grey levels."""
    resample = getattr(Image, name.upper())
    theirs = [np.asarray(Image.fromarray(image).resize((size, size), resample)) for image in IMAGES]
    np.testing.assert_array_equal(prepared(size=size, filter=f"{name}_pillow", rounded=True), theirs)
    channel = lambda image, c: Image.fromarray(image[..., c].astype(np.float32)).resize((size, size), resample)
    theirs = [np.stack([np.asarray(channel(image, c)).clip(0, 255) for c in range(3)], -1) for image in IMAGES]
    np.testing.assert_allclose(prepared(size=size, filter=f"{name}_pillow"), theirs, atol=1e-3)


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_torch(name):
    theirs = torch.nn.functional.interpolate(torch.from_numpy(IMAGES).permute(0, 3, 1, 2).float(), (64, 64), mode=name)
    theirs = theirs.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(prepared(size=64, filter=f"{name}_torch"), theirs, atol=1e-3)


def test_tensorflow_1():
    """Its pixels have no middle: output i lies at i x scale, between the pixel there and the next (none at the end)."""
    place = np.arange(24) * (40 / 24)  # of columns; rows stay as they are
    low = place.astype(int)
    part = (place - low)[:, None]
    theirs = IMAGES[:, :, low] * (1 - part) + IMAGES[:, :, np.minimum(low + 1, 39)] * part
    np.testing.assert_allclose(prepared(size=24, filter="bilinear_tf1"), theirs, atol=1e-3)


def test_the_middle_of_the_shorter_side_and_scaling():
    found = np.asarray(jax.jit(Preparation(16, "bicubic_pillow", True, 18, (10.0, 20, 30), (2.0, 4, 8)))(IMAGES))
    theirs = np.stack([np.asarray(Image.fromarray(i).resize((30, 18), Image.BICUBIC))[1:17, 7:23] for i in IMAGES])
    np.testing.assert_allclose(found, (theirs - np.array([10.0, 20, 30])) / [2, 4, 8], atol=1e-5)
