"""Folders named in kohya's way, 10_cat, say how often an epoch serves their images."""

import numpy as np
import pytest
from PIL import Image

from lgm.config import Data
from lgm.data import batches, open_images
from lgm.data.describe import describe
from lgm.data.mixture import open_data
from lgm.data.sources.beside import repeats


def folders(root, counts, captions=False):
    for folder, count in counts.items():
        (root / folder).mkdir()
        for number in range(count):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(root / folder / f"{number}.png")
            if captions:
                (root / folder / f"{number}.txt").write_text(f"{folder} {number}")
    return str(root)


@pytest.mark.parametrize("captions", [False, True])
def test_an_epoch_serves_an_image_as_often_as_its_folder_says(tmp_path, captions):
    source = folders(tmp_path, {"10_cat": 3, "20_a_dog": 2, "5_bird": 4}, captions)
    images, heldout = open_data(Data(source=source, resolution=8, heldout_share=0.0))
    epoch = 3 * 2 + 2 * 4 + 4 * 1
    assert len(images) == epoch and len(heldout) == len(open_images(source)) == 9
    iterator = batches({}, length=len(images), batch_size=epoch, seed=0)
    for _ in range(2):
        served = [images.name(index).split("/")[-2:] for index in next(iterator)["index"]]
        files, counts = np.unique(["/".join(name) for name in served], return_counts=True)
        expected = {"10_cat": 2, "20_a_dog": 4, "5_bird": 1}
        assert dict(zip(files, counts, strict=True)) == {
            str(path.relative_to(tmp_path)): expected[path.parent.name] for path in tmp_path.glob("*/*.png")}
    assert any(line.startswith("repeats   1 4, 2 3, 4 2 ") for line in describe(source, resolution=8, step=8))


def test_of_images_that_are_held_out_none_is_trained_on(tmp_path):
    source = folders(tmp_path, {"1_cat": 10, "3_dog": 10})
    images, heldout = open_data(Data(source=source, resolution=8, heldout_share=0.2))
    names = [{one.name(i) for i in range(len(one))} for one in (images, heldout)]
    assert len(names[1]) == len(heldout) == 4 and not names[0] & names[1] and len(names[0]) == 16 < len(images)


def test_names_that_say_no_repeats_are_left_alone():
    for classes in ({"10_cat", "dog"}, {"10_cat", "10_dog"}, {"2023_summer", "2024_winter"}, {"0_cat", "1_dog"}, {""}):
        assert repeats(classes) == {}
    assert repeats({"10_cat", "4_dog"}) == {"10_cat": 5, "4_dog": 2}
