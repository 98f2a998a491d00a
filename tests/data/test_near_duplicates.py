import io

import numpy as np
import pytest
from formats import FORMATS
from PIL import Image, ImageEnhance, ImageOps

from lgm.cli import main
from lgm.data import kept_hashes, near_duplicates, open_images
from lgm.data.decoding import picture
from lgm.data.mixture import mixture
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


def test_hashes_are_computed_once_and_a_start_says_what_it_did_not_look_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    draw = lambda: Image.fromarray(rng.integers(0, 256, (3, 3, 3), np.uint8)).resize((40, 30), Image.Resampling.BICUBIC)
    for number in range(40):
        draw().save(folder / f"{number:02d}.png")
    parts = lambda: [open_images(str(folder), threads=2).take(range(*ends)) for ends in ((0, 30), (30, 40))]
    training = parts()[0]
    (folder / "35.png").write_bytes(training.content(3))
    said = overlap(*parts(), most=5)
    assert said[0] == 0 and "40 of 40 images were not hashed yet, more than 5; lgm data --config=PAGE does" in said[1]
    asked = []
    monkeypatch.setattr(near_duplicates, "hash_image", lambda *words: asked.append(words[1]) or hash_image(*words))
    expected = (1, "1 of 10 held-out images are near duplicates of training images: "
                   f"{folder}/35.png of {folder}/03.png")
    assert overlap(*parts()) == expected and len(asked) == 40
    assert overlap(*parts(), most=0) == expected and len(asked) == 40
    draw().save(folder / "35.png")  # another image of that name
    assert overlap(*parts(), most=0)[1].startswith("near duplicates of held-out images are not looked for: 1 of 40")
    assert overlap(*parts()) == (0, "") and asked[40:] == [f"{folder}/35.png"]
    kept = sorted((tmp_path / "home" / "lgm" / "hashes").glob("*/*.npy"))
    kept[0].write_bytes(kept[0].read_bytes()[:100])  # damaged: those are computed again
    assert overlap(*parts()) == (0, "") and len(asked) > 41
    sets = {name: part for name, part in zip("ab", parts(), strict=True)}
    both = mixture(sets)
    assert overlap(both, parts()[1], most=0)[0] == 10 and len(kept) == 3


def test_every_kind_of_collection_says_what_changes_where_an_image_does(tmp_path):
    records = [(f"{i}.png", png(Image.new("RGB", (8, 8), (i, 0, 0))), f"caption {i}", "kind") for i in range(12)]
    for form, write in FORMATS.items():
        path = tmp_path / form
        path.mkdir()
        images = open_images(str(write(path, records)))
        known = kept_hashes.marks(images, np.arange(12))
        assert len({*known.tolist()}) == 12, form
        assert known.tolist() == kept_hashes.marks(images, np.arange(12)).tolist()
