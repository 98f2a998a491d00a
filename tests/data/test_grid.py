import numpy as np
import pytest
from PIL import Image, ImageFont

from lgm.data import save_grid
from lgm.data.grid import LETTERS, _wrap


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
    font = ImageFont.load_default(LETTERS)
    for caption in ("a smiling face with sunglasses, fluent-3d style", "Donaudampfschifffahrtsgesellschaft yes", "a"):
        lines = _wrap(caption, font, 64)
        assert all(font.getlength(line) <= 64 for line in lines)
        assert "".join(lines).replace(" ", "") == caption.replace(" ", "")


def test_real_images_stand_beside_the_drawn(tmp_path):
    picture = save_grid(tmp_path / "x.png", colours(RED, RED), beside=colours(BLUE, BLUE), columns=2, scale=1)
    first = lambda colour: np.argwhere((picture == np.array(colour)).all(-1))[0]
    assert squares(picture, RED) == squares(picture, BLUE) == 2 * 256
    assert first(BLUE)[1] < first(RED)[1] and first(BLUE)[0] == first(RED)[0]


def test_numbers_must_match(tmp_path):
    with pytest.raises(ValueError, match="2 images was given 1 captions"):
        save_grid(tmp_path / "x.png", colours(RED, RED), ["one"])
    assert not list(tmp_path.iterdir())
