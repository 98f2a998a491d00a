"""Scaled images are the Lanczos filter's, as closely as Pillow's are; JPEGs have Pillow's values, or are refused."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image, ImageOps

from lgm.data import resizing
from lgm.data.decoding import decode
from lgm.data.resizing import covering

SIZES = [((40, 60), (16, 16)), ((60, 37), (50, 20)), ((31, 31), (64, 48)), ((90, 20), (9, 33)), ((1, 50), (7, 7))]


def smooth(height, width, seed=0):
    """uint8 [height, width, 3] of few details, of which no filter's result leaves [0, 255] by much."""
    coarse = np.random.default_rng(seed).integers(40, 216, (height // 8 + 2, width // 8 + 2, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def lanczos(whole, start, length, count):
    """float64 [count, whole]: the windowed sinc of three lobes, widened where it shrinks, its weights summing to 1."""
    scale = length / count
    centre = start + (np.arange(count)[:, None] + 0.5) * scale
    x = (np.arange(whole) + 0.5 - centre) / max(scale, 1)
    weight = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)
    return weight / weight.sum(1, keepdims=True)


@pytest.mark.parametrize(("whole", "size"), SIZES)
@pytest.mark.parametrize("centre", [(0.5, 0.5), (0.0, 1.0), (0.3, 0.8)])
def test_scaling_is_the_filter_in_float64(whole, size, centre):
    image = smooth(*whole)
    (height, width), (tall, wide) = whole, size
    cut = (min(height, width * tall / wide), min(width, height * wide / tall))
    down, right = (lanczos(all, (all - part) * share, part, count)
                   for all, part, share, count in zip(whole, cut, centre, size, strict=True))
    expected = np.einsum("ah,bw,hwc->abc", down, right, image.astype(np.float64)).clip(0, 255)
    for found in covering(image, size, centre), covering(Image.fromarray(image), size, centre):
        assert found.shape == (*size, 3) and found.dtype == np.uint8
        # rounded once in each of two passes, weights to 15 bits: an error's deviation is at least that of one rounding
        assert np.abs(found - expected).max() < 2 and np.sqrt(((found - expected) ** 2).mean()) < 0.5


@pytest.mark.parametrize("change", [("Resizer", None), ("LARGEST", 2399)])
def test_pillow_scales_where_the_resizer_is_not_built_and_what_is_too_large(change, monkeypatch):
    image = smooth(40, 60)
    ours = covering(image, (16, 20), (0.2, 0.7))
    monkeypatch.setattr(resizing, *change)
    theirs = covering(image, (16, 20), (0.2, 0.7))
    fit = ImageOps.fit(Image.fromarray(image), (20, 16), Image.Resampling.LANCZOS, centering=(0.7, 0.2))
    np.testing.assert_array_equal(theirs, np.asarray(fit))
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def jpeg(image, **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "jpeg", **options)
    return buffer.getvalue()


def test_a_jpeg_has_the_values_that_pillow_reads():
    shapes = [(1, 1), (7, 5), (8, 17), (33, 40), (50, 64)]
    ways = itertools.product((30, 95), (0, 1, 2), (False, True), (0, 3))
    for seed, (shape, (quality, subsampling, progressive, restart)) in enumerate(itertools.product(shapes, ways)):
        content = jpeg(smooth(*shape, seed), quality=quality, subsampling=subsampling, progressive=progressive,
                       restart_marker_blocks=restart)
        with Image.open(io.BytesIO(content)) as image:
            np.testing.assert_array_equal(decode(content, shape, "it"), np.asarray(image))
        half = tuple(-(-side // 2) for side in shape)
        with Image.open(io.BytesIO(content)) as image:  # decoded at a smaller scale where that covers the size
            image.draft(None, half[::-1])
            if image.size == half[::-1]:
                np.testing.assert_array_equal(decode(content, half, "it"), np.asarray(image))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 4}, {"subsampling": 0}])
def test_a_jpeg_cut_short_is_bad_though_a_marker_ends_it(options):
    content = jpeg(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), **options)
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(ValueError, match="it cannot be decoded"):
            decode(content[: int(share * len(content))] + b"\xff\xd9", (64, 64), "it")


def test_a_jpeg_with_bytes_to_spare_is_whole():
    content = jpeg(smooth(16, 16))
    expected = decode(content, (16, 16), "it")
    for spare in (content + b"junk", content[:-2] + b"junk junk" + content[-2:]):
        np.testing.assert_array_equal(decode(spare, (16, 16), "it"), expected)
