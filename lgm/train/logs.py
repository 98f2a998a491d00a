"""What a run tells: `metrics.jsonl`, TensorBoard events and a progress bar (plain lines where no one watches)."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from lgm.files import write_atomically


class MetricLog:
    """Rows of `metrics.jsonl` and scalars in TensorBoard; rows after `step` are dropped, for a resumed run.

    Where it does not write, as in all processes but the first, everything it is told is forgotten.
    """

    def __init__(self, workdir: Path, step: int, writes: bool = True):
        self.file, self.events = None, None
        if not writes:
            return
        self.path = workdir / "metrics.jsonl"
        rows = self.path.read_text().splitlines() if self.path.exists() else []
        kept = [row for row in rows if _step_of(row) <= step]
        write_atomically(self.path, "".join(row + "\n" for row in kept).encode())
        self.file = self.path.open("a")
        self.events = SummaryWriter(str(workdir), purge_step=step + 1 if step else None)

    def write(self, step: int, images: int, values: dict[str, float]) -> None:
        """Append one row and its scalars."""
        if self.file is None:
            return
        values = {k: float(v) for k, v in values.items()}
        self.file.write(json.dumps({"step": step, "images": images, **values}) + "\n")
        self.file.flush()
        for name, value in values.items():
            self.events.add_scalar(name, value, step)

    def image(self, step: int, name: str, picture_HWC: np.ndarray) -> None:
        """A picture in TensorBoard."""
        if self.events:
            self.events.add_image(name, picture_HWC, step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close both files."""
        for part in (self.file, self.events):
            if part:
                part.close()


def _step_of(row: str) -> float:
    try:
        return json.loads(row)["step"]
    except (ValueError, KeyError):  # a row cut short by a kill
        return float("inf")


class ProgressLine:
    """A bar with loss, images/s, TFLOP/s and time left on a terminal; one line a log step elsewhere."""

    def __init__(self, total_images: int, images: int, quiet: bool = False):
        self.console = Console(file=sys.stderr, soft_wrap=True)
        self.total, self.quiet = total_images, quiet
        self.start, self.first = time.monotonic(), images
        self.bar = None
        if self.console.is_terminal and not quiet:
            columns = (TextColumn("{task.completed:,}/{task.total:,} images"), BarColumn(bar_width=None),
                       TextColumn("{task.fields[note]}"), TimeRemainingColumn())
            self.bar = Progress(*columns, console=self.console)
            self.task = self.bar.add_task("train", total=total_images, completed=images, note="compiling")
            self.bar.start()

    def advance(self, images: int) -> None:
        """Move the bar."""
        if self.bar:
            self.bar.update(self.task, completed=images)

    def note(self, images: int, values: dict[str, float]) -> None:
        """Show the newest metrics."""
        parts = [f"{name} {value:.4g}" for name, value in values.items()]
        if self.bar:
            self.bar.update(self.task, completed=images, note="  ".join(parts))
        elif not self.quiet:
            rate = (images - self.first) / max(time.monotonic() - self.start, 1e-9)
            left = (self.total - images) / rate if rate > 0 else float("nan")
            self.say(f"{images:>9,}/{self.total:,} images  " + "  ".join(parts) + f"  {left:.0f} s left")

    def say(self, line: str) -> None:
        """A line that stays."""
        if not self.quiet:
            self.console.print(line, highlight=False, markup=False)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self.bar:
            self.bar.stop()
