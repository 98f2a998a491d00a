"""Pictures of pictures: images in a grid with their captions, as PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lgm.files import write_atomically

MARGIN, SIZE = 8, 12  # pixels around a cell, and of the caption's letters


def save_grid(path: str | Path, images: np.ndarray, captions: Sequence[str] | None = None, *,
              beside: np.ndarray | None = None, columns: int | None = None, scale: int = 2) -> np.ndarray:
    """Lay out uint8 images [N, H, W, 3], write a PNG, and return the picture [H, W, 3].

    beside: as many real images; each cell then shows the real one at the left, labelled, and the drawn one at the right.
    """
    picture = np.asarray(grid(images, captions, beside=beside, columns=columns, scale=scale))
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())
    return picture


def grid(images, captions=None, *, beside=None, columns=None, scale=2) -> Image.Image:
    """The picture that `save_grid` writes."""
    count, height, width, _ = images.shape
    font = ImageFont.load_default(SIZE)
    tiles = [images] if beside is None else [beside, images]
    cell_width = len(tiles) * width * scale + (len(tiles) - 1) * MARGIN // 2
    lines = [_wrap(caption, font, cell_width) for caption in captions or []]
    text_height = max((len(l) for l in lines), default=0) * (SIZE + 2)
    columns = columns or min(count, max(1, round((count * 1.6 * (height * scale + text_height) / cell_width) ** 0.5)))
    rows = -(-count // columns)
    head = SIZE + 6 if beside is not None else 0
    pitch_x, pitch_y = cell_width + 2 * MARGIN, height * scale + text_height + 2 * MARGIN
    canvas = Image.new("RGB", (columns * pitch_x, rows * pitch_y + head), "white")
    draw = ImageDraw.Draw(canvas)
    for column in range(columns if head else 0):
        for label, x in (("real", 0), ("drawn", width * scale + MARGIN // 2)):
            draw.text((column * pitch_x + MARGIN + x, 4), label, fill=(130, 130, 130), font=font)
    for i in range(count):
        x, y = i % columns * pitch_x + MARGIN, i // columns * pitch_y + MARGIN + head
        for j, tile in enumerate(tiles):
            image = Image.fromarray(tile[i]).resize((width * scale, height * scale), Image.Resampling.BICUBIC)
            canvas.paste(image, (x + j * (width * scale + MARGIN // 2), y))
        for number, line in enumerate(lines[i] if lines else []):
            draw.text((x, y + height * scale + 2 + number * (SIZE + 2)), line, fill="black", font=font)
    return canvas


def _wrap(caption: str, font, width: int) -> list[str]:
    lines = [""]
    for word in caption.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
