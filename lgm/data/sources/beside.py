"""Image files without a table: captions in files of the same name beside them, else names of folders, else none.

A caption lies in NAME.txt or NAME.caption (kohya's way), metadata in NAME.json. Without any, the folder that an image
lies in is its class and caption (of 10_cat, where all are so named, "cat", also of an image that alone has no caption
beside it); images in no folder but that of a split have no caption. Where all folders are so named their numbers say
how often an image comes in an epoch.
"""

import json
import math
import posixpath
import re
from typing import Any

from lgm.data.rows import REPEATS, build
from lgm.data.sources.places import Place
from lgm.data.sources.source import SPLITS, Bad, is_image, is_text, with_splits

REPEATED = re.compile(r"[0-9]+_.")  # a folder's name in kohya's way: how often its images come, then what they show
MOST_REPEATS = 999  # larger numbers are years and dates
TEXTS = (".txt", ".caption")
KNOWN = {*TEXTS, ".json", ".md", ".db", ".ini", ""}  # ends of names that lie among images, and are none


class Beside:
    """The source: image files by name."""

    def __init__(self, place: Place, names: list[str], bad: Bad):
        self.place = place
        images = [name for name in names if is_image(name)]
        for name in (ascii(name) for name in place.odd if name.endswith("/") or is_image(name)):
            bad.add(f"{place.label}/{name}", f"{place.label}/{name}: its name is no Unicode text; rename it")
        ending = lambda name: posixpath.splitext(name)[1].lower()
        self.others = [end for name in names if not is_image(name) and (end := ending(name)) not in KNOWN]
        stem = lambda name: posixpath.splitext(name)[0]
        stems = {stem(name) for name in images}
        classes = {class_of(name) for name in images}
        self.repeats = repeats(classes)
        numbered = all(map(REPEATED.match, classes))
        said = {name: name.partition("_")[2] if numbered else name for name in classes}
        texts = {}
        for name in names:
            if name.lower().endswith((*TEXTS, ".json")) and stem(name) in stems:
                texts.setdefault(stem(name), []).append(name)
        if texts:
            self.kind = "images with captions beside them"
            words = said if numbered else {}
            rows = (row for name in images
                    if (row := self._row(name, texts.get(stem(name), []), words.get(class_of(name)), bad)))
        elif any(class_of(name) for name in images):
            self.kind = "a folder for each class"
            rows = ({"file_name": name, "text": said[class_of(name)], "class": class_of(name)} for name in images
                    if self._classed(name, bad))
        else:
            self.kind = "images without captions"
            rows = ({"file_name": name, "text": ""} for name in images)
        if self.repeats:
            rows = ({**row, REPEATS: self.repeats[class_of(row["file_name"])]} for row in rows)
        self.rows = build(with_splits(rows, lambda row: row["file_name"]))
        bad.check(len(self.rows) + len(bad.found))
        self.files = self.rows.table["file_name"]

    def read(self, i: int) -> bytes:
        """The encoded image of record `i`."""
        return self.place.read(self.files[i].as_py())

    def stamp(self, i: int) -> str:
        """What changes where the image of record `i` does."""
        return self.place.stamp(self.files[i].as_py())

    def _classed(self, name: str, bad: Bad) -> bool:
        if not class_of(name):
            label = f"{self.place.label}/{name}"
            bad.add(label, f"{label} lies in no class's folder, as others do; move it to one")
        return bool(class_of(name))

    def _row(self, name: str, texts: list[str], words: str | None, bad: Bad) -> dict[str, Any] | None:
        """What is said of an image beside it, else by its folder's `words`; None of a bad record."""
        label = f"{self.place.label}/{name}"
        if not texts and words:
            return {"file_name": name, "text": words}
        if not texts:
            bad.add(label, f"{label} has no caption beside it, as others have; write a .txt of its name")
            return None
        try:
            row: dict[str, Any] = {"file_name": name}
            for text in texts:
                row |= told(text, self.place.read(text))
        except ValueError as error:
            bad.add(label, f"{error}" if str(error).startswith(self.place.label) else f"{label}: {error}")
            return None
        return {**row, "file_name": name}


def told(name: str, content: bytes) -> dict[str, Any]:
    """What a file beside an image says of it: a caption, the fields of a JSON object, a class's number or name (.cls).

    Raises ValueError, without the name's place, for what is no text or no object.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{posixpath.basename(name)} is no UTF-8 text; write it anew") from None
    if not name.lower().endswith(".json"):
        if "\0" in text:
            raise ValueError(f"{posixpath.basename(name)} holds NUL, which no caption has; write it anew")
        text = " ".join(text.split())
        if name.lower().endswith(".cls"):
            return {"cls": text}
        if not text:
            raise ValueError(f"{posixpath.basename(name)} is empty; write the caption into it")
        return {"text": text}
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{posixpath.basename(name)} is not JSON; write one object") from None
    if not isinstance(row, dict) or not all(map(is_text, [*row, *row.values()])):
        raise ValueError(f"{posixpath.basename(name)} is no JSON object of Unicode text without NUL; write one")
    if "text" not in row and isinstance(row.get("caption"), str):
        row = {**row, "text": row["caption"]}
    return row


def class_of(name: str) -> str:
    """The folder that an image lies in, "" for the root and for a split's."""
    folder = posixpath.basename(posixpath.dirname(name))
    return "" if folder.lower() in SPLITS else folder


def repeats(classes: set[str]) -> dict[str, int]:
    """How often an epoch serves the images of each folder, in the smallest whole numbers of the folders' ratios; empty
    where that is alike for all or their names say nothing of it."""
    if not all(map(REPEATED.match, classes)):
        return {}
    said = {name: int(name.partition("_")[0]) for name in classes}
    least = math.gcd(*said.values())
    if not 0 < min(said.values()) < max(said.values()) <= MOST_REPEATS:
        return {}
    return {name: number // least for name, number in said.items()}

