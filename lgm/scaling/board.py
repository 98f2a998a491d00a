"""How a sweep stands: a live table on a terminal, plain lines in a log."""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from lgm.scaling import results
from lgm.scaling.sweep import Run

EVERY = 20.0  # seconds between lines of progress in a log


class Board:
    """Groups of runs, how far each is, its loss, and the time left at the speed of this call, counted in FLOPs."""

    def __init__(self, runs: list[Run], workdir: Path):
        self.workdir = workdir
        self.groups = {name: list(part) for name, part in itertools.groupby(runs, key=lambda run: run.group)}
        self.console = Console(file=sys.stderr, soft_wrap=True)
        self.lines: dict[str, tuple[str, str]] = {}  # group -> (state, loss)
        self.began, self.reported = time.monotonic(), time.monotonic()
        self.work, self.current, self.part = 0.0, None, 0.0
        self.left = sum(run.flops for run in runs if not results.finished(workdir, run))
        for name, part in self.groups.items():
            done = sum(results.finished(workdir, run) for run in part)
            self.lines[name] = ("done" if done == len(part) else f"{done} of {len(part)} runs done" if done else "", "")
        self.live = Live(console=self.console, get_renderable=self.table, refresh_per_second=2, auto_refresh=True) \
            if self.console.is_terminal else None

    def __enter__(self) -> Board:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_) -> None:
        if self.live:
            self.live.stop()

    def start(self, runs: list[Run]) -> None:
        """These runs are trained now."""
        self.current, self.part = runs, 0.0
        self.lines[runs[0].group] = ("compiling", "")
        if not self.live:
            self.say(f"{runs[0].group}: {len(runs)} run{'s' * (len(runs) > 1)} of {runs[0].shape.params:,} parameters, "
                     f"up to {runs[0].images[-1]:,} images")

    def note(self, images: int, loss: float) -> None:
        """Every run of those that are trained now has come so far."""
        group, total = self.current[0].group, self.current[0].images[-1]
        self.part = images / total
        self.lines[group] = (f"{images:,} of {total:,} images", f"{loss:.4f}")
        if not self.live and time.monotonic() - self.reported > EVERY:
            self.say(f"{group}: {images:,} of {total:,} images, training loss {loss:.4f}{self.remaining()}")

    def say(self, line: str) -> None:
        """A line that stays."""
        self.reported = time.monotonic()
        self.console.print(line, highlight=False, markup=False)

    def done(self, runs: list[Run]) -> None:
        """Those that were trained have their results."""
        self.work += sum(run.flops for run in runs)
        group = self.groups[runs[0].group]
        finished = sum(results.finished(self.workdir, run) for run in group)
        self.lines[runs[0].group] = (f"{finished} of {len(group)} runs done", self.lines[runs[0].group][1])
        self.current, self.part = None, 0.0

    def remaining(self) -> str:
        """Time left, where there is something to tell it from."""
        here = self.work + self.part * sum(run.flops for run in self.current or [])
        if here < 0.02 * self.left:  # so far it was compilation
            return ""
        seconds = (time.monotonic() - self.began) * (self.left - here) / here
        return f", about {seconds / 60:.0f} min left" if seconds > 90 else f", about {seconds:.0f} s left"

    def table(self) -> Table:
        """The groups; those that wait are blank."""
        table = Table(title=f"sweep in {self.workdir}{self.remaining()}", title_justify="left")
        for name, justify in (("runs", "left"), ("count", "right"), ("parameters", "right"), ("state", "left"),
                              ("training loss", "right")):
            table.add_column(name, justify=justify)
        for name, group in self.groups.items():
            table.add_row(name, str(len(group)), f"{group[0].shape.params:,}", *self.lines[name])
        return table
