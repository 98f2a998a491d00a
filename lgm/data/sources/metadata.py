"""Files with a table of what they are: metadata.jsonl, .csv or .parquet, as Hugging Face's imagefolder has them.

There may be one at the root or one in each folder, of that folder's files; "train", "test" and such words in the
folders' names become the field "split".
"""

import codecs
import csv
import functools
import io
import json
import posixpath
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from lgm.data.rows import NO_UTF8, build, dicts_of
from lgm.data.sources.places import Place
from lgm.data.sources.source import Bad, is_unicode, with_splits

TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
SEPARATORS = (",", ";", "\t")  # of a CSV: that which its heading has most of
SCAN = json.JSONDecoder().scan_once  # type: ignore[attr-defined]  # which has no name in its documentation


class Metadata:
    """The source: rows in the tables' order, images in the files that they name."""

    kind = "folder with metadata"

    def __init__(self, place: Place, names: list[str], caption: str | tuple[str, ...], bad: Bad):
        self.place = place
        tables = tables_of(names)
        there = set(names)
        found = (row for table in tables for row in self._table(table, there, caption, bad))
        self.rows = build(with_splits(found, lambda row: row["file_name"]))
        self.files = self.rows.table["file_name"] if len(self.rows) else []
        first = f"{place.label}/{tables[0]}"
        bad.check(len(self.rows) + len(bad.found))
        if not len(self.rows):
            raise ValueError(f"{first} names no image")

    def read(self, i: int) -> bytes:
        """The encoded image of record `i`."""
        return self.place.read(self.files[i].as_py())

    def stamp(self, i: int) -> str:
        """What changes where the image of record `i` does."""
        return self.place.stamp(self.files[i].as_py())

    def _table(self, table: str, there: set[str], caption: str | tuple[str, ...], bad: Bad) -> Iterator[dict[str, Any]]:
        folder, label = posixpath.dirname(table), f"{self.place.label}/{table}"
        alike = functools.cache(lambda: {_plain(name): name for name in there})
        unit = "row" if table.endswith(".parquet") else "line"
        for number, row in checked(read_table(self.place.read(table), label, bad), label, unit, caption, bad):
            name = asked = row["file_name"]
            if folder or name not in there or "./" in name or "//" in name:
                name = posixpath.normpath(posixpath.join(folder, name))
                row = {**row, "file_name": name}
            if name not in there and (meant := alike().get(_plain(name))):
                name, row = meant, {**row, "file_name": meant}
            if name in there:
                yield row
            else:
                bad.add(f"{label} {unit} {number}", f"{label} {unit} {number} names {asked}, which is not there; "
                                                    "add the image or remove the line")


def _plain(name: str) -> str:
    """A name as other systems write it: with "/" for Windows' backslashes, its accents as one letter each, which macOS
    keeps apart."""
    return posixpath.normpath(unicodedata.normalize("NFC", name.replace("\\", "/")))


def tables_of(names: list[str]) -> list[str]:
    """The tables among files: the one at the root alone where there is one, else those of folders."""
    found = [name for name in names if posixpath.basename(name) in TABLES]
    at_root = [name for name in found if "/" not in name]
    return at_root[:1] or found


def read_table(content: bytes, label: str, bad: Bad) -> Iterator[tuple[int, Any]]:
    """(number, row) of a table's rows, one after another; the number is that of its line where it is text."""
    if label.endswith(".parquet"):
        yield from _parquet(content, label, bad)
    elif label.endswith(".csv"):
        yield from _csv(content, label, bad)
    else:
        yield from _json_lines(content, label, bad)


def _json_lines(content: bytes, label: str, bad: Bad) -> Iterator[tuple[int, Any]]:
    # bytes are split, not text: str.splitlines would also cut at line separators inside a caption
    for number, line in enumerate(io.BytesIO(content.removeprefix(b"\xef\xbb\xbf")), 1):
        if line := line.strip():
            try:
                yield number, _parsed(line)
            except (ValueError, RecursionError):
                bad.add(f"{label} line {number}", f"{label} line {number} is not JSON; write one object a line")


def _parsed(line: bytes) -> Any:
    """What one line of JSON says: of what the scanner alone does not take, in a third of the time, all of `json`."""
    try:
        text = line.decode()
        row, end = SCAN(text, 0)
    except (StopIteration, UnicodeDecodeError):
        return json.loads(line)
    return row if end == len(text) else json.loads(line)


def _csv(content: bytes, label: str, bad: Bad) -> Iterator[tuple[int, Any]]:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{label} is UTF-16; save it as CSV in UTF-8")
    text = io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", "surrogateescape", newline="")
    heading = next(filter(bytes.strip, io.BytesIO(content)), b"").decode("utf-8-sig", "replace")
    # a quote that is not closed would take the lines behind it for one value's; others may stand inside of values
    unclosed = content.count(b'"') % 2 == 1
    lines = csv.reader(text, delimiter=max(SEPARATORS, key=heading.count), strict=unclosed)
    header = None
    while True:
        try:
            values = next(lines)
        except StopIteration:
            return
        except csv.Error as error:
            bad.add(f"{label} line {lines.line_num}", f"{label} line {lines.line_num} is no CSV ({error}); correct it")
            continue
        if header is None:
            header = [name.strip() for name in values] or None
        elif values and len(values) != len(header):
            reason = f"{label} line {lines.line_num} has {len(values)} values for {len(header)} columns; correct it"
            bad.add(f"{label} line {lines.line_num}", reason)
        elif values:
            yield lines.line_num, {name: _number(name, value) if value[0] in "-0123456789" else value
                                   for name, value in zip(header, values, strict=True) if name and value}


def _number(name: str, value: str) -> Any:
    """A field of a CSV as a number where it is one as it would be written."""
    if name in ("file_name", "image", "text") or len(value) > 18 or not value.lstrip("-").isdigit():
        return value
    return int(value) if str(int(value)) == value else value


def _parquet(content: bytes, label: str, bad: Bad) -> Iterator[tuple[int, Any]]:
    import pyarrow.parquet as pq

    number = 0
    try:
        for batch in pq.ParquetFile(io.BytesIO(content)).iter_batches(1 << 14):
            for row in dicts_of(batch):
                number += 1
                if row is not None:
                    yield number, row
                else:
                    bad.add(f"{label} row {number}", f"{label} row {number}: {NO_UTF8}; correct it")
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{label} is no readable Parquet ({str(error).splitlines()[0]}); write it anew") from None


def checked(rows: Iterable[tuple[int, Any]], label: str, unit: str, caption: str | tuple[str, ...],
            bad: Bad) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, row) of the rows that name a file and have a caption, where that is the field "text": another may be
    absent from rows that a filter leaves out."""
    for number, row in rows:
        if isinstance(row, dict) and "file_name" not in row and "image" in row:
            row = {**row, "file_name": row["image"]}
        reason = _problem(row, caption)
        if reason is None:
            yield number, row
        else:
            bad.add(f"{label} {unit} {number}", f"{label} {unit} {number}{reason}")


def _problem(row: Any, caption: str | tuple[str, ...]) -> str | None:
    fields = (caption,) if isinstance(caption, str) else caption
    name, text = (row.get("file_name"), row.get(fields[0])) if type(row) is dict and len(fields) == 1 else (None, None)
    if type(name) is type(text) is str and name.isascii() and text.isascii() and "\0" not in name + text and (
            name.strip() and (text.strip() or fields != ("text",))):
        return None  # nearly all are so: what follows takes several times as long
    for field in ("file_name", "text") if fields == ("text",) else ("file_name",):
        value = row.get(field) if isinstance(row, dict) else None
        if field == "text" and isinstance(value, list) and value:
            value = min(value, key=_is_said)  # of several captions each must be one
        if not isinstance(value, str) or not value.strip():
            problem = "an empty" if isinstance(value, str) else "no"
            known = f" (it has {', '.join(map(str, row))[:100]})" if isinstance(row, dict) and field not in row else ""
            return f" has {problem} {field}{known}; every image needs one, a string"
    texts = [(field, text) for field in ("file_name", *fields)
             for text in (row[field] if isinstance(row.get(field), list) else [row.get(field)])]
    for field, text in texts:
        if not is_unicode(text):
            return (f": its {field} is no Unicode text (half of a surrogate pair stands alone in {ascii(text)}, "
                    "or it is not UTF-8); correct it")
        if isinstance(text, str) and "\0" in text:
            return f": its {field} holds NUL, which no text does; correct it"
    return None


def _is_said(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())

