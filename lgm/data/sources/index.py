"""What the kinds of shards share: an index that is made once and kept, shards opened wherever they lie."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lgm import files
from lgm.data.rows import Rows, build
from lgm.data.sources.source import Bad, with_splits

OPEN = 64  # shards held open
FORM = 1  # of a kept index


def indexed(kind: str, shards: Sequence[Path], bad: Bad, rows: Callable[[], Iterable[dict[str, Any]]]) -> Rows:
    """The rows of shards, kept in the user's cache where none of them is bad."""
    if any(map(files.is_remote, shards)):
        return build(rows())
    marks = list(map(mark, shards))
    name = hashlib.sha256(json.dumps([FORM, kind, marks]).encode()).hexdigest()[:24]
    path = files.cache("indexes") / f"{name}.parquet"
    try:
        return Rows(pq.read_table(path).combine_chunks())
    except (OSError, pa.ArrowException):
        pass
    found = build(rows())
    if not bad.found and len(found):
        sink = pa.BufferOutputStream()
        pq.write_table(found.table, sink)
        try:
            files.write_atomically(path, sink.getvalue().to_pybytes())
        except OSError:  # a home that cannot be written: the index is made again the next time
            pass
    return found


def mark(shard: Path) -> list:
    """What changes where a shard does: its path and, unless it lies in a store, its size and time."""
    facts = None if files.is_remote(shard) else os.stat(shard)
    return [str(shard), *((facts.st_size, facts.st_mtime_ns) if facts else ())]


def check_rows(rows: Rows, label: str, bad: Bad) -> None:
    """Raise ValueError, one line, where there are none or too many bad ones."""
    bad.check(len(rows) + len(bad.found))
    if not len(rows):
        raise ValueError(f"{label} holds no images")


def with_split(row: dict[str, Any], name: str) -> dict[str, Any]:
    """A row with the split that a shard's name says, where it says none itself."""
    return next(with_splits([row], lambda row: name))


def opened(path: Path):
    """A shard as a file that is read at any place."""
    return files.filesystem(path).open(str(path), "rb") if files.is_remote(path) else open(path, "rb")
