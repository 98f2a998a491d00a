"""Tables of runs: a CSV file into checked arrays, or one line that names the file, the row and the column."""

from __future__ import annotations

import csv
import dataclasses
import difflib
import hashlib
import math
from pathlib import Path

import numpy as np

from lgm.files import local

FLOPS_PER_PARAMETER_AND_TOKEN = 6.0  # forward and backward, two FLOPs a multiply-add: C = 6 N D
POSITIVE = ("params", "images", "tokens", "flops", "loss", "learning_rate")
NAMES = ("family", "seed", "run")
KINDS = "any two of params, data (images or tokens) and flops"


@dataclasses.dataclass(frozen=True)
class Limits:
    """Which rows are fitted; what lies outside is dropped and counted."""

    min_params: float = 0.0
    min_data: float = 0.0
    min_flops: float = 0.0
    max_loss: float = math.inf


LIMITS = Limits()


@dataclasses.dataclass(frozen=True)
class Runs:
    """The fitted rows of one family; arrays of one length.

    Attributes:
      n: parameters. d: data seen, in `unit`. loss: held-out loss. flops: training FLOPs, or None where unknown.
      run: [rows] integers; rows of one training run (cooldowns from one trunk) share a number and their noise.
      row: [rows] line numbers in the file, the header being 1.
      unit: "images" or "tokens".
      dropped: (row, reason) of rows that are not fitted.
      notes: what was derived rather than read.
    """

    family: str
    n: np.ndarray
    d: np.ndarray
    loss: np.ndarray
    flops: np.ndarray | None
    run: np.ndarray
    row: np.ndarray
    unit: str
    dropped: tuple[tuple[int, str], ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.n)

    def take(self, keep: np.ndarray) -> Runs:
        """The rows where `keep` is true."""
        arrays = {name: getattr(self, name)[keep] for name in ("n", "d", "loss", "run", "row")}
        return dataclasses.replace(self, **arrays, flops=None if self.flops is None else self.flops[keep])


@dataclasses.dataclass(frozen=True)
class Table:
    """All families of a file, in the order of their first rows, the file's SHA-256 and the column that is the loss."""

    path: str
    sha256: str
    rows: int
    families: tuple[Runs, ...]
    loss: str = "loss"


def read(path: str | Path, tokens_per_image: float | None = None, limits: Limits = LIMITS,
         loss: str = "loss") -> Table:
    """Read and check a CSV file of runs.

    Columns: `loss` (or the one that the argument of that name says), and any two of `params`, `images` or `tokens`, and
    `flops`; the third follows from C = 6 N D with D in tokens (an image being `tokens_per_image` of them). Optional:
    `family`, `seed`, `run` (rows of one training run), `learning_rate` (only the best of each family, size and data is
    fitted). Case does not matter; other columns are left alone. Rows whose loss is empty, NaN or infinite (runs that
    diverged or have not ended) and rows that are there twice are dropped.

    Raises ValueError in one line naming file, row and column for anything that is not a table of runs.
    """
    path = local(path, "--data")
    header, records, digest = _records(path)
    if loss != "loss":
        if loss not in header:
            raise ValueError(f"{path}: column {loss!r}, of --loss, is missing; {_there(header, loss)}")
        rename = lambda name: "loss" if name == loss else "(loss)" if name == "loss" else name
        header = [rename(name) for name in header]
        records = [(row, {rename(name): cell for name, cell in cells.items()}) for row, cells in records]
    _check_columns(path, header, tokens_per_image)
    read_cell = lambda c: _loss if c == "loss" else _number
    numbers = {c: [read_cell(c)(path, row, c, cells[c]) for row, cells in records] for c in POSITIVE if c in header}
    names = {c: [_name(path, row, c, cells[c]) for row, cells in records] for c in NAMES if c in header}
    rows = [row for row, _ in records]
    repeats = _repeats(path, records, numbers, names)
    if len(rows) == 1:
        raise ValueError(f"{path}: row 2 is the only row; a fit needs many runs")
    columns = {c: np.array(values, np.float64) for c, values in numbers.items()}
    columns, unit, notes = _complete(path, columns, tokens_per_image)
    notes += _near_misses(header)
    family = np.array(names.get("family", ["all"] * len(rows)))
    seen = dict.fromkeys(family.tolist())
    runs = names.get("run") or [str(row) for row in rows]
    numbered = {name: index for index, name in enumerate(dict.fromkeys(zip(family.tolist(), runs, strict=True)))}
    run = np.array([numbered[key] for key in zip(family.tolist(), runs, strict=True)])
    families = []
    for name in seen:
        of = family == name
        part = Runs(
            family=name, n=columns["params"][of], d=columns[unit][of], loss=columns["loss"][of],
            flops=columns["flops"][of] if "flops" in columns else None, run=run[of], row=np.array(rows)[of],
            unit=unit, notes=notes,
        )
        rates = columns["learning_rate"][of] if "learning_rate" in columns else None
        families.append(_drop(part, rates, limits, repeats))
    return Table(str(path), digest, len(rows), tuple(families), loss)


def _records(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]], str]:
    """The header, (line number, cells by column) of each row, and the file's digest."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8; save the table as CSV in UTF-8") from None
    reader = csv.reader(text.splitlines(), strict=True)
    lines = []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                lines.append((reader.line_num, [cell.strip() for cell in cells]))
    except csv.Error as error:
        raise ValueError(f"{path}: row {reader.line_num}: {error}") from None
    if not lines:
        raise ValueError(f"{path} is empty; the first line must name the columns: loss, and {KINDS}")
    _, header = lines[0]
    for separator in ";\t|":
        if len(header) == 1 and separator in header[0]:
            raise ValueError(f"{path}: columns are separated by {separator!r}; save the table with commas")
    header = [column.lower() if column.lower() in (*POSITIVE, *NAMES) else column for column in header]
    for index, column in enumerate(header):
        if column in header[:index]:
            raise ValueError(f"{path}: column {column!r} appears twice in the first line")
    for row, cells in lines[1:]:
        if len(cells) != len(header):
            raise ValueError(f"{path}: row {row} has {len(cells)} cells where the first line has {len(header)} columns")
    records = [(row, dict(zip(header, cells, strict=True))) for row, cells in lines[1:]]
    return header, records, hashlib.sha256(content).hexdigest()


def _check_columns(path: Path, header: list[str], tokens_per_image: float | None) -> None:
    if "loss" not in header:
        close = [c for c in header if "loss" in c.lower()] or difflib.get_close_matches("loss", header, 1)
        hint = f"did you mean --loss={close[0]}? " if close else ""
        raise ValueError(f"{path}: column 'loss' is missing; {hint}there are {', '.join(header)}")
    kinds = [any(c in header for c in kind) for kind in (("params",), ("images", "tokens"), ("flops",))]
    if sum(kinds) < 2:
        names = ("'params'", "'images' or 'tokens'", "'flops'")
        missing = " and ".join(name for name, given in zip(names, kinds, strict=True) if not given)
        hints = _near_misses(header)
        raise ValueError(f"{path}: columns {missing} are missing, give {KINDS}; {'; '.join([*hints, _there(header)])}")
    if tokens_per_image is not None and not (math.isfinite(tokens_per_image) and tokens_per_image > 0):
        raise ValueError(f"--tokens-per-image={tokens_per_image} must be a positive number")
    if "params" not in header and "tokens" not in header and tokens_per_image is None:
        raise ValueError(f"{path}: column 'params' is missing and cannot be had from 'images' and 'flops' without "
                         "--tokens-per-image")


def _there(header: list[str], word: str = "") -> str:
    close = difflib.get_close_matches(word, header, 1) if word else []
    return (f"did you mean {close[0]!r}? " if close else "") + f"there are {', '.join(header)}"


def _near_misses(header: list[str]) -> tuple[str, ...]:
    """Columns that are not read and look like one that would be, as `Familly` or `n_params`."""
    known, unread = {*POSITIVE, *NAMES}, [c for c in header if c not in (*POSITIVE, *NAMES)]
    found = []
    for column in unread:
        close = difflib.get_close_matches(column.lower(), sorted(known - {"loss"} - set(header)), 1, 0.75)
        if close:
            found.append(f"column {column!r} is not read: rename it where it is {close[0]!r}")
    return tuple(found)


def _loss(path: Path, row: int, column: str, cell: str) -> float:
    """NaN for a run that has no loss."""
    if not cell or cell.lower().lstrip("+-") in ("nan", "inf", "infinity", "none", "null", "na", "n/a"):
        return math.nan
    return _number(path, row, column, cell)


def _number(path: Path, row: int, column: str, cell: str) -> float:
    where = f"{path}: row {row}, column {column!r}"
    try:
        value = float(cell)
    except ValueError:
        raise ValueError(f"{where}: {cell!r} is not a number" if cell else f"{where} is empty") from None
    if not math.isfinite(value):
        raise ValueError(f"{where}: {cell!r} is not finite")
    if value <= 0:
        raise ValueError(f"{where}: {cell!r} must be positive")
    return value


def _name(path: Path, row: int, column: str, cell: str) -> str:
    if not cell:
        raise ValueError(f"{path}: row {row}, column {column!r} is empty")
    return cell


def _repeats(path: Path, records: list[tuple[int, dict[str, str]]], numbers: dict, names: dict) -> dict[int, str]:
    """Reasons to drop rows that repeat another with its loss; with another loss they are an error where a seed or a run
    tells runs apart. Columns that are not read tell rows of one seed apart too, as a batch size."""
    if not records:
        raise ValueError(f"{path}: there is no row below the first line")
    keys = [c for c in (*names, *numbers) if c != "loss"]
    seen: dict[tuple, int] = {}
    reasons = {}
    for index, (row, cells) in enumerate(records):
        key, loss = tuple((names | numbers)[c][index] for c in keys), numbers["loss"][index]
        if "run" not in names:
            key += tuple(cell for c, cell in cells.items() if c not in (*POSITIVE, *NAMES))
        if not ("seed" in names or "run" in names):
            key += (loss,)
        if math.isnan(loss):
            continue
        first = seen.setdefault(key, index)
        if first != index and loss == numbers["loss"][first]:
            reasons[row] = "the same run is in an earlier row"
        elif first != index:
            raise ValueError(f"{path}: row {row}, column 'loss': the row repeats the {', '.join(keys)} of row "
                             f"{records[first][0]} with another loss")
    return reasons


def _complete(path: Path, columns: dict, tokens_per_image: float | None) -> tuple[dict, str, tuple[str, ...]]:
    """`params`, data and, where they can be had, `flops`; the unit of data; what was derived."""
    notes = []
    if tokens_per_image is not None and "images" in columns and "tokens" not in columns:
        columns["tokens"] = columns["images"] * tokens_per_image
    if tokens_per_image is not None and "tokens" in columns and "images" not in columns:
        columns["images"] = columns["tokens"] / tokens_per_image
    if "params" not in columns:
        columns["params"] = columns["flops"] / (FLOPS_PER_PARAMETER_AND_TOKEN * columns["tokens"])
        notes.append("parameters are flops / (6 tokens)")
    if "images" not in columns and "tokens" not in columns:
        columns["tokens"] = columns["flops"] / (FLOPS_PER_PARAMETER_AND_TOKEN * columns["params"])
        notes.append("tokens are flops / (6 params)")
        if tokens_per_image is not None:
            columns["images"] = columns["tokens"] / tokens_per_image
    if "flops" not in columns and "tokens" in columns:
        columns["flops"] = FLOPS_PER_PARAMETER_AND_TOKEN * columns["params"] * columns["tokens"]
        notes.append("FLOPs are 6 params tokens")
    return columns, "images" if "images" in columns else "tokens", tuple(notes)


def _drop(runs: Runs, rates: np.ndarray | None, limits: Limits, repeats: dict[int, str]) -> Runs:
    reasons = {index: repeats[row] for index, row in enumerate(runs.row.tolist()) if row in repeats}

    def mark(outside: np.ndarray, reason: str):
        for index in np.flatnonzero(outside):
            reasons.setdefault(int(index), reason)

    mark(~np.isfinite(runs.loss), "no finite loss: the run diverged or has not ended")
    mark(runs.n < limits.min_params, f"params below --min-params={limits.min_params:g}")
    mark(runs.d < limits.min_data, f"{runs.unit} below --min-data={limits.min_data:g}")
    if limits.min_flops and runs.flops is None:
        raise ValueError("--min-flops needs a column 'flops', or --tokens-per-image to have it from params and images")
    if limits.min_flops:
        mark(runs.flops < limits.min_flops, f"flops below --min-flops={limits.min_flops:g}")
    mark(runs.loss > limits.max_loss, f"loss above --max-loss={limits.max_loss:g}")
    notes = runs.notes
    if rates is not None:
        best = _best_rate(runs, rates)
        mark(~best, "another learning rate is better at this size and data")
        notes += _rates_at_an_end(runs, rates, best)
    keep = np.array([index not in reasons for index in range(len(runs))])
    dropped = tuple((int(runs.row[index]), reason) for index, reason in sorted(reasons.items()))
    return dataclasses.replace(runs.take(keep), dropped=dropped, notes=notes)


def _best_rate(runs: Runs, rates: np.ndarray) -> np.ndarray:
    """Where a row's learning rate has the lowest mean loss over seeds of its size and data; one under which a seed
    diverged is worse than one under which none did."""
    best = np.zeros(len(runs), bool)
    for n, d in {*zip(runs.n.tolist(), runs.d.tolist(), strict=True)}:
        here = (runs.n == n) & (runs.d == d)
        ranks = {}
        for rate in sorted(set(rates[here].tolist())):
            losses = runs.loss[here & (rates == rate)]
            good = np.isfinite(losses)
            ranks[rate] = (1 - good.mean(), losses[good].mean() if good.any() else 0.0)
        best |= here & (rates == min(ranks, key=ranks.get))
    return best


def _rates_at_an_end(runs: Runs, rates: np.ndarray, best: np.ndarray) -> tuple[str, ...]:
    """A note where the best learning rate is the lowest or highest of those tried: a better one may lie beyond."""
    places = {*zip(runs.n.tolist(), runs.d.tolist(), strict=True)}
    tried = {(n, d): rates[(runs.n == n) & (runs.d == d)] for n, d in places}
    chosen = {(n, d): rates[(runs.n == n) & (runs.d == d) & best][0] for n, d in places}
    several = [place for place in places if np.ptp(tried[place]) > 0]
    ends = [place for place in several if chosen[place] in (tried[place].min(), tried[place].max())]
    if not ends:
        return ()
    return (f"the best learning rate is the lowest or the highest of those tried at {len(ends)} of {len(several)} "
            "sizes and amounts of data: try more",)
