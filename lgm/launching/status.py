"""`lgm status`: where launched runs are, from the cluster's queue and from what each run leaves in its folder."""

import datetime
import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lgm import files
from lgm.parsing import ConfigError
from lgm.train import goodput
from lgm.train.saved import COMMITTED, newest_checkpoint

COLUMNS = {"run": "run", "state": "state", "images": "images", "loss": "loss", "mfu": "MFU", "goodput": "goodput",
           "checkpoint": "checkpoint", "left": "time left"}


def status(workdirs: Sequence[str], as_json: bool = False) -> int:
    """Print one row a run; of a sweep's folder one row for each of its runs."""
    rows = [row for workdir in workdirs for row in of_folder(files.place(workdir, "WORKDIR"))]
    if as_json:
        print(json.dumps(rows, indent=2))
        return 0
    table = Table(box=None, pad_edge=False)
    for title in COLUMNS.values():
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(spoken(key, row) for key in COLUMNS))
    console = Console(soft_wrap=False)
    with console.capture() as text:  # rich ends the program in its own way where no one reads it
        console.print(table)
    print(text.get(), end="")
    return 0


def of_folder(workdir: Path) -> list[dict[str, Any]]:
    """The rows of one folder. Raises ConfigError, one line, for one that no run has."""
    record = _json(workdir / "launch" / "job.json")
    runs = [path.parent for path in files.below(workdir) if path.name == "metrics.jsonl"]
    if not workdir.is_dir() or (record is None and not runs):
        raise ConfigError(f"{workdir} is the folder of no run: it has neither launch/job.json nor metrics.jsonl")
    queue = _queue(record)
    if record and record.get("remote") and not runs:
        return _remote(workdir, record, queue)
    folders = [workdir] if workdir in runs else runs
    if not folders:
        return [{"run": str(workdir), "state": queue or "not started"}]
    return [of_run(folder, record, queue, single=folder == workdir) for folder in folders]


def _remote(workdir: Path, record: dict, queue: str) -> list[dict[str, Any]]:
    """The row of a run whose folder is in Cloud Storage, from copies of what it tells."""
    place = record["remote"]
    with tempfile.TemporaryDirectory() as copies:
        folder = Path(copies)
        for name in ("config.json", "metrics.jsonl", goodput.NAME):
            done = subprocess.run(["gcloud", "storage", "cat", f"{place}/{name}"], capture_output=True)
            if done.returncode == 0:
                (folder / name).write_bytes(done.stdout)
        if not (folder / "metrics.jsonl").exists():
            return [{"run": str(workdir), "state": queue or "not started"}]
        listed = subprocess.run(["gcloud", "storage", "ls", f"{place}/checkpoints/"], capture_output=True, text=True)
        for line in listed.stdout.split():
            (folder / "checkpoints" / line.rstrip("/").rpartition("/")[2]).mkdir(parents=True, exist_ok=True)
        row = of_run(folder, record, queue)
    return [row | {"run": str(workdir), "checkpoint_seconds_ago": None, "written_seconds_ago": None}]


def of_run(folder: Path, record: dict | None, queue: str, single: bool = True) -> dict[str, Any]:
    """What one run's folder tells: images, loss, MFU, seconds since the last checkpoint and until the end."""
    config = _json(folder / "config.json") or {}
    metrics = folder / "metrics.jsonl"
    rows = [row for line in metrics.read_bytes().splitlines() if (row := _row(line))] if metrics.is_file() else []
    losses = [row for row in rows if "loss" in row]
    last = losses[-1] if losses else {}
    images, total = max((row["images"] for row in rows), default=0), config.get("total_images")
    batch = config.get("batch_size") or 1
    done = total is not None and images >= total // batch * batch
    saved = _newest_checkpoint(folder)
    rate = last.get("images_per_second")
    account = goodput.read(folder) or {}
    row = {
        "run": str(folder), "images": images, "total_images": total, "loss": last.get("loss"),
        "mfu": last.get("mfu"), "goodput": account.get("goodput"), "starts": account.get("starts"),
        "seconds": account.get("seconds"), "checkpoint": None if saved is None else saved[0] * batch,
        "checkpoint_seconds_ago": None if saved is None else time.time() - saved[1],
        "seconds_left": 0.0 if done else (total - images) / rate if total and rate else None,
        "written_seconds_ago": time.time() - files.modified(metrics),
    }
    ours = queue if single or not done else ""
    return row | {"state": ours or ("finished" if done else "stopped" if record else "not launched")}


def spoken(key: str, row: dict[str, Any]) -> str:
    """One cell for people."""
    value = row.get(key)
    if key == "images" and value is not None:
        return f"{value:,}/{row['total_images']:,}" if row.get("total_images") else f"{value:,}"
    if key == "checkpoint" and value is not None:
        age = row["checkpoint_seconds_ago"]
        return f"{value:,}" if age is None else f"{value:,}, {_span(age)} ago"
    if key == "left":
        seconds = row.get("seconds_left")
        return "" if not seconds else _span(seconds)
    if value is None:
        return ""
    if key == "goodput":
        lost = {name: seconds for name, seconds in row["seconds"].items() if name != "step"}
        most = max(lost, key=lambda name: lost[name])
        return f"{value:.0%} ({most} {lost[most] / sum(row['seconds'].values()):.0%})" if lost[most] else f"{value:.0%}"
    return f"{value:.0%}" if key == "mfu" else f"{value:.4g}" if key == "loss" else str(value)


def _span(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


def _queue(record: dict | None) -> str:
    """The cluster's word for the job, "" where it has none any more; a cluster that cannot be asked is said so."""
    if record is None:
        return ""
    from lgm.launching.launch import engine

    try:
        return engine(record["on"]).state(record)
    except OSError as error:
        return f"unknown ({record['on']}: {error.strerror or error})"


def _newest_checkpoint(folder: Path) -> tuple[int, float] | None:
    """(step, when it was written) of the newest."""
    step = newest_checkpoint(folder)
    if step is None:
        return None
    path = folder / "checkpoints" / str(step)
    return step, files.modified(path / COMMITTED if files.is_remote(path) else path)


def _row(line: bytes) -> dict | None:
    """A row of metrics; None of one that is being written or is none of ours."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("images"), int) else None


def _json(path: Path) -> dict | None:
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    except OSError:
        if files.is_remote(path):  # which does not answer, or not us
            raise
        return None
    return found if isinstance(found, dict) else None
