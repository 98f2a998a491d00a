"""Captions in pictures: each letter from a font that has it, emoji from the images that come with the package.

Pillow's own font has Latin letters alone and draws boxes for others. What it has not is looked for in DejaVu Sans,
which matplotlib brings, in Droid Sans Fallback (Chinese, Japanese, Korean), which the package brings, and in the
system's fonts.
"""

import functools
import io
import json
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

LETTERS = 12  # pixels: height of the letters
EMOJI = LETTERS + 2  # side of a drawn emoji
BLACK = (0, 0, 0)
WITHOUT = {0xFE0E, 0xFE0F, 0x200D, 0x20E3}  # variation selectors, joiner, keycap: signs of how letters go together
LONGEST = 10  # code points of an emoji

Piece = tuple[str, ImageFont.FreeTypeFont | Image.Image]


def without_a_font(texts: Iterable[str]) -> str:
    """Letters that no font here has, each once."""
    return "".join(dict.fromkeys(
        letter for text in texts for part, how in pieces(text) if not isinstance(how, Image.Image)
        for letter in part if ord(letter) not in WITHOUT and not letter.isspace() and font_of(letter) is None))


def pieces(text: str) -> Iterator[Piece]:
    """Runs of letters with the font that draws them, and emoji with their images; together they are `text`."""
    run, font, place = "", base(), 0
    while place < len(text):
        letter = text[place]
        if ord(letter) > 0xFF and (found := _emoji_at(text, place)) is not None:
            if run:
                yield run, font
            count, image = found
            yield text[place : place + count], image
            run, place = "", place + count
            continue
        other = font if ord(letter) in WITHOUT or letter.isspace() else font_of(letter) or base()
        if run and other is not font:
            yield run, font
            run = ""
        run, font, place = run + letter, other, place + 1
    if run:
        yield run, font


def width(text: str) -> float:
    """Pixels that a line takes."""
    return sum(EMOJI if isinstance(how, Image.Image) else how.getlength(part) for part, how in pieces(text))


def whole(text: str) -> list[str]:
    """What a line may be broken between: letters, and emoji of several."""
    return [unit for part, how in pieces(text) for unit in ([part] if isinstance(how, Image.Image) else part)]


def write(canvas: Image.Image, place: tuple[int, int], text: str, fill: tuple[int, int, int] = BLACK) -> None:
    """Draw a line with its top left corner at `place` = (x, y)."""
    draw, (x, y) = ImageDraw.Draw(canvas), place
    for part, how in pieces(text):
        if isinstance(how, Image.Image):
            canvas.paste(how, (round(x), y))
            x += EMOJI
            continue
        # on the baseline of the font of Latin letters
        draw.text((x, y + base().getmetrics()[0]), part, fill=fill, font=how, anchor="ls")
        x += how.getlength(part)


@functools.cache
def base() -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(LETTERS)


@functools.cache
def font_of(letter: str) -> ImageFont.FreeTypeFont | None:
    """The first font that has a letter, None where none has."""
    if ord(letter) < 0x7F or ord(letter) in _letters_of_base():
        return base()
    return next((_opened(path) for path in _fonts() if ord(letter) in _letters_of(path)), None)


@functools.cache
def _letters_of_base() -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(io.BytesIO(base().path.getvalue())).get_charmap())


@functools.cache
def _fonts() -> tuple[str, ...]:
    from matplotlib import font_manager, get_data_path

    brought = (Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf",
               Path(__file__).parent / "fonts" / "DroidSansFallback.ttf")
    regular = lambda path: (any(word in path.lower() for word in ("bold", "italic", "oblique", "mono")), path)
    return (*map(str, brought), *sorted(font_manager.findSystemFonts(), key=regular))


@functools.cache
def _letters_of(path: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    try:
        _opened(path)
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):  # one of pictures, or damaged
        return frozenset()


@functools.cache
def _opened(path: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, LETTERS)


def _emoji_at(text: str, place: int) -> tuple[int, Image.Image] | None:
    """(letters, image) of the longest emoji that begins there."""
    for count in range(min(LONGEST, len(text) - place), 0, -1):
        part = text[place : place + count]
        if (file := _emoji().get(_key(part))) is not None and ord(part[-1]) != 0x200D:
            if text[place + count : place + count + 1] == "\ufe0f":
                count += 1
            return count, _emoji_image(file)
    return None


def _key(text: str) -> tuple[int, ...]:
    return tuple(ord(letter) for letter in text if letter not in "\ufe0e\ufe0f")


@functools.cache
def _archive() -> zipfile.ZipFile:
    return zipfile.ZipFile(Path(__file__).parent / "emoji64" / "emoji64.zip")


@functools.cache
def _emoji() -> dict[tuple[int, ...], str]:
    """Files of the shipped emoji, of each the first style, by code points."""
    found: dict[tuple[int, ...], str] = {}
    for line in _archive().read("metadata.jsonl").splitlines():
        row = json.loads(line)
        points = tuple(int(point, 16) for point in row["codepoints"].split("-"))
        found.setdefault(tuple(point for point in points if point not in (0xFE0E, 0xFE0F)), row["file_name"])
    return found


@functools.cache
def _emoji_image(file: str) -> Image.Image:
    image = Image.open(io.BytesIO(_archive().read(file))).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB").resize((EMOJI, EMOJI), Image.Resampling.LANCZOS)
