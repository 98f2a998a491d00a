"""A run's folder is held by one process at a time: `lock.json` in it says by which, since when, and that it lives.

The holder writes a beat every few seconds. A lock whose holder is a process of this machine is judged by that process:
it lives or it is dead, and one whose supervisor is dead is about to end and waited for. Any other is watched: whoever
sees its beat change leaves it alone, and whoever does not for `SILENCE` seconds takes it over. No clock is compared
with another's.
"""

import contextlib
import datetime
import hashlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import jax

from lgm import files
from lgm.parsing import ConfigError
from lgm.processes import member

NAME = "lock.json"
BEAT, SILENCE = 5.0, 30.0  # seconds between beats, and without one after which a holder elsewhere is dead


class Lock:
    """What a holder has: `lost` is set when another has taken the folder over."""

    def __init__(self, path: Path):
        self.path, self.lost, self._ended = path, False, threading.Event()
        self.mine = {"host": socket.gethostname(), "machine": _machine(), "process": os.getpid(),
                     "started": _started(os.getpid()), "supervisor": _supervisor(), "id": uuid.uuid4().hex, "beat": 0,
                     "since": datetime.datetime.now().astimezone().isoformat(timespec="seconds")}

    def check(self) -> None:
        """Raise RuntimeError, one line, where another process has taken the folder over."""
        if self.lost:
            raise RuntimeError(f"{self.path.parent} has been taken over by {_holder(_read(self.path))}")

    def take(self) -> None:
        """Hold the folder. Raises ConfigError, one line, where a process that lives holds it."""
        while not _create(self.path, _bytes(self.mine)):
            dead = wait_for(self.path)
            if dead is not None and _take_over(self.path, dead, _bytes(self.mine)):
                break
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Let go of the folder."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if (_read(self.path) or {}).get("id") == self.mine["id"]:
                self.path.unlink(missing_ok=True)

    def _live(self) -> None:
        while not self._ended.wait(BEAT):
            with contextlib.suppress(Exception):  # a full disk or a store that is away for a while is no reason to stop
                found = _read(self.path)
                if found is not None and found.get("id") != self.mine["id"]:
                    self.lost = True
                    return
                self.mine["beat"] += 1
                files.write_atomically(self.path, _bytes(self.mine))


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[Lock | None]:
    """Hold a run's folder, which is made if need be, as long as the block lasts; of several processes the first holds
    it, and the others have None. Raises ConfigError, one line, where another process holds it."""
    if jax.process_index():
        yield None
        return
    lock = Lock(folder / NAME)
    lock.take()
    try:
        yield lock
    finally:
        lock.release()


def wait_for(path: Path) -> dict | None:
    """What a lock says whose holder is dead, None where there is none. Raises ConfigError, one line, where it lives."""
    found, since = _read(path), time.monotonic()
    while found is not None:
        alive = _lives(found)
        if alive and _left_alone(found) and time.monotonic() - since < SILENCE:
            time.sleep(0.05)
            found = _read(path)
            continue
        if alive is None:  # a process elsewhere, whose beat is watched
            time.sleep(min(1.0, SILENCE / 10))
            again = _read(path)
            if again is None:
                return None
            alive = True if again != found else False if time.monotonic() - since > SILENCE else None
        if alive:
            raise ConfigError(f"{path.parent} is held by {_holder(found)}; wait for it to end, stop it, or give "
                              "another --workdir")
        if alive is False:
            return found
    return None


def _holder(found: dict | None) -> str:
    found = found or {}
    return f"process {found.get('process')} on {found.get('host')} since {found.get('since')}"


def _bytes(lock: dict) -> bytes:
    return (json.dumps(lock, indent=2) + "\n").encode()


def _read(path: Path) -> dict | None:
    """A lock, {} of one that says nothing, None where there is none."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        return {}
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder; a run keeps its lock there: move it away") from None
    return found if isinstance(found, dict) else {}


def _lives(found: dict) -> bool | None:
    """Whether a lock's holder lives; None where this machine cannot know."""
    if found.get("machine") != _machine():
        return None
    process = found.get("process")
    return isinstance(process, int) and process > 0 and _started(process) == found.get("started")


def _supervisor() -> list | None:
    """[process, when it was started] of who supervises this process; None of one that is alone."""
    return [os.getppid(), _started(os.getppid())] if member.joined() else None


def _left_alone(found: dict) -> bool:
    """Whether a holder of this machine, which lives, has lost its supervisor: it ends by itself then."""
    match found.get("supervisor"):
        case [int(process), started]:
            return _started(process) != started
    return False


def _machine() -> str:
    """What two processes have in common that can see each other: the boot of a machine and its space of process ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _started(process: int) -> str | None:
    """When a process of this machine was started, in ticks since boot; None where there is no such process."""
    try:
        words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return None if words[0] in "ZX" else words[19]  # a process that has ended and is not yet reaped holds nothing
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    try:
        os.kill(process, 0)
    except PermissionError:
        return "there"
    except OSError:
        return None
    return "there"


def _create(path: Path, content: bytes) -> bool:
    """Make a file with its content if there is none; whether it was made."""
    if files.is_remote(path):
        if path.exists():
            return False
        try:
            files.filesystem(path).pipe_file(str(path), content, mode="create")
        except FileExistsError:
            return False
        except FileNotFoundError as error:
            raise ConfigError(f"{path.parent} cannot be written ({error}); give a bucket that is there") from None
        return True
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        return False
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(content)
        try:
            os.link(temporary, path)  # whole at once
        except PermissionError:  # a file system without links
            with path.open("xb") as file:
                file.write(content)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _take_over(path: Path, dead: dict, mine: bytes) -> bool:
    """Put another lock in the place of a dead process's; whether that was done.

    Of several that found the same lock dead one may act, who made the file that claims it, and who looks again then.
    """
    claim = path.with_name(f".{path.name}.{hashlib.sha256(_bytes(dead)).hexdigest()[:16]}")
    since = time.monotonic()
    while not _create(claim, mine):
        if _read(path) != dead:
            return False
        if time.monotonic() - since > SILENCE:  # who made it was killed at once
            claim.unlink(missing_ok=True)
        time.sleep(0.05)
    try:
        if _read(path) != dead:
            return False
        files.write_atomically(path, mine)
        return True
    finally:
        claim.unlink(missing_ok=True)
