"""What a run tells: `metrics.jsonl`, TensorBoard events and a progress bar (plain lines where no one watches)."""

import contextlib
import datetime
import io
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from lgm import files
from lgm.parsing import ConfigError
from lgm.train.trackers import Tracker, ending

SEND = 20.0  # seconds after which rows and events lie in the run's folder


SPEED = ("images_per_second", "step_seconds", "tflops_per_second", "executed_tflops_per_second", "mfu", "goodput")


def tag(name: str, group: str) -> str:
    """What TensorBoard and trackers call a value of metrics.jsonl: in "speed", "seconds" or its row's group, "train" or
    "heldout"."""
    if "/" in name:
        return name
    return f"speed/{name}" if name in SPEED else f"{group}/{name.removeprefix(f'{group}_')}"


class MetricLog:
    """Rows of `metrics.jsonl`, and on an axis of images scalars in TensorBoard and `trackers`; rows after `step` are
    dropped, for a resumed run, whose steps are of `batch_size` images.

    Where it does not write, as in all processes but the first, everything it is told is forgotten. A store's objects
    cannot grow: there both files are written to a temporary folder and sent whole, every `SEND` seconds and at `flush`.
    """

    def __init__(self, workdir: Path, step: int, writes: bool = True, batch_size: int = 1,
                 trackers: Sequence[Tracker] = ()):
        self.file, self.events, self.writes, self.trackers = None, None, writes, trackers
        if not writes:
            return
        self.path, self.workdir = workdir / "metrics.jsonl", workdir
        self.remote, self.sent = files.is_remote(workdir), 0.0
        self.temporary = tempfile.TemporaryDirectory(prefix="lgm-logs-") if self.remote else None
        if self.path.exists() and not self.path.is_file():
            kind = "folder" if self.path.is_dir() else "pipe or device"
            raise ConfigError(f"{self.path} is a {kind}; a run writes its metrics there: move it away")
        again = self.path.exists()
        # one that was killed before its first checkpoint begins anew, with the measurement before the first step
        rows = self.path.read_bytes().splitlines() if again and step else []
        kept = b"".join(row + b"\n" for row in rows if _step_of(row) <= step)
        files.write_atomically(self.path, kept)
        here = Path(self.temporary.name) if self.remote else Path(os.path.abspath(workdir))
        if self.remote:
            (here / self.path.name).write_bytes(kept)
        self.file = (here / self.path.name).open("a")
        # written by this thread: a full disk is then an error here, not a writer's thread that has died in silence
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
        self.events = RecordWriter((here / name).open("ab"))
        self._event(file_version="brain.Event:2")
        if again:
            self._event(step=step and step * batch_size + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, images: int, values: dict[str, float], group: str = "train") -> None:
        """Append one row and its scalars, of the group "train" or "heldout"."""
        if self.file is None:
            return
        values = {k: float(v) for k, v in values.items()}
        self.file.write(json.dumps({"step": step, "images": images, **values}) + "\n")
        self.file.flush()
        scalars = {tag(name, group): value for name, value in values.items()}
        for name, value in scalars.items():
            self._event(step=images, summary=Summary(value=[Summary.Value(tag=name, simple_value=value)]))
        for tracker in self.trackers:
            tracker.write(images, scalars)
        if time.monotonic() - self.sent > SEND:
            self.flush()

    def image(self, images: int, name: str, picture_HWC: np.ndarray) -> None:
        """A picture in TensorBoard and trackers."""
        for tracker in self.trackers:
            tracker.image(images, name, picture_HWC)
        if self.events:
            (height, width, channels), png = picture_HWC.shape, io.BytesIO()
            Image.fromarray(picture_HWC).save(png, "PNG")
            image = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=png.getvalue())
            self._event(step=images, summary=Summary(value=[Summary.Value(tag=name, image=image)]))

    def _event(self, **parts) -> None:
        self.events.write(Event(wall_time=time.time(), **parts).SerializeToString())

    def flush(self) -> None:
        """Have all that was written lie in the run's folder."""
        if self.file is None:
            return
        self.events.flush()
        if self.remote:
            for file in files.folders(Path(self.temporary.name)):
                files.write_atomically(self.workdir / file.name, file.read_bytes())
        self.sent = time.monotonic()

    def close(self) -> None:
        """Flush and close both files; what failed before is not said a second time."""
        if self.file is None:
            return
        error = sys.exc_info()[1]
        for tracker in self.trackers:
            tracker.close(ending(error))
        try:
            self.flush()
        except OSError:
            if error is None:
                raise
        finally:
            for part in (self.file, self.events):
                with contextlib.suppress(OSError):
                    part.close()
            if self.temporary:
                self.temporary.cleanup()


def _step_of(row: bytes) -> float:
    """A row's step; infinity, so that the row is dropped, of one that was cut short by a kill or is none of ours."""
    try:
        step = json.loads(row)["step"]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return float("inf")
    return step if isinstance(step, int) and not isinstance(step, bool) else float("inf")


class ProgressLine:
    """A bar with loss, seconds a step, images/s, TFLOP/s and time left on a terminal; one line a log step elsewhere.

    The time left is of the rate since the first step of this start, whose compiling is not in it."""

    def __init__(self, total_images: int, images: int, quiet: bool = False):
        self.console = Console(file=sys.stderr, soft_wrap=True)
        self.total, self.quiet = total_images, quiet
        self.start = self.first = self.bar = None
        if self.console.is_terminal and not quiet:
            columns = (TextColumn("{task.completed:,}/{task.total:,} images"), BarColumn(bar_width=None),
                       TextColumn("{task.fields[note]}"), TimeRemainingColumn())
            self.bar = Progress(*columns, console=self.console)
            self.task = self.bar.add_task("train", total=total_images, completed=images, note="compiling")
            self.bar.start()

    def advance(self, images: int) -> None:
        """Move the bar; the first time after the step was compiled."""
        if self.start is None:
            self.start, self.first = time.monotonic(), images
        if self.bar:
            self.bar.update(self.task, completed=images)

    def note(self, images: int, values: dict[str, float]) -> None:
        """Show the newest metrics."""
        parts = [f"{name} {value:.4g}" for name, value in values.items()]
        if self.bar:
            self.bar.update(self.task, completed=images, note="  ".join(parts))
        elif not self.quiet:
            if self.first is not None and images > self.first:
                rate = (images - self.first) / max(time.monotonic() - self.start, 1e-9)
                parts.append(f"{datetime.timedelta(seconds=round((self.total - images) / rate))} left")
            self.say(f"{images:>9,}/{self.total:,} images  " + "  ".join(parts))

    def say(self, line: str) -> None:
        """A line that stays."""
        if not self.quiet:
            self.console.print(line, highlight=False, markup=False)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self.bar:
            self.bar.stop()
