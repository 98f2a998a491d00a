"""Where a run's time goes, over all of its starts: goodput is the time of steps that counted over all time.

Every second since a run's first start has one reason:

  step        steps that the newest checkpoint, or the state in memory, stands on
  startup     importing, reading data, restoring, and the measurements before the first step
  compile     the first call of the step of every start
  data        waiting for a batch
  checkpoint  what of saving the steps have to wait for
  evaluation, pictures
  redone      steps that were lost and are done again: those after the last checkpoint of a start that was killed
  down        from the last word of a start to the beginning of the next
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lgm.files import write_json

NAME = "goodput.json"
REASONS = ("step", "startup", "compile", "data", "checkpoint", "evaluation", "pictures", "redone", "down")
MARKS = 16  # checkpoints whose time is remembered: more than a run keeps by default


class Ledger:
    """A run's account, begun at `step`; the first process keeps it in the run's folder, where the next start finds it.

    All times are of the wall clock, since they are compared across starts and machines.
    """

    def __init__(self, workdir: Path, step: int, writes: bool = True):
        self.path, self.writes = workdir / NAME, writes
        started, before = _process_start(), read(workdir) or {}
        self.seconds = dict.fromkeys(REASONS, 0.0) | before.get("seconds", {})
        self.since, self.starts = before.get("since", started), before.get("starts", 0) + 1
        self.marks = {at: seconds for at, seconds in _marks(before).items() if at <= step}
        kept = self.marks.setdefault(step, max(self.marks.values(), default=0.0))
        self.seconds["redone"] += max(0.0, self.seconds["step"] - kept)
        self.seconds["step"] = kept
        until = before.get("until", started)
        self.seconds["down"] += max(0.0, started - until)
        self.reason, self.turned = "startup", max(started, until)
        self.compiled = False

    def turn(self, reason: str) -> str:
        """From now on time is spent for `reason`; returns what it was spent for until now."""
        now, before = time.time(), self.reason
        self.seconds[before] += max(0.0, now - self.turned)
        self.reason, self.turned = reason, max(now, self.turned)
        return before

    @contextlib.contextmanager
    def spent(self, reason: str) -> Iterator[None]:
        """Time inside is spent for `reason`."""
        before = self.turn(reason)
        try:
            yield
        finally:
            self.turn(before)

    @contextlib.contextmanager
    def stepping(self) -> Iterator[None]:
        """A call of the step: compilation the first time."""
        with self.spent("step" if self.compiled else "compile"):
            yield
        self.compiled = True

    def saved(self, step: int) -> None:
        """A checkpoint of `step` was made: the steps until there are not done again."""
        self.turn(self.reason)
        self.marks[step] = self.seconds["step"]
        self.marks = dict(sorted(self.marks.items())[-MARKS:])
        self.write()

    def row(self) -> dict[str, float]:
        """`goodput` and the seconds of every reason, as they stand now."""
        self.turn(self.reason)
        return {"goodput": goodput(self.seconds)} | {f"seconds/{name}": self.seconds[name] for name in REASONS}

    def write(self) -> None:
        """Keep the account in the run's folder."""
        if not self.writes:
            return
        self.turn(self.reason)
        account = {"since": self.since, "until": self.turned, "starts": self.starts, "goodput": goodput(self.seconds),
                   "seconds": self.seconds, "marks": self.marks}
        write_json(self.path, account)


def goodput(seconds: dict[str, float]) -> float:
    """The part of all time that steps took which counted; 0 of no time."""
    total = sum(seconds.values())
    return seconds["step"] / total if total > 0 else 0.0


def read(workdir: Path) -> dict[str, Any] | None:
    """A run's account, None where it has none that can be read."""
    try:
        found = json.loads((workdir / NAME).read_text())
        numbers = [found["since"], found["until"], found["starts"], found["goodput"],
                   *(found["seconds"][name] for name in REASONS), *_marks(found).values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    good = all(isinstance(n, int | float) and 0 <= n < float("inf") for n in numbers)
    return found | {"seconds": {name: found["seconds"][name] for name in REASONS}} if good else None


def _marks(account: dict) -> dict[int, float]:
    return {int(step): seconds for step, seconds in account.get("marks", {}).items()}


def _process_start() -> float:
    """When this process began, where the system tells it, else now."""
    try:
        with open("/proc/self/stat") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        age = 0.0
    return time.time() - max(0.0, age)
