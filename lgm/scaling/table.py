"""Tables of runs (`inputs`) into checked arrays, or one line that names the file, the row and the column."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lgm.files import local
from lgm.scaling import inputs

FLOPS_PER_PARAMETER_AND_TOKEN = 6.0  # forward and backward, two FLOPs a multiply-add: C = 6 N D
POSITIVE = ("params", "images", "tokens", "flops", "loss", "learning_rate", "unique")
FROZEN = "frozen_flops"
NAMES = ("family", "seed", "run")
KNOBS = ("learning_rate", "batch_size")  # what is tuned at each size
ALIASES = {  # of columns that can mean one thing only; a loss is named by --loss
    "params": ("n_params", "num_params", "parameters", "n_parameters", "num_parameters", "model_size", "param_count"),
    "tokens": ("n_tokens", "num_tokens", "train_tokens", "training_tokens", "tokens_seen", "total_tokens"),
    "images": ("n_images", "num_images", "images_seen", "train_images", "samples_seen"),
    "flops": ("n_flops", "train_flops", "training_flops", "total_flops", "compute_flops"),
    "run": ("run_id", "run_name"),
    "unique": ("unique_tokens", "unique_images", "dataset_size", "unique_data"),
}
SPLITS = 12  # values of a column that may tell families apart, at most
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
class Tried:
    """All rows of a family, before the best of each size and amount were chosen: n, d, loss and the knobs [rows]."""

    n: np.ndarray
    d: np.ndarray
    loss: np.ndarray
    knobs: dict[str, np.ndarray]


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
      unique: [rows] how much data there was, of which d is passes over it; None where it is not said.
      tried: all rows with what was tuned, where something was. quality: columns that were asked for, [rows] each.
      unread: columns of few values that were not read, [rows] each: what may split the data.
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
    unique: np.ndarray | None = None
    tried: Tried | None = None
    quality: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    unread: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.n)

    def take(self, keep: np.ndarray) -> Runs:
        """The rows where `keep` is true."""
        arrays = {name: getattr(self, name)[keep] for name in ("n", "d", "loss", "run", "row")}
        unread = {name: values[keep] for name, values in self.unread.items()}
        flops = None if self.flops is None else self.flops[keep]
        unique = None if self.unique is None else self.unique[keep]
        quality = {name: values[keep] for name, values in self.quality.items()}
        return dataclasses.replace(self, **arrays, flops=flops, unique=unique, unread=unread, quality=quality)


@dataclasses.dataclass(frozen=True)
class Table:
    """All families of a file, in the order of their first rows, the file's SHA-256 and the column that is the loss."""

    path: str
    sha256: str
    rows: int
    families: tuple[Runs, ...]
    loss: str = "loss"


def read(path: str | Path, tokens_per_image: float | None = None, limits: Limits = LIMITS, loss: str = "loss",
         family: str | None = None, rows: str = "all", quality: Sequence[str] = (), frozen: bool = False) -> Table:
    """Read and check a table of runs: CSV, JSON lines or a tracker's folder (`inputs`).

    Columns: `loss` (or the one that the argument of that name says), and any two of `params`, `images` or `tokens`, and
    `flops`; the third follows from C = 6 N D with D in tokens (an image being `tokens_per_image` of them). Optional:
    `family` (or the columns that the argument of that name says, by commas), `seed`, `run` (rows of one training run),
    `learning_rate` (only the best of each family, size and data is fitted), `unique` (how much data there is, of which
    a run may see more by passes over it). Case does not matter, and names that can
    mean one of these only are read as such, which a note says; other columns are left alone. Cells may be separated by
    semicolons, tabs or bars, numbers then having decimal commas. Rows whose loss is empty, NaN or infinite (runs that
    diverged or have not ended) and rows that are there twice are dropped.

    frozen: FLOPs are those of `flops` and `frozen_flops`, what encoders cost that compute in each step and are not
    trained. quality: columns that are read beside, cells without a number being none. rows: "all", or "last" of each
    run: its last 5% of data, of learning curves, as one row.

    Raises ValueError in one line naming file, row and column for anything that is not a table of runs.
    """
    path = local(path, "--data")
    columns, lines, digest, notes = _columns(path)
    if loss != "loss":
        if loss not in columns:
            raise ValueError(f"{path}: column {loss!r}, of --loss, is missing; {_there(list(columns), loss)}")
        rename = lambda name: "loss" if name == loss else "(loss)" if name == "loss" else name
        columns = {rename(name): cells for name, cells in columns.items()}
    if family is not None:
        columns = _with_family(path, columns, family)
    header = list(columns)
    _check_columns(path, header, tokens_per_image)
    parse = lambda c: _loss if c == "loss" else _number
    numbers = {c: [parse(c)(path, line, c, cell) for line, cell in zip(lines, columns[c], strict=True)]
               for c in POSITIVE if c in header}
    names = {c: [_name(path, line, c, cell) for line, cell in zip(lines, columns[c], strict=True)]
             for c in NAMES if c in header}
    others = {c: cells for c, cells in columns.items() if c not in (*POSITIVE, *NAMES)}
    beside = others.pop(FROZEN, None)
    if frozen:
        if beside is None or "flops" not in numbers:
            raise ValueError(f"{path}: --frozen needs columns 'flops' and {FROZEN!r}; {_there(header, FROZEN)}")
        beside = [_number(path, line, FROZEN, cell, zero=True) for line, cell in zip(lines, beside, strict=True)]
    for name in quality:
        if name not in others:
            raise ValueError(f"{path}: column {name!r}, of --quality, is missing; {_there(list(others), name)}")
    repeats = _repeats(path, lines, others, numbers, names)
    if len(lines) == 1:
        raise ValueError(f"{path}: row {lines[0]} is the only row; a fit needs many runs")
    values = {c: np.array(cells, np.float64) for c, cells in numbers.items()}
    values, unit, derived = _complete(path, values, tokens_per_image)
    if frozen:
        values["flops"] = values["flops"] + np.array(beside)
        derived += (f"FLOPs are flops + {FROZEN}",)
    notes += derived + _near_misses(header)
    families = np.array(names.get("family", ["all"] * len(lines)))
    runs = names.get("run") or lines
    numbered = {name: i for i, name in enumerate(dict.fromkeys(zip(families.tolist(), runs, strict=True)))}
    run = np.array([numbered[key] for key in zip(families.tolist(), runs, strict=True)])
    unread = {c: np.array(cells) for c, cells in others.items() if 1 < len(set(cells)) <= SPLITS}
    knobs = {name: values[name] if name in values else _numbers(others[name]) for name in KNOBS
             if name in values or name in others}
    kept, line = [], np.array(lines)
    for name in dict.fromkeys(families.tolist()):
        of = families == name
        part = Runs(
            family=name, n=values["params"][of], d=values[unit][of], loss=values["loss"][of],
            flops=values["flops"][of] if "flops" in values else None, run=run[of], row=line[of], unit=unit, notes=notes,
            unique=values["unique"][of] if "unique" in values else None,
            unread={c: cells[of] for c, cells in unread.items()},
            quality={name: _numbers(others[name])[of] for name in quality},
        )
        rates = values["learning_rate"][of] if "learning_rate" in values else None
        tuned = {name: column[of] for name, column in knobs.items()}
        if tuned:
            part = dataclasses.replace(part, tried=Tried(part.n, part.d, part.loss, tuned))
        part = _drop(part, rates, limits, repeats)
        kept.append(part if rows == "all" else _last(part))
    return Table(str(path), digest, len(lines), tuple(kept), loss)


def _columns(path: Path) -> tuple[dict[str, list[str]], list[int], str, tuple[str, ...]]:
    """Cells by column, numbers of the rows, the content's digest and what was taken for what."""
    cells = inputs.read(path)
    if not cells.header:
        raise ValueError(f"{path} is empty; the first line must name the columns: loss, and {KINDS}")
    header, notes = _header(cells.header)
    for index, column in enumerate(header):
        if column in header[:index]:
            raise ValueError(f"{path}: column {column!r} appears twice in the first line")
    columns = dict(zip(header, map(list, zip(*cells.rows, strict=True)), strict=True)) if cells.rows else {
        column: [] for column in header}
    return columns, cells.lines, cells.digest, notes + cells.notes


def _header(cells: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """Names of columns, ours in small letters, and notes of those that are read under another name."""
    header = [column.lower() if column.lower() in (*POSITIVE, *NAMES) else column for column in cells]
    notes = []
    for name, others in ALIASES.items():
        found = [index for index, column in enumerate(header) if column.lower() in others]
        if name not in header and len(found) == 1:
            notes.append(f"column {header[found[0]]!r} is read as {name}")
            header[found[0]] = name
    return header, tuple(notes)


def _with_family(path: Path, columns: dict[str, list[str]], family: str) -> dict[str, list[str]]:
    """The columns with families named by those that --family-column says."""
    parts = [name.strip() for name in family.split(",")]
    for name in parts:
        if name not in columns:
            raise ValueError(f"{path}: column {name!r}, of --family-column, is missing; {_there(list(columns), name)}")
    named = [" ".join(cells) for cells in zip(*(columns[name] for name in parts), strict=True)]
    kept = {"(family)" if name == "family" else name: cells for name, cells in columns.items()
            if name not in parts or name in (*POSITIVE, *NAMES[1:])}
    return kept | {"family": named}


def _last(runs: Runs) -> Runs:
    """The end of each run: the mean over the last 5% of its data, as one row."""
    _, member = np.unique(runs.run, return_inverse=True)
    ends = np.zeros(member.max(initial=-1) + 1)
    np.maximum.at(ends, member, runs.d)
    late = runs.d >= 0.95 * ends[member]
    mean = np.bincount(member[late], runs.loss[late], len(ends)) / np.bincount(member[late], minlength=len(ends))
    rows = np.flatnonzero(runs.d == ends[member])
    rows = rows[np.unique(member[rows], return_index=True)[1]]
    rows = np.sort(rows)
    return dataclasses.replace(runs.take(np.isin(np.arange(len(runs)), rows)), loss=mean[member[rows]],
                               notes=(*runs.notes, "the last 5% of each run's data is one row"))


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


def _number(path: Path, row: int, column: str, cell: str, zero: bool = False) -> float:
    where = f"{path}: row {row}, column {column!r}"
    try:
        value = float(cell)
    except ValueError:
        raise ValueError(f"{where}: {cell!r} is not a number" if cell else f"{where} is empty") from None
    if not math.isfinite(value):
        raise ValueError(f"{where}: {cell!r} is not finite")
    if value < 0 or value == 0 and not zero:
        raise ValueError(f"{where}: {cell!r} must be positive")
    return value


def _numbers(cells: list[str]) -> np.ndarray:
    """A column that need not be numbers: NaN where it is none."""
    def number(cell: str) -> float:
        try:
            value = float(cell)
        except ValueError:
            return math.nan
        return value if 0 < value < math.inf else math.nan
    return np.array([number(cell) for cell in cells])


def _name(path: Path, row: int, column: str, cell: str) -> str:
    if not cell:
        raise ValueError(f"{path}: row {row}, column {column!r} is empty")
    return cell


def _repeats(path: Path, lines: list[int], others: dict, numbers: dict, names: dict) -> dict[int, str]:
    """Reasons to drop rows that repeat another with its loss; with another loss they are an error where a seed or a run
    tells runs apart. Columns that are not read tell rows of one seed apart too, as a batch size."""
    if not lines:
        raise ValueError(f"{path}: there is no row below the first line")
    named = "seed" in names or "run" in names
    keys = [c for c in (*names, *numbers) if c != "loss"]
    parts = [(names | numbers)[c] for c in keys]
    if "run" not in names:
        parts += others.values()
    if not named:
        parts.append(numbers["loss"])
    seen: dict[tuple, int] = {}
    reasons = {}
    for index, (key, loss) in enumerate(zip(zip(*parts, strict=True), numbers["loss"], strict=True)):
        if math.isnan(loss):
            continue
        first = seen.setdefault(key, index)
        if first != index and loss == numbers["loss"][first]:
            reasons[lines[index]] = "the same run is in an earlier row"
        elif first != index:
            raise ValueError(f"{path}: row {lines[index]}, column 'loss': the row repeats the {', '.join(keys)} of row "
                             f"{lines[first]} with another loss")
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
    best = np.ones(len(runs), bool)
    for here in _several(runs, rates):
        ranks = {}
        for rate in sorted(set(rates[here].tolist())):
            losses = runs.loss[here[rates[here] == rate]]
            good = np.isfinite(losses)
            ranks[rate] = (1 - good.mean(), losses[good].mean() if good.any() else 0.0)
        best[here] = rates[here] == min(ranks, key=ranks.get)
    return best


def _several(runs: Runs, rates: np.ndarray) -> list[np.ndarray]:
    """The rows of each size and amount of data at which several rates were tried."""
    _, place = np.unique(np.stack([runs.n, runs.d]), axis=1, return_inverse=True)
    order = np.argsort(place.reshape(-1), kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(place.reshape(-1)[order])) + 1)
    return [rows for rows in groups if len(rows) > 1 and np.ptp(rates[rows]) > 0]


def _rates_at_an_end(runs: Runs, rates: np.ndarray, best: np.ndarray) -> tuple[str, ...]:
    """A note where the best learning rate is the lowest or highest of those tried: a better one may lie beyond."""
    several = _several(runs, rates)
    ends = [rows for rows in several if rates[rows][best[rows]][0] in (rates[rows].min(), rates[rows].max())]
    if not ends:
        return ()
    return (f"the best learning rate is the lowest or the highest of those tried at {len(ends)} of {len(several)} "
            "sizes and amounts of data: try more",)
