import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from lgm.cli import main
from lgm.data import open_images
from lgm.data.decoding import picture
from lgm.data.near_duplicates import COLOUR, DISTANCE, Hashes, _colour_apart, hash_image, joined, nearest, overlap


def png(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def hashed(*contents):
    return joined([hash_image(content, "it") for content in contents])


@pytest.mark.parametrize("kinds", [1, 40, 2**62])
def test_the_search_finds_what_comparing_all_finds(kinds):
    rng = np.random.default_rng(kinds)
    some = rng.integers(0, 2**62, 40, np.uint64) if kinds == 40 else rng.integers(0, kinds, 400, np.uint64)
    flips = lambda count: np.bitwise_or.reduce(np.uint64(1) << rng.integers(0, 64, (count, 9), np.uint64), axis=1)
    draw = lambda count: Hashes(rng.choice(some, count) ^ (flips(count) & flips(count)),
                                rng.integers(100, 110, (count, 48)).astype(np.uint8))
    asked, known = draw(60), draw(300)
    bits = np.bitwise_count(asked.bits[:, None] ^ known.bits)
    colours = np.array([_colour_apart(known.colours.astype(np.float32), one.astype(np.float32))
                        for one in asked.colours])
    near = (bits <= DISTANCE) & (colours <= COLOUR)
    found = nearest(asked, known)
    assert set(found) == set(np.flatnonzero(near.any(axis=1)).tolist())
    for one, (other, apart) in found.items():
        assert near[one, other] and apart == bits[one, other] == bits[one][near[one]].min()


@pytest.mark.parametrize("share, change", [
    (0.9, lambda image: png(image.resize((image.width // 2, image.height // 2), Image.Resampling.BILINEAR))),
    (0.9, lambda image: png(image, "JPEG", quality=80)),
    (0.95, lambda image: png(ImageEnhance.Brightness(image).enhance(0.9))),
])
def test_most_copies_are_near_what_they_are_of(share, change):
    emoji = open_images("emoji64").take(range(0, 6996, 100))
    images = [picture(emoji.content(i), "it") for i in range(len(emoji))]
    found = nearest(hashed(*map(change, images)), hashed(*map(png, images)))
    assert sum(one == other for one, (other, _) in found.items()) >= share * len(emoji)


def test_a_drawing_in_other_colours_or_mirrored_is_not_near():
    flags = open_images("flags", {"code": ["br", "mx", "za"]})
    images = [picture(flags.content(i), "it") for i in range(len(flags))]
    red, green, blue = images[1].split()
    known = hashed(*map(png, images))
    for other in (Image.merge("RGB", (green, red, blue)), ImageOps.mirror(images[2]), ImageOps.invert(images[0])):
        assert not nearest(hashed(png(other)), known)


def test_the_flag_of_one_country_under_two_names_is_named(capsys):
    training, heldout = (open_images("flags", {"split": split}) for split in ("train", "heldout"))
    count, line = overlap(training, heldout)
    assert count == 2 and line == ("2 of 21 held-out images are near duplicates of training images: "
                                   "flags/gb-nir.png of flags/gb.png, flags/hm.png of flags/au.png")
    assert overlap(training, heldout.take([])) == overlap(training.take([]), heldout) == (0, "")
    assert main(["data", "flags", "--resolution=64", "--step=8"]) == 0
    assert f"near      {line}" in capsys.readouterr().out
