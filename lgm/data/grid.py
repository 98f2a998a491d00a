"""Pictures of pictures: images in a grid with their captions, as PNG."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lgm.data import letters
from lgm.files import write_atomically

MARGIN, LINE = 8, 15  # pixels: around a cell, height of a line of letters
GREY = (120, 120, 120)


def save_grid(path: str | Path | None, images: np.ndarray, captions: Sequence[str] | None = None, *,
              beside: np.ndarray | None = None, columns: int | None = None, scale: int = 2) -> np.ndarray:
    """Lay out uint8 images [N, H, W, 3], write a PNG whole or not at all (to no file if `path` is None), and return the
    picture [H, W, 3], by default about 1.6 times as wide as high.

    captions: one an image, wrapped under it. beside: as many real images; each cell then shows the real one at the left
    and the drawn one at the right, labelled. Raises ValueError where the numbers of things do not match.
    """
    count, height, width, _ = images.shape
    for name, things in (("captions", captions), ("beside", beside)):
        if things is not None and len(things) != count:
            raise ValueError(f"a grid of {count} images was given {len(things)} {name}; give one for each image")
    gap = MARGIN // 2
    tiles = [images] if beside is None else [beside, images]
    cell_width, cell_height = len(tiles) * width * scale + (len(tiles) - 1) * gap, height * scale
    pitch_x = cell_width + 2 * MARGIN
    if missing := letters.without_a_font(captions or ()):
        warnings.warn(f"captions in pictures show boxes for {missing!r}: no font here has these letters; install "
                      "one of the system's that has, such as fonts-noto", stacklevel=2)
    lines = [_wrap(caption, cell_width) for caption in captions or []]
    if columns is None:
        tallest = max(map(len, lines), default=0) * LINE
        pitch_y = cell_height + tallest + 2 * MARGIN
        columns = max(1, min(count, round((count * 1.6 * pitch_y / pitch_x) ** 0.5)))
    rows = -(-count // columns)
    head = LINE + gap if beside is not None else 0
    tops = [head]  # of the rows, and the end of the last: each is as high as its longest caption
    for row in range(rows):
        text = max(map(len, lines[row * columns : (row + 1) * columns]), default=0) * LINE
        tops.append(tops[-1] + cell_height + text + 2 * MARGIN)
    canvas = Image.new("RGB", (columns * pitch_x, tops[-1]), "white")
    for column in range(columns if head else 0):
        for label, x in (("real", 0), ("drawn", width * scale + gap)):
            letters.write(canvas, (column * pitch_x + MARGIN + x, gap), label, GREY)
    for i in range(count):
        x, y = i % columns * pitch_x + MARGIN, tops[i // columns] + MARGIN
        for j, tile in enumerate(tiles):
            image = Image.fromarray(tile[i]).resize((width * scale, height * scale), Image.Resampling.BICUBIC)
            canvas.paste(image, (x + j * (width * scale + gap), y))
        for number, line in enumerate(lines[i] if lines else []):
            letters.write(canvas, (x, y + cell_height + 3 + number * LINE), line)
    if path is not None:
        buffer = io.BytesIO()
        canvas.save(buffer, "PNG")
        write_atomically(path, buffer.getvalue())
    return np.asarray(canvas)


def same_size(images: Sequence[np.ndarray]) -> np.ndarray:
    """Images [H, W, 3] of several sizes as one array, each in the middle of a white tile that holds any of them."""
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    tiles = np.full((len(images), height, width, 3), 255, np.uint8)
    for tile, image in zip(tiles, images, strict=True):
        top, left = (height - image.shape[0]) // 2, (width - image.shape[1]) // 2
        tile[top : top + image.shape[0], left : left + image.shape[1]] = image
    return tiles


def _wrap(caption: str, width: int) -> list[str]:
    """Lines no wider than `width` pixels, broken between words, and inside one only where it alone is too wide."""
    lines = [""]
    for word in caption.split():
        longer = f"{lines[-1]} {word}".strip()
        if letters.width(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in letters.whole(word):
            if lines[-1] and letters.width(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines
