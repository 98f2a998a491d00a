import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lgm.data import batches, open_images
from lgm.data.buckets import assign_buckets, bucket_sizes, lost, micro_conditioning, told_losses


@pytest.mark.parametrize("resolution, step", [(1024, 64), (512, 64), (256, 32), (64, 8)])
def test_buckets_are_multiples_of_nearly_one_area(resolution, step):
    buckets = bucket_sizes(resolution, step)
    assert (resolution, resolution) in buckets
    assert {(w, h) for h, w in buckets} == set(buckets)
    for height, width in buckets:
        assert height % step == 0 and width % step == 0
        assert abs(height * width / resolution**2 - 1) < 0.07
        assert max(height / width, width / height) <= 4


def test_sdxl_shapes_are_among_them():
    # shapes listed in appendix I of 2307.01952
    assert {(512, 2048), (768, 1344), (832, 1280), (896, 1152), (960, 1088), (1024, 1024)} <= set(bucket_sizes(1024))


@given(st.lists(st.tuples(st.integers(64, 4096), st.integers(64, 4096)), min_size=1, max_size=20))
def test_an_image_goes_to_the_nearest_aspect_ratio(sizes):
    buckets = bucket_sizes(1024)
    for (height, width), number in zip(sizes, assign_buckets(sizes, buckets), strict=True):
        distance = [abs(np.log(width / height) - np.log(w / h)) for h, w in buckets]
        assert distance[number] == pytest.approx(min(distance))


def test_micro_conditioning_says_what_was_cut():
    rows = micro_conditioning([[1000, 3000], [512, 512], [300, 200]], [[512, 512], [512, 512], [512, 256]])
    np.testing.assert_array_equal(rows, [
        [1000, 3000, 0, 512, 512, 512],  # 512 x 1536 when scaled
        [512, 512, 0, 0, 512, 512],
        [300, 200, 0, 43, 512, 256],  # 512 x 341.3
    ])
    assert rows.dtype == np.float32


def test_a_folder_in_buckets(folder):
    images = open_images(str(folder))
    buckets = bucket_sizes(8, step=2)
    groups = assign_buckets(images.sizes(), buckets)
    assert len(set(groups)) == 2
    iterator = batches({"n": np.arange(6)}, image=lambda i: images.image(i, size=buckets[groups[i]]), groups=groups,
                       batch_size=3, seed=0)
    shapes = {next(iterator)["image"].shape for _ in range(2)}
    assert shapes == {(3, 8, 8, 3), (3, *buckets[groups[1]], 3)}


def test_resolution_and_ratio_must_fit():
    with pytest.raises(ValueError, match="data.resolution=1000 must be a multiple of the bucket step 64"):
        bucket_sizes(1000)
    with pytest.raises(ValueError, match="max_ratio=0.5"):
        bucket_sizes(1024, max_ratio=0.5)


def test_buckets_about_a_rectangle_are_of_its_area():
    buckets = bucket_sizes((512, 768), 64)
    assert (512, 768) in buckets and set(buckets) == {(w, h) for h, w in buckets}
    assert all(abs(height * width / (512 * 768) - 1) < 0.07 for height, width in buckets)
    assert bucket_sizes((512, 512)) == bucket_sizes(512)


def test_what_a_cut_loses_is_the_area_outside_it():
    """200 x 100 cut to a square keeps half; cut to its own shape, of any size, all."""
    stored = np.array([[200, 100], [100, 200], [64, 64], [100, 110]])
    squares = np.full_like(stored, 64)
    np.testing.assert_allclose(lost(stored, squares), [0.5, 0.5, 0.0, 1 - 100 / 110], rtol=1e-12)
    np.testing.assert_allclose(lost(stored, stored // 2), 0.0, atol=1e-12)
    assert told_losses(lambda i: f"{i}.jpg", lost(stored, squares)) == (
        "2 of 4 images lose more than 25% of their area to the cut, the most 0.jpg, 50%")
    assert told_losses(str, lost(stored, stored)) == ""
