import numpy as np
import pytest
from PIL import Image, ImageDraw

from lgm.data import letters, save_grid
from lgm.data.grid import _wrap


def colours(*values, size=16):
    return np.stack([np.full((size, size, 3), value, np.uint8) for value in values])


def squares(picture, colour):
    """Pixels of exactly one colour."""
    return int((picture == np.array(colour)).all(-1).sum())


RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def test_every_image_is_there_once_and_whole(tmp_path):
    path = tmp_path / "sub" / "grid.png"
    picture = save_grid(path, colours(RED, GREEN, BLUE), ["red", "green", "blue"], columns=2, scale=3)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), picture)
    assert all(squares(picture, colour) == 48 * 48 for colour in (RED, GREEN, BLUE))
    assert (picture.max(-1) < 128).sum() > 20  # letters
    assert [p.name for p in path.parent.iterdir()] == ["grid.png"]


def test_captions_wrap_within_their_cell():
    for caption in ("a smiling face with sunglasses, fluent-3d style", "Donaudampfschifffahrtsgesellschaft yes", "a",
                    "一只红狐狸在雪地里 🦊🦊🦊🦊🦊🦊"):
        lines = _wrap(caption, 64)
        assert all(letters.width(line) <= 64 for line in lines)
        assert "".join(lines).replace(" ", "") == caption.replace(" ", "")
    assert _wrap("👩‍🚀👩‍🚀👩‍🚀👩‍🚀", 30) == ["👩‍🚀👩‍🚀"] * 2  # never within one of several code points


def ink(text):
    canvas = Image.new("RGB", (200, 24), "white")
    letters.write(canvas, (2, 4), text)
    return np.asarray(canvas)


def test_letters_of_other_scripts_are_drawn_and_no_boxes():
    """A box is what a font draws for a letter that it has not: the same for all."""
    latin = Image.new("RGB", (200, 24), "white")
    ImageDraw.Draw(latin).text((2, 4), "a fox, noto (gy)", fill="black", font=letters.base())
    np.testing.assert_array_equal(ink("a fox, noto (gy)"), latin)
    box = ink("\U000130ed")
    drawn = [ink(letter) for letter in "红狐東京タ한국Жλ😀🦊❤"]
    assert all((one != other).any() for i, one in enumerate(drawn) for other in (*drawn[:i], box))
    coloured = [np.ptp(one.astype(int), -1).max() > 60 for one in drawn]
    assert coloured == [False] * 9 + [True] * 3  # emoji from the shipped images
    np.testing.assert_array_equal(ink("❤\ufe0f x"), ink("❤ x"))
    assert letters.width("🇩🇪") == letters.width("👩‍🚀") == letters.EMOJI


def test_letters_that_no_font_has_are_said_once(tmp_path):
    with pytest.warns(UserWarning, match="boxes for '\U000130ed': no font here") as said:
        save_grid(None, colours(RED, RED), ["\U000130ed\U000130ed", "a \U000130ed 红"])
    assert len(said) == 1


def test_real_images_stand_beside_the_drawn(tmp_path):
    picture = save_grid(tmp_path / "x.png", colours(RED, RED), beside=colours(BLUE, BLUE), columns=2, scale=1)
    first = lambda colour: np.argwhere((picture == np.array(colour)).all(-1))[0]
    assert squares(picture, RED) == squares(picture, BLUE) == 2 * 256
    assert first(BLUE)[1] < first(RED)[1] and first(BLUE)[0] == first(RED)[0]


def test_numbers_must_match(tmp_path):
    with pytest.raises(ValueError, match="2 images was given 1 captions"):
        save_grid(tmp_path / "x.png", colours(RED, RED), ["one"])
    assert not list(tmp_path.iterdir())
