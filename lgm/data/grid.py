"""Pictures of pictures: images in a grid with their captions, as PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lgm.files import write_atomically

MARGIN, LETTERS, LINE = 8, 12, 15  # pixels: around a cell, height of the letters and of a line of them
BLACK, GREY = (0, 0, 0), (120, 120, 120)


def save_grid(path: str | Path | None, images: np.ndarray, captions: Sequence[str] | None = None, *,
              beside: np.ndarray | None = None, row_labels: Sequence[str] | None = None, columns: int | None = None,
              scale: int = 2) -> np.ndarray:
    """Lay out uint8 images [N, H, W, 3], write a PNG whole or not at all (to no file if `path` is None), and return the
    picture [H, W, 3].

    captions: one an image, wrapped under it. beside: as many real images; each cell then shows the real one at the left
    and the drawn one at the right, labelled. row_labels: one a row of the grid, at its left; with them and without
    `columns`, there are as many rows as labels. Raises ValueError where the numbers of things do not match.
    """
    picture = np.asarray(grid(images, captions, beside=beside, row_labels=row_labels, columns=columns, scale=scale))
    if path is not None:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        write_atomically(path, buffer.getvalue())
    return picture


def grid(images: np.ndarray, captions: Sequence[str] | None = None, *, beside: np.ndarray | None = None,
         row_labels: Sequence[str] | None = None, columns: int | None = None, scale: int = 2) -> Image.Image:
    """The picture that `save_grid` writes."""
    count, height, width, _ = images.shape
    for name, things in (("captions", captions), ("beside", beside)):
        if things is not None and len(things) != count:
            raise ValueError(f"a grid of {count} images was given {len(things)} {name}; give one for each image")
    font = ImageFont.load_default(LETTERS)
    gap = MARGIN // 2
    tiles = [images] if beside is None else [beside, images]
    cell_width, cell_height = len(tiles) * width * scale + (len(tiles) - 1) * gap, height * scale
    lines = [_wrap(caption, font, cell_width) for caption in captions or []]
    if columns is None:
        tallest = max(map(len, lines), default=0) * LINE
        columns = _columns(count, cell_width + 2 * MARGIN, cell_height + tallest + 2 * MARGIN, row_labels)
    rows = -(-count // columns)
    if row_labels is not None and len(row_labels) != rows:
        raise ValueError(f"a grid of {rows} rows was given {len(row_labels)} row_labels; give one for each row")
    left = max((round(font.getlength(label)) + MARGIN for label in row_labels or []), default=0)
    head = LINE + gap if beside is not None else 0
    pitch_x = cell_width + 2 * MARGIN
    tops = [head]  # of the rows, and the end of the last: each is as high as its longest caption
    for row in range(rows):
        text = max(map(len, lines[row * columns : (row + 1) * columns]), default=0) * LINE
        tops.append(tops[-1] + cell_height + text + 2 * MARGIN)
    canvas = Image.new("RGB", (left + columns * pitch_x, tops[-1]), "white")
    draw = ImageDraw.Draw(canvas)
    for column in range(columns if head else 0):
        for label, x in (("real", 0), ("drawn", width * scale + gap)):
            draw.text((left + column * pitch_x + MARGIN + x, gap), label, fill=GREY, font=font)
    for row, label in enumerate(row_labels or []):
        draw.text((MARGIN, tops[row] + MARGIN + cell_height // 2), label, fill=BLACK, font=font, anchor="lm")
    for i in range(count):
        x, y = left + i % columns * pitch_x + MARGIN, tops[i // columns] + MARGIN
        for j, tile in enumerate(tiles):
            image = Image.fromarray(tile[i]).resize((width * scale, height * scale), Image.Resampling.BICUBIC)
            canvas.paste(image, (x + j * (width * scale + gap), y))
        for number, line in enumerate(lines[i] if lines else []):
            draw.text((x, y + cell_height + 3 + number * LINE), line, fill=BLACK, font=font)
    return canvas


def same_size(images: Sequence[np.ndarray]) -> np.ndarray:
    """Images [H, W, 3] of several sizes as one array, each in the middle of a white tile that holds any of them."""
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    tiles = np.full((len(images), height, width, 3), 255, np.uint8)
    for tile, image in zip(tiles, images, strict=True):
        top, left = (height - image.shape[0]) // 2, (width - image.shape[1]) // 2
        tile[top : top + image.shape[0], left : left + image.shape[1]] = image
    return tiles


def _columns(count: int, pitch_x: int, pitch_y: int, row_labels: Sequence[str] | None) -> int:
    """As many as make the picture about 1.6 times as wide as high, or a row for each label."""
    if row_labels:
        return -(-count // len(row_labels))
    return max(1, min(count, round((count * 1.6 * pitch_y / pitch_x) ** 0.5)))


def _wrap(caption: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines no wider than `width` pixels, broken between words, and inside one only where it alone is too wide."""
    lines = [""]
    for word in caption.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines
