"""Runs as people keep them, as rows of cells: CSV, JSON lines, and the folders of MLflow, W&B and TensorBoard.

A run of a tracker is one row: what it was given (parameters, config) and the last value of what it measured. Nested
names are joined by "/", and are called by their last part where that is one column's alone.
"""

import collections
import csv
import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lgm.files import local
from lgm.untrusted import parse_object, read_bytes, read_text, regular

MOST = 1 << 30  # bytes of a table
RUNS = 100_000  # of a tracker


class Cells(NamedTuple):
    """The first line, the rest with the number of each row in its source, what identifies the content, and notes."""

    header: list[str]
    rows: list[list[str]]
    lines: list[int]
    digest: str
    notes: tuple[str, ...] = ()


def read(path: str | Path) -> Cells:
    """The rows of a file or of a tracker's folder. Raises ValueError, one line, for what is neither."""
    path = local(path, "--data")
    if path.is_dir():
        return _of_records(path, _folder(path))
    content = read_bytes(path, MOST)
    digest = hashlib.sha256(content).hexdigest()
    if content.startswith(b"SQLite format 3\0"):
        return _of_records(path, _sqlite(path))
    if path.suffix.lower() in (".jsonl", ".ndjson", ".json"):
        return _of_records(path, _json(path, content))._replace(digest=digest)
    return _csv(path, content)._replace(digest=digest)


def _csv(path: Path, content: bytes) -> Cells:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8; save the table as CSV in UTF-8") from None
    first = next((line for line in text.splitlines() if line.strip()), "")
    separator = "," if "," in first else next((mark for mark in ";\t|" if mark in first), ",")
    reader = csv.reader(text.splitlines(), strict=True, delimiter=separator)
    lines, rows = [], []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                lines.append(reader.line_num)
                rows.append([cell.strip() for cell in cells])
    except csv.Error as error:
        raise ValueError(f"{path}: row {reader.line_num}: {error}") from None
    if not rows:
        return Cells([], [], [], "")
    header = rows[0]
    for line, cells in zip(lines[1:], rows[1:], strict=True):
        if len(cells) != len(header):
            raise ValueError(f"{path}: row {line} has {len(cells)} cells where the first line has {len(header)} "
                             "columns")
    if separator == ",":
        return Cells(header, rows[1:], lines[1:], "")
    decimal = lambda cell: other if _is_number(other := cell.replace(",", ".")) else cell
    return Cells(header, [list(map(decimal, cells)) for cells in rows[1:]], lines[1:], "",
                 (f"cells are separated by {separator!r}",))


def _of_records(path: Path, records: Iterator[tuple[int, dict[str, Any]]]) -> Cells:
    """One row a record; those that hold no number are left out and counted."""
    kept, lines, without = [], [], 0
    for line, record in records:
        cells = {name: cell for name, value in _flat(record) if (cell := _cell(value)) is not None}
        if not any(isinstance(value, (int, float)) or _is_number(value) for _, value in _flat(record)):
            without += 1
            continue
        kept.append(cells)
        lines.append(line)
        if len(kept) > RUNS:
            raise ValueError(f"{path} holds more than {RUNS:,} runs; give a table of those to fit")
    names = list(dict.fromkeys(name for cells in kept for name in cells))
    last = collections.Counter(name.rpartition("/")[2] for name in names)
    short = {name: tail if last[tail := name.rpartition("/")[2]] == 1 else name for name in names}
    text = json.dumps([kept, lines], sort_keys=True).encode()
    notes = (f"{without} runs without any number are left out",) if without else ()
    return Cells([short[name] for name in names], [[cells.get(name, "") for name in names] for cells in kept], lines,
                 hashlib.sha256(text).hexdigest(), notes)


def _flat(value: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, part in value.items():
        name = f"{path}/{key}" if path else str(key)
        if isinstance(part, dict):
            yield from _flat(part, name)
        else:
            yield name, part


def _cell(value: Any) -> str | None:
    """A value as a table has it; None for what is no cell, as a list."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    return " ".join(value.split()) if isinstance(value, str) else None


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _json(path: Path, content: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects, one a line, or those of one list."""
    if path.suffix.lower() == ".json":
        try:
            found = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON: {error}") from None
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise ValueError(f"{path} is not a list of objects, one a run")
        yield from enumerate(found, 1)
        return
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            try:
                yield number, parse_object(line, infinite=True)
            except ValueError as error:
                raise ValueError(f"{path}: line {number}: {error}") from None


def _folder(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The runs of whichever tracker wrote a folder."""
    for pattern, reader in TRACKERS.items():
        found = sorted(path.glob(pattern))[: RUNS + 1]
        if found:
            return _runs(reader, found)
    if next(path.glob("**/*.wandb"), None):
        raise ValueError(f"--data={path} holds offline runs of W&B, in its own log; `wandb sync` them, and give the "
                         "table of runs that it exports as CSV")
    raise ValueError(f"--data={path} is a folder without runs of MLflow (mlruns), W&B (run-*/files/wandb-summary.json) "
                     "or TensorBoard (events.out.tfevents.*); give such a folder, or a table")


def _runs(reader: Callable[[Path], dict[str, Any]], found: list[Path]) -> Iterator[tuple[int, dict[str, Any]]]:
    """What is below a run, as the folder in which TensorBoard's HParams lie, is part of it."""
    records: dict[Path, dict[str, Any]] = {}
    for place in sorted(dict.fromkeys(path.parent for path in found)):
        above = next((run for run in place.parents if run in records), None)
        record = reader(place)
        if above is None:
            records[place] = record
        else:
            records[above] |= {name: value for name, value in record.items() if name != "run"}
    yield from enumerate(records.values(), 1)


def _mlflow(run: Path) -> dict[str, Any]:
    """A run of MLflow's file store: a file a parameter, a file a metric with "time value step" lines."""
    values: dict[str, Any] = {"run": run.name}
    for place in sorted((run / "params").rglob("*")):
        if place.is_file():
            values[str(place.relative_to(run / "params"))] = read_text(place)
    for place in sorted((run / "metrics").rglob("*")):
        if place.is_file():
            lines = read_text(place).splitlines()
            parts = lines[-1].split() if lines else []
            if len(parts) < 2 or not _is_number(parts[1]):
                raise ValueError(f"{place} does not end in a line of time, value and step")
            values[str(place.relative_to(run / "metrics"))] = parts[1]
    return values


def _sqlite(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The runs of MLflow's database."""
    try:
        base = sqlite3.connect(f"file:{regular(path).absolute()}?mode=ro", uri=True)
        try:
            runs = {run: {"run": name or run} for run, name in base.execute(
                "select run_uuid, name from runs where lifecycle_stage = 'active' order by start_time, run_uuid")}
            for table in ("params", "latest_metrics"):
                for run, key, value in base.execute(f"select run_uuid, key, value from {table}"):
                    if run in runs:
                        runs[run][key] = value
        finally:
            base.close()
    except sqlite3.Error as error:
        raise ValueError(f"{path} is no database of MLflow: {error}") from None
    yield from enumerate(runs.values(), 1)


def _wandb(files: Path) -> dict[str, Any]:
    """A run of W&B: config.yaml, each value in a record of its own, and wandb-summary.json."""
    import yaml

    values: dict[str, Any] = {"run": files.parent.name}
    config = files / "config.yaml"
    if config.is_file():
        try:
            given = yaml.safe_load(read_text(config)) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"{config} is not YAML: {' '.join(str(error).split())}") from None
        for key, part in given.items() if isinstance(given, dict) else ():
            if not str(key).startswith(("_", "wandb_")):
                values[str(key)] = part["value"] if isinstance(part, dict) and "value" in part else part
    try:
        summary = parse_object(read_text(files / "wandb-summary.json"), infinite=True)
    except ValueError as error:
        raise ValueError(f"{files / 'wandb-summary.json'}: {error}") from None
    return values | {key: part for key, part in summary.items() if not key.startswith("_")}


def _tensorboard(run: Path) -> dict[str, Any]:
    """A run of TensorBoard: the last value of every scalar, and hyperparameters of its HParams."""
    from tensorboard.backend.event_processing import event_accumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    events = event_accumulator.EventAccumulator(str(run), size_guidance={"scalars": 1, "tensors": 1})
    events.Reload()
    values: dict[str, Any] = {"run": run.name}
    for tag in events.Tags()["scalars"]:
        values[tag] = events.Scalars(tag)[-1].value
    started = events.summary_metadata.get("_hparams_/session_start_info")
    if started is not None:
        data = plugin_data_pb2.HParamsPluginData.FromString(started.plugin_data.content)
        for name, value in data.session_start_info.hparams.items():
            kind = value.WhichOneof("kind")
            values[name] = getattr(value, kind) if kind else None
    return values


# where a run lies in a folder, and its reader, which takes the parent of what is found
TRACKERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "**/wandb-summary.json": _wandb,
    "**/metrics/": _mlflow,
    "**/events.out.tfevents.*": _tensorboard,
}
