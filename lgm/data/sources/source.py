"""What every kind of collection gives: how many records, what is known of each, and the bytes of any one's image."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from lgm.data.rows import Rows

MOST_BYTES = 1 << 28  # of one image file, or of one text beside it; larger ones are bad records
IMAGES = frozenset("png jpg jpeg webp gif bmp tif tiff jp2 avif ppm pgm".split())
SPLITS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
          "dev": "validation", "test": "test", "testing": "test", "heldout": "heldout"}  # words of paths


class Source(Protocol):
    """A collection. `rows` say what is known of each record, by columns: "file_name" names it, "text" is its caption
    where it has one. Every error is a ValueError of one line."""

    kind: str
    rows: Rows

    def read(self, i: int) -> bytes:
        """The encoded image of record `i`; safe to call from several threads."""

    def stamp(self, i: int) -> str:
        """What changes where the image of record `i` may have, found without reading it; "" if nothing is known."""


@dataclasses.dataclass
class Bad:
    """Records that are left out, in order: (where, why). More than `share` of all are an error."""

    share: float = 0.0
    found: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    def add(self, place: str, reason: str) -> None:
        """Note one."""
        self.found.append((place, reason))

    def check(self, count: int) -> None:
        """Raise ValueError, one line, where those found are more than the share of `count` records."""
        if len(self.found) > self.share * count:
            others = len(self.found) - 1
            more = f" (and {others} more of {count} records are bad)" if others else ""
            limit = f"; that is more than config.data.bad_share={self.share:g}" if self.share else ""
            raise ValueError(f"{self.found[0][1]}{more}{limit}")


def is_image(name: str) -> bool:
    """Whether a file's name ends as an image's does."""
    return "." in name and name.rpartition(".")[2].lower() in IMAGES


def split_of(name: str) -> str | None:
    """The split that a path's first folder, or its file's name up to the first "-", "_" or ".", says."""
    parts = name.lower().split("/")
    words = [*parts[:-1], parts[-1].replace("_", "-").replace(".", "-").split("-")[0]]
    return next((SPLITS[word] for word in words if word in SPLITS), None)


def with_splits(rows: Iterable[dict[str, Any]], name) -> Iterator[dict[str, Any]]:
    """Rows with the "split" that `name(row)` says, where they do not say one."""
    for row in rows:
        if "split" not in row and (split := split_of(name(row))) is not None:
            row = {**row, "split": split}
        yield row


def is_unicode(value: Any) -> bool:
    """Whether a value is no text or one that can be written as UTF-8: JSON and arguments of a command line can hold
    halves of surrogate pairs, which tokenizers refuse without saying where."""
    if not isinstance(value, str) or value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_text(value: Any) -> bool:
    """Whether a value, or each of a list, is Unicode without NUL or no text at all."""
    if isinstance(value, list):
        return all(map(is_text, value))
    return is_unicode(value) and not (isinstance(value, str) and "\0" in value)
