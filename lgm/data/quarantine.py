"""Bad records of a run: noted once each in a file of its folder, with the reason; too many of them end the run."""

import json
import threading
from pathlib import Path

from lgm import files
from lgm.data.sources.source import Bad


class Quarantine:
    """Records of a set that turned out to be bad while a run reads it, after those that opening it found.

    At most `opened.share` of all `count` records may be; a process of several knows of its own alone, and takes the
    others to have found as many. Safe to use from several threads.
    """

    def __init__(self, path: Path, opened: Bad, count: int, process: int = 0, processes: int = 1):
        self.path = path if process == 0 else path.with_name(f"{path.stem}-{process}{path.suffix}")
        self.opened, self.count, self.processes = opened, count + len(opened.found), processes
        self.lock = threading.Lock()
        self.noted: dict[int, str] = {}
        self.written = 0
        self.lines: dict[str, None] | None = None  # what the file holds, once it was looked at

    def note(self, number: int, reason: str) -> None:
        """Note a record. Raises ValueError, one line, where it makes them too many."""
        with self.lock:
            self.noted.setdefault(number, reason)
            found = len(self.opened.found) + len(self.noted) * self.processes
        if found > self.opened.share * self.count:
            share = self.opened.share
            limit = f"; {len(self.noted)} such records are more than config.data.bad_share={share:g}" if share else ""
            raise ValueError(f"{reason}{limit}")

    def write(self) -> None:
        """Write what is new to the file, which lists each record once however often the run is resumed."""
        with self.lock:
            new = len(self.noted) + len(self.opened.found)
            if new == self.written:
                return
            if self.lines is None:
                before = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
                self.lines = dict.fromkeys(before)
            reasons = [reason for _, reason in self.opened.found] + list(self.noted.values())
            self.lines |= dict.fromkeys(json.dumps({"reason": reason}) for reason in reasons)
            files.write_atomically(self.path, "".join(f"{line}\n" for line in self.lines).encode())
            self.written = new
