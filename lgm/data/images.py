"""Captioned images from a folder or a zip: `metadata.jsonl` beside image files, read at random."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

SHIPPED = {"emoji64": "emoji64/emoji64.zip"}


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSet:
    """Random access to images and what is known of them. `rows` are the metadata, each with "file_name" and "text"."""

    source: Path
    rows: tuple[dict[str, Any], ...]
    resolution: int

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def captions(self) -> list[str]:
        """The caption of every image."""
        return [row["text"] for row in self.rows]

    def image(self, index: int) -> np.ndarray:
        """uint8 [resolution, resolution, 3], transparency laid on white, scaled by its short side and cut in the middle.

        Raises ValueError, one line with the file's name, for a missing, truncated or unreadable image.
        """
        name = self.rows[index]["file_name"]
        return decode(_read(self.source, name), self.resolution, f"{self.source}/{name}")

    def images(self) -> np.ndarray:
        """All images, decoded by a few threads: uint8 [N, resolution, resolution, 3]."""
        with ThreadPoolExecutor(4) as pool:
            return np.stack(list(pool.map(self.image, range(len(self)))))

    def take(self, indices: Sequence[int]) -> ImageSet:
        """The set of these rows."""
        return dataclasses.replace(self, rows=tuple(self.rows[int(i)] for i in indices))


def open_images(source: str, where: Mapping[str, Any] | None = None, resolution: int = 64) -> ImageSet:
    """The images of "emoji64", a folder or a zip whose metadata match `where`.

    `where` maps a field to a value, to a list of values, or to a prefix ending in "-" or "*": {"subcategory": "face-"}.
    Raises ValueError in one line for a source that cannot be read, metadata without captions, or a filter that leaves
    nothing.
    """
    path = _locate(source)
    rows = _metadata(path)
    for field, wanted in (where or {}).items():
        if field not in rows[0]:
            raise ValueError(f"data.where.{field}: {source} has no such field; there are {', '.join(rows[0])}")
        matching = [row for row in rows if _matches(row.get(field), wanted)]
        if not matching:
            known = sorted({str(row.get(field)) for row in rows})
            shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
            raise ValueError(f"data.where.{field}={wanted!r} leaves no image of {source}; there are {shown}")
        rows = matching
    return ImageSet(path, tuple(rows), resolution)


def decode(content: bytes, resolution: int, name: str) -> np.ndarray:
    """An image file's bytes as uint8 [resolution, resolution, 3] on white."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("RGB")
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise ValueError(f"{name} cannot be decoded ({str(error).splitlines()[0]}); replace or remove it") from None
    if image.size != (resolution, resolution):
        scale = resolution / min(image.size)
        image = image.resize([max(resolution, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
        left, top = (image.width - resolution) // 2, (image.height - resolution) // 2
        image = image.crop((left, top, left + resolution, top + resolution))
    return np.asarray(image)


def _locate(source: str) -> Path:
    if source in SHIPPED:
        return Path(str(resources.files("lgm.data") / SHIPPED[source]))
    path = Path(source)
    if path.is_dir() or path.is_file():
        return path
    raise ValueError(f"data.source={source!r} is not there; give {', '.join(SHIPPED)}, a folder or a zip")


def _metadata(path: Path) -> list[dict[str, Any]]:
    lines = _read(path, "metadata.jsonl").decode("utf-8", "replace").splitlines()
    names = None if path.is_dir() else set(_archive(path).namelist())
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{path}/metadata.jsonl line {number}"
        try:
            row = json.loads(line)
        except ValueError:
            raise ValueError(f"{place} is not JSON; write one object a line") from None
        if not isinstance(row, dict) or not row.get("file_name") or not str(row.get("text") or "").strip():
            raise ValueError(f"{place} has no file_name or no text; every image needs both")
        if not (path / row["file_name"]).is_file() if names is None else row["file_name"] not in names:
            raise ValueError(f"{place} names {row['file_name']}, which is not there; add the image or remove the line")
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}/metadata.jsonl names no image")
    return rows


def _matches(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, (list, tuple)):
        return any(_matches(value, w) for w in wanted)
    if isinstance(wanted, str) and wanted.endswith(("-", "*")):
        return str(value).startswith(wanted.rstrip("*"))
    return value == wanted


_ARCHIVES: dict[Path, zipfile.ZipFile] = {}  # zipfile reads under a lock of its own, so threads may share one


def _archive(path: Path) -> zipfile.ZipFile:
    if path not in _ARCHIVES:
        try:
            _ARCHIVES[path] = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise ValueError(f"{path} is not a readable zip ({error}); give a whole zip or a folder") from None
    return _ARCHIVES[path]


def _read(path: Path, name: str) -> bytes:
    try:
        return (path / name).read_bytes() if path.is_dir() else _archive(path).read(name)
    except (KeyError, FileNotFoundError):
        raise ValueError(f"{path} has no {name}; an image set is {name} beside its images") from None
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise ValueError(f"{path}/{name} cannot be read ({error}); the file is damaged") from None
