"""Parquet shards with a column of image bytes, as Hugging Face's data sets lie on disk."""

import functools
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lgm.data.rows import NO_UTF8, build, dicts_of
from lgm.data.sources.index import OPEN, check_rows, mark, opened, with_split
from lgm.data.sources.source import Bad, is_text, is_unicode
from lgm.parsing import ConfigError

GROUPS = 16  # row groups held decoded


class Parquet:
    """Shards with a column of images, bytes or {"bytes": ..., "path": ...} as Hugging Face's datasets write them.

    A record is read with its row group, and some of those are kept: groups of more than a hundred images make random
    access slow.
    """

    kind = "Parquet shards"

    def __init__(self, shards: Sequence[Path], label: str, bad: Bad):
        self.shards, self.label = shards, label
        self.groups: list[tuple[int, int, int]] = []  # (shard, row group, its first record)
        self.column = None
        self.rows = build(self._rows(bad))
        check_rows(self.rows, label, bad)
        self.marks = list(map(mark, shards))
        self.at = [self.rows.table[name].to_numpy() for name in ("_shard", "_group", "_row")]
        self._file = functools.lru_cache(OPEN)(lambda shard: _parquet(shards[shard]))
        self._group = functools.lru_cache(GROUPS)(self._images)
        self.lock = threading.Lock()

    def read(self, i: int) -> bytes:
        """The encoded image of record `i`."""
        shard, group, row = (int(column[i]) for column in self.at)
        try:
            with self.lock:
                value = self._group(shard, group)[row].as_py()
        except (pa.ArrowException, OSError, MemoryError) as error:
            line = str(error).splitlines()[0]
            raise ValueError(f"{self.shards[shard]} cannot be read ({line}); write it anew") from None
        if not value:
            raise ValueError(f"{self.shards[shard]} row {row} of group {group} has no image")
        return value

    def stamp(self, i: int) -> str:
        """What changes where the shard of record `i` does, and its place there."""
        shard, *place = (int(column[i]) for column in self.at)
        return f"{self.marks[shard]} {place}"

    def _images(self, shard: int, group: int) -> pa.Array:
        column = self._file(shard).read_row_group(group, columns=[self.column[shard]]).column(0)
        column = column.combine_chunks()
        column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
        return column.field("bytes") if pa.types.is_struct(column.type) else column

    def _rows(self, bad: Bad) -> Iterator[dict[str, Any]]:
        self.column = {}
        for number, path in enumerate(self.shards):
            try:
                file = _parquet(path)
                if not file.metadata.num_rows:
                    continue
                schema = file.schema_arrow
                self.column[number] = name = _image_column(schema, path)
                labels = _label_names(schema)
                plain = [f.name for f in schema if f.name != name and (not _holds_bytes(f.type) or f.name == "text")]
                for group in range(file.num_row_groups):
                    count = file.metadata.row_group(group).num_rows
                    table = dicts_of(file.read_row_group(group, columns=plain)) if plain else [{}] * count
                    for row, values in enumerate(table):
                        values = _decoded(values)
                        if values is None or not is_text(values.get("text")):
                            label = f"{path} row {row} of group {group}"
                            wrong = NO_UTF8 if values is None else "its text holds NUL"
                            bad.add(label, f"{label}: {wrong}; correct it")
                            continue
                        for key, known in labels.items():
                            if isinstance(values.get(key), int) and 0 <= values[key] < len(known):
                                values[key] = known[values[key]]
                                values.setdefault("text", values[key])
                        values.setdefault("file_name", f"{path.name}/{group}/{row}")
                        values |= {"_shard": number, "_group": group, "_row": row}
                        if not is_unicode(values["file_name"]):
                            values["file_name"] = f"{path.name}/{group}/{row}"
                        yield with_split(values, path.name)
            except (pa.ArrowException, OSError, MemoryError) as error:
                line = str(error).splitlines()[0] if str(error) else type(error).__name__
                bad.add(str(path), f"{path} is no readable Parquet ({line}); write it anew")


def _decoded(values: dict[str, Any] | None) -> dict[str, Any] | None:
    """A row whose caption may be stored as bytes; None where it is no UTF-8."""
    if values is None or not isinstance(values.get("text"), bytes):
        return values
    try:
        return {**values, "text": values["text"].decode()}
    except UnicodeDecodeError:
        return None


def _parquet(path: Path) -> pq.ParquetFile:
    return pq.ParquetFile(opened(path))


def _image_column(schema: pa.Schema, path: Path) -> str:
    named = [f.name for f in schema if _holds_bytes(f.type)]
    for name in ("image", "img", "jpg", "png", "bytes", *named):
        if name in named:
            return name
    raise ConfigError(f"{path} has no column of image bytes; it has {', '.join(schema.names)}")


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _label_names(schema: pa.Schema) -> dict[str, list[str]]:
    """The names of the classes that Hugging Face's schema says of columns of numbers."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: list(map(str, feature["names"])) for name, feature in features.items()
                if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, ValueError):
        return {}
