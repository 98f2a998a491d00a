"""What is known of many images, by columns: a million rows cost what their text does and some bytes a value.

A column holds values of one type; one of several types, of lists or of dates holds each as JSON. Rows become dicts when
they are asked for, one at a time.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

CHUNK = 1 << 14  # rows that are dicts at one time while columns are built
PLAIN = {str: pa.large_string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
JSON = {b"json": b"1"}
JOINED_FROM, RECORD = "_from", "_record"  # columns of joined tables: number of the set, of the record in its source
REPEATS = "_repeats"  # how often an epoch serves a record
NO_UTF8 = "it holds text that is not UTF-8"


class Rows(Sequence):
    """Rows of a table, those of `numbers` or all. Columns whose names begin with "_" are the source's own and no part
    of a row. `captioned` names the columns that hold each row's captions, "" for none; a row's "text" is the first."""

    def __init__(self, table: pa.Table, numbers: np.ndarray | None = None, captioned: str | tuple[str, ...] = "text"):
        self.table = table
        self.captioned = tuple(field for field in ([captioned] if isinstance(captioned, str) else captioned) if field)
        self.numbers = np.arange(len(table)) if numbers is None else np.asarray(numbers, np.int64)
        self.whole = numbers is None

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i):
        """The i-th row as a dict, or the rows of a slice or of an array of indices."""
        if isinstance(i, (slice, np.ndarray)):
            return Rows(self.table, self.numbers[i], self.captioned)
        return next(self._dicts(self.numbers[[i]]))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self), 1024):
            yield from self._dicts(self.numbers[start : start + 1024])

    def __eq__(self, other) -> bool:
        return len(self) == len(other) and all(ours == theirs for ours, theirs in zip(self, other, strict=True))

    @property
    def fields(self) -> list[str]:
        """The names of the columns."""
        return [name for name in self.table.column_names if not name.startswith("_")]

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the whole table takes."""
        return self.table.nbytes + self.numbers.nbytes

    def captions(self, places: np.ndarray | None = None) -> list[str]:
        """The first caption of rows, by default of all; "" where there is none."""
        if len(self.captioned) == 1 and (field := self.captioned[0]) in self.fields and not self.is_json(field):
            return ["" if value is None else str(value) for value in self.values(field, places)]
        return [texts[0] if texts else "" for texts in self.choices(places)]

    def choices(self, places: np.ndarray | None = None) -> list[list[str]]:
        """All captions of rows, in the columns' order; of a column that holds lists each item is one."""
        count = len(self) if places is None else len(places)
        columns = [self.values(field, places) for field in self.captioned if field in self.table.column_names]
        return [[text for value in values for text in texts_of(value)] for values in zip(*columns, strict=True)
                ] if columns else [[]] * count  # fmt: skip

    def told(self) -> np.ndarray:
        """Whether each row has a caption: bool [N], by columns, or some rows at a time where they are no plain text."""
        columns = [field for field in self.captioned if field in self.table.column_names]
        if all(self.table[field].type == PLAIN[str] and not self.is_json(field) for field in columns):
            found = np.zeros(len(self), bool)
            for field in columns:
                texts = self.table[field] if self.whole else self.table[field].take(pa.array(self.numbers))
                said = pc.not_equal(pc.utf8_trim_whitespace(texts), "")
                found |= said.fill_null(False).to_numpy()
            return found
        places = (np.arange(start, min(start + CHUNK, len(self))) for start in range(0, len(self), CHUNK))
        return np.array([bool(texts) for some in places for texts in self.choices(some)], bool)

    def values(self, field: str, places: np.ndarray | None = None) -> list[Any]:
        """A column's values, None where a row has none."""
        numbers = self.numbers if places is None else self.numbers[places]
        column = self.table[field] if self.whole and places is None else self.table[field].take(pa.array(numbers))
        values = column.to_pylist()
        if self.is_json(field):
            values = [None if value is None else json.loads(value) for value in values]
        return values

    def where(self, field: str, matches: Callable[[Any], bool]) -> tuple[Rows, list[Any]]:
        """(the rows whose value of `field` matches, the different values there are)."""
        column = self.table[field].take(pa.array(self.numbers)).combine_chunks()
        encoded = column.dictionary_encode() if not pa.types.is_floating(column.type) else None
        if isinstance(encoded, pa.ChunkedArray):
            encoded = encoded.combine_chunks()
        if encoded is None:
            values = self.values(field)
            good = np.array([matches(value) for value in values], bool)
            return self[good], [value for value in values if value is not None]
        values = encoded.dictionary.to_pylist()
        values = [json.loads(value) for value in values] if self.is_json(field) else values
        kept = np.array([*(matches(value) for value in values), matches(None)], bool)  # the last of rows without one
        return self[kept[encoded.indices.fill_null(len(values)).to_numpy(zero_copy_only=False)]], values

    def is_json(self, field: str) -> bool:
        """Whether a column holds its values as JSON."""
        return (self.table.schema.field(field).metadata or {}).get(b"json") == b"1"

    def _dicts(self, numbers: np.ndarray) -> Iterator[dict[str, Any]]:
        picked = Rows(self.table.take(pa.array(numbers)), None, self.captioned)
        columns = {name: picked.values(name) for name in self.fields}
        if self.captioned not in (("text",), ()):
            columns["text"] = picked.captions()
        for i in range(len(numbers)):
            yield {name: values[i] for name, values in columns.items() if values[i] is not None}


def texts_of(value: Any) -> list[str]:
    """The texts that are not blank in a value, a text, a whole number or a list of them."""
    values = value if isinstance(value, list) else [value]
    return [text for one in values if isinstance(one, (str, int)) and (text := str(one)).strip()]


def build(rows: Iterable[Mapping[str, Any]]) -> Rows:
    """Columns of rows that are read one after another and kept nowhere else."""
    parts: dict[str, list[pa.Array]] = {}
    count, pending = 0, []

    def flush() -> None:
        nonlocal count, pending
        for name in {**parts, **dict.fromkeys(itertools.chain.from_iterable(pending))}:
            before = parts.setdefault(name, [pa.nulls(count)] if count else [])
            before.append(_column([row.get(name) for row in pending]))
        count, pending = count + len(pending), []

    for row in rows:
        pending.append(row)
        if len(pending) == CHUNK:
            flush()
    flush()
    return _table(parts)


def joined(sets: Mapping[str, Rows]) -> Rows:
    """The rows of several tables, one after the other, with the columns of all: "text" is what each calls its captions,
    "file_name" begins with the table's name."""
    columns: dict[str, list[pa.Array]] = {}
    count = 0
    for number, (name, rows) in enumerate(sets.items()):
        own: dict[str, pa.Array] = {}
        for field in rows.fields:
            column = rows.table[field].take(pa.array(rows.numbers)).combine_chunks()
            column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
            own[field] = column.cast(pa.large_binary()) if rows.is_json(field) else column
        texts = [texts[0] if len(texts) == 1 else texts or None for texts in rows.choices()]
        own |= {"file_name": _column([f"{name}/{file}" for file in rows.values("file_name")]), "text": _column(texts),
                JOINED_FROM: pa.array(np.full(len(rows), number)), RECORD: pa.array(rows.numbers)}
        for field in {**columns, **own}:
            before = columns.setdefault(field, [pa.nulls(count)] if count else [])
            before.append(own.get(field, pa.nulls(len(rows))))
        count += len(rows)
    return _table(columns)


def _table(parts: Mapping[str, Sequence[pa.Array]]) -> Rows:
    """Columns of chunks, of one type where they all are."""
    fields, arrays = [], []
    for name, chunks in parts.items():
        types = {chunk.type for chunk in chunks if not pa.types.is_null(chunk.type)}
        as_json = len(types) > 1 or types == {pa.large_binary()}
        if as_json:
            chunks = [_json(chunk) for chunk in chunks]
        kind = pa.large_string() if as_json or not types else types.pop()
        joined = pa.chunked_array([chunk.cast(kind) for chunk in chunks], kind).combine_chunks()
        arrays.append(joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined)
        fields.append(pa.field(name, kind, metadata=JSON if as_json else None))
    return Rows(pa.table(arrays, schema=pa.schema(fields)) if fields else pa.table({}))


def dicts_of(batch: pa.RecordBatch | pa.Table) -> Iterator[dict[str, Any] | None]:
    """A file's rows one by one, without what they lack; None in the place of one with a text that is not UTF-8."""
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:
        parts = [batch.slice(i, 1) for i in range(len(batch))] if len(batch) > 1 else []
        yield from (row for part in parts for row in dicts_of(part)) if parts else [None]
        return
    for row in rows:
        yield {name: value for name, value in row.items() if value is not None}


def _column(values: list[Any]) -> pa.Array:
    """Values of one plain type as they are; others as JSON in bytes, which `build` knows by that."""
    kinds = {*map(type, values)} - {type(None)}
    if not kinds:
        return pa.nulls(len(values))
    if len(kinds) == 1 and (kind := next(iter(kinds))) in PLAIN:
        try:
            return pa.array(values, PLAIN[kind])
        except (OverflowError, UnicodeEncodeError, pa.ArrowInvalid):
            pass  # a whole number of more than 64 bits, half of a surrogate pair
    return pa.array([None if value is None else json.dumps(value, default=str).encode() for value in values],
                    pa.large_binary())


def _json(chunk: pa.Array) -> pa.Array:
    if chunk.type == pa.large_binary():
        return chunk.cast(pa.large_string())
    return pa.array([None if value is None else json.dumps(value, default=str) for value in chunk.to_pylist()],
                    pa.large_string())
