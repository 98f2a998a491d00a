"""Captioned images from a folder or a zip: `metadata.jsonl` beside image files, read at random."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from lgm.data.decoding import decode, stored_size
from lgm.data.pipeline import cores
from lgm.data.storage import METADATA, Folder, Storage, TensorFlowDataset, Zip
from lgm.files import place
from lgm.parsing import near_miss

SHIPPED = {"emoji64": "emoji64/emoji64.zip"}
SHOWN = 30  # values that an error lists before it only counts them


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSet:
    """Random access to images and what is known of them. `rows` are the metadata, each with "file_name" and "text";
    `threads` read many images."""

    source: str
    storage: Storage
    rows: tuple[dict[str, Any], ...]
    resolution: int
    threads: int

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def captions(self) -> list[str]:
        """The caption of every image."""
        return [row["text"] for row in self.rows]

    @property
    def fingerprint(self) -> str:
        """A short hash of which images these are, their captions and their resolution; the pixels are not read."""
        names = [(row["file_name"], row["text"]) for row in self.rows]
        return hashlib.sha256(json.dumps([names, self.resolution]).encode()).hexdigest()[:16]

    def image(self, index: int, size: tuple[int, int] | None = None) -> np.ndarray:
        """uint8 [H, W, 3] of `size` = (H, W), by default resolution x resolution.

        Transparency is laid on white; the image is scaled to cover the size and cut in the middle. Raises ValueError,
        one line with the file's name, for a missing, truncated or unreadable image.
        """
        name = self.rows[index]["file_name"]
        return decode(self.storage.read(name), size or (self.resolution, self.resolution), f"{self.source}/{name}")

    def images(self) -> np.ndarray:
        """All images: uint8 [N, resolution, resolution, 3]."""
        with ThreadPoolExecutor(self.threads) as pool:
            return np.stack(list(pool.map(self.image, range(len(self)))))

    def sizes(self) -> np.ndarray:
        """Stored (height, width) of every image: int32 [N, 2], from "height" and "width" in the metadata where all
        have them, else from the files' headers."""
        if all("height" in row and "width" in row for row in self.rows):
            return np.array([(row["height"], row["width"]) for row in self.rows], np.int32)
        size = lambda row: stored_size(self.storage.read(row["file_name"]), f"{self.source}/{row['file_name']}")
        with ThreadPoolExecutor(self.threads) as pool:
            return np.array(list(pool.map(size, self.rows)), np.int32)

    def take(self, indices: Iterable[int]) -> ImageSet:
        """The set of these rows."""
        return dataclasses.replace(self, rows=tuple(self.rows[int(i)] for i in indices))


def open_images(source: str, where: Mapping[str, Any] | None = None, resolution: int = 64,
                caption: str = "text", threads: int | None = None) -> ImageSet:
    """The images of `source` whose metadata match `where`, read by so many `threads`, by default one a core.

    `source` is "emoji64", a folder or a zip with a metadata.jsonl (one JSON object a line with "file_name", "text" and
    any other fields), or "tfds:NAME[:SPLIT]" for a prepared TensorFlow Datasets name. `where` maps a field to a value,
    to a list of values, or to a prefix ending in "-" or "*": {"subcategory": "face-"}; a field that holds a list
    matches by any of its items. `caption` is the field that is each image's caption; where that is another, rows need
    no "text". Raises ValueError in one line for a source that cannot be read, metadata without captions, a named image
    that is not there, or a filter that leaves nothing.
    """
    if resolution < 1:
        raise ValueError(f"config.data.resolution={resolution} must be at least 1")
    if source.startswith("tfds:"):
        storage = TensorFlowDataset(source.removeprefix("tfds:"))
        rows = _checked(enumerate(storage.rows()), storage, source, "record", caption)
    else:
        storage = _open(source)
        rows = _checked(_json_lines(storage.read(METADATA), source), storage, f"{source}/{METADATA}", "line", caption)
    rows = _select(rows, where or {}, source)
    if caption != "text":
        rows = [{**row, "text": _caption(row, caption, source)} for row in rows]
    return ImageSet(source, storage, tuple(rows), resolution, threads or cores())


def _open(source: str) -> Storage:
    if source in SHIPPED:
        path = Path(str(resources.files("lgm.data") / SHIPPED[source]))
    else:
        path = place(source, "config.data.source")
    if path.is_dir():
        return Folder(path)
    if path.is_file():
        return Zip(path)
    raise ValueError(
        f"config.data.source={source!r} is not there; give {', '.join(SHIPPED)}, a folder, a zip, or tfds:NAME"
    )


def _json_lines(content: bytes, source: str) -> Iterable[tuple[int, Any]]:
    """(line number, object) of every line that is not blank."""
    # bytes are split, not text: str.splitlines would also cut at line separators inside a caption
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError):
                raise ValueError(f"{source}/{METADATA} line {number} is not JSON; write one object a line") from None


def _checked(rows: Iterable[tuple[int, Any]], storage: Storage, place: str, unit: str,
             caption: str) -> list[dict[str, Any]]:
    """The rows, each with the name of a file that is there and a caption, where that is the field "text": another may
    be absent from rows that a filter leaves out."""
    kept, numbers = [], {}
    for number, row in rows:
        for field in ("file_name", "text") if caption == "text" else ("file_name",):
            value = row.get(field) if isinstance(row, dict) else None
            if not isinstance(value, str) or not value.strip():
                problem = "an empty" if isinstance(value, str) else "no"
                raise ValueError(f"{place} {unit} {number} has {problem} {field}; every image needs one, a string")
        for field in ("file_name", caption):
            if not is_unicode(row.get(field)):
                raise ValueError(f"{place} {unit} {number}: its {field} is no Unicode text (half of a surrogate pair "
                                 f"stands alone in {ascii(row[field])}); correct it")
        numbers.setdefault(row["file_name"], number)
        kept.append(row)
    if not kept:
        raise ValueError(f"{place} names no image")
    if absent := storage.missing(numbers):
        first = min(absent, key=numbers.get)
        more = f" (and {len(absent) - 1} more are missing)" if len(absent) > 1 else ""
        raise ValueError(
            f"{place} {unit} {numbers[first]} names {first}, which is not there{more}; add the image or remove the line"
        )
    return kept


def _select(rows: list[dict[str, Any]], where: Mapping[str, Any], source: str) -> list[dict[str, Any]]:
    """The rows that match every filter."""
    fields = {field: None for row in rows for field in row}
    asked = ""
    for field, wanted in where.items():
        if field not in fields:
            raise ValueError(f"config.data.where.{field}: {source} has no such field{near_miss(field, fields)}")
        matching = [row for row in rows if _matches(row.get(field), wanted)]
        if not matching:
            values = sorted({str(v) for row in rows for v in _items(row.get(field))})
            shown = ", ".join(values[:SHOWN]) + (f", ... ({len(values)} in all)" if len(values) > SHOWN else "")
            problem = f"config.data.where.{field}={wanted!r} leaves no image of {source}{asked}"
            raise ValueError(f"{problem}; there are {shown}")
        rows, asked = matching, f"{asked or ' with'} {field}={wanted!r}"
    return rows


def _caption(row: dict[str, Any], field: str, source: str) -> str:
    if not isinstance(row.get(field), (str, int)) or not str(row[field]).strip():
        known = near_miss(field, row) if field not in row else f", which is {row[field]!r} there"
        raise ValueError(f"config.data.caption={field!r}: {source}'s {row['file_name']} has no such text{known}")
    return str(row[field])


def is_unicode(value: Any) -> bool:
    """Whether a value is no text or one that can be written as UTF-8: JSON and arguments of a command line can hold
    halves of surrogate pairs, which tokenizers refuse without saying where."""
    return not isinstance(value, str) or not any("\ud800" <= character <= "\udfff" for character in value)


def _items(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]


def _matches(value: Any, wanted: Any) -> bool:
    if isinstance(value, list):
        return any(_matches(item, wanted) for item in value)
    if isinstance(wanted, (list, tuple)):
        return any(_matches(value, option) for option in wanted)
    if isinstance(wanted, str) and wanted.endswith(("-", "*")):
        return isinstance(value, str) and value.startswith(wanted.removesuffix("*"))
    return value == wanted
