"""Orbax checkpoints: the train state and the data iterator's position, written whole or not at all."""

import errno
import logging
import shutil
import sys
import tempfile
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from lgm import files
from lgm.parsing import ConfigError
from lgm.processes import member
from lgm.train.saved import COMMITTED, complete_steps
from lgm.train.seal import SEAL, check_seal, seal

OVERHEAD = 2048  # bytes that Orbax's files need for each array beside its values (90 KB for one, 1.8 MB for 1,000)

class Checkpoints:
    """The checkpoints of one run, kept under `workdir/checkpoints`, named by step.

    Orbax itself writes to the file system and to gs://. It has no driver for s3://: there a checkpoint is written to a
    temporary folder, sent whole by a thread, and ended by the object `COMMITTED`; one process alone can do that.
    """

    def __init__(self, workdir: str | Path, keep: int = 2):
        quiet()
        self.path, self.keep = files.place(workdir) / "checkpoints", keep
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{self.path} is a file; a run keeps its checkpoints there: move it away")
        self.staged = str(self.path).startswith("s3://")
        if self.staged and jax.process_count() > 1:
            raise ConfigError(f"{self.path}: checkpoints of several processes cannot be kept in s3://; give a shared "
                              "folder or gs:// as --workdir")
        if not files.is_remote(self.path):
            self.path = Path(self.path).absolute()
            self.path.mkdir(parents=True, exist_ok=True)
        self._temporary = tempfile.TemporaryDirectory(prefix="lgm-checkpoints-") if self.staged else None
        self._thread = ThreadPoolExecutor(1)
        self._ending: Future | None = None
        self._stop = threading.Event()
        options = ocp.CheckpointManagerOptions(max_to_keep=1 if self.staged else keep, create=True,
                                               enable_async_checkpointing=True)
        here = Path(self._temporary.name) if self.staged else files.plain(self.path.parent) / "checkpoints"
        self.manager = ocp.CheckpointManager(here, options=options)

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, the newest first."""
        return complete_steps(self.path)

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return next(iter(self.steps()), None)

    def save(self, step: int, state: Any, data_state: dict) -> None:
        """Start writing; returns once the arrays are copied off the device."""
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data_state))
        try:
            self._ended()
            if not files.is_remote(self.path):
                _check_room(self.path, state)
            self.manager.save(step, args=args, force=True)
        except Exception as error:
            raise _unwritten(self.path / str(step), error) from error
        if self.staged:
            self._ending = self._thread.submit(self._send, step)
        elif not files.is_remote(self.path) and jax.process_index() == 0:
            self._stop.clear()
            self._ending = self._thread.submit(self._seal, step)

    def restore(self, abstract: Any, repair: bool = False) -> tuple[Any, dict]:
        """(state, data state) of the newest one that can be read; `abstract` gives shapes and places.

        One that cannot be read is said in one line, and with `repair` moved aside so that its step can be written
        again. Raises ConfigError where none can be read.
        """
        failed = []
        for step in self.steps():
            found, reason = self._try(step, abstract)
            if _agreed(found is not None):
                if repair and jax.process_index() == 0:
                    for other in failed:
                        self._set_aside(other)
                if repair and failed:
                    member.barrier("damaged checkpoints are set aside")
                    self.manager.reload()
                return found
            failed.append(step)
            if jax.process_index() == 0:
                print(f"{self.path / str(step)} cannot be read ({reason}); going on from the one before",
                      file=sys.stderr, flush=True)
        if failed:
            raise ConfigError(f"{self.path} holds no checkpoint that can be read; delete it to train from the start, "
                              "or give another --workdir")
        raise ConfigError(f"{self.path} holds no checkpoint; train first, or give another --workdir")

    def fetch(self, step: int) -> Path:
        """Where Orbax can read a checkpoint: its own folder, or a copy of one that lies in s3://."""
        here = self.manager.directory / str(step)
        if self.staged and not here.exists():
            files.copy(self.path / str(step), here)
            self.manager.reload()
        return here

    def wait(self) -> None:
        """Block until what was saved is on disk or in the store."""
        try:
            self._ended()
        except Exception as error:
            raise _unwritten(self.path, error) from error

    def close(self) -> None:
        """Wait and release the manager's threads; what failed before is not said a second time."""
        failed = sys.exc_info()[1] is not None
        try:
            self._ended()
            self.manager.close()
        except Exception as error:
            if not failed:
                raise _unwritten(self.path, error) from error
        finally:
            self._stop.set()
            self._thread.shutdown()
            if self.staged:
                self._temporary.cleanup()

    def _try(self, step: int, abstract: Any) -> tuple[tuple[Any, dict] | None, str]:
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore())
        try:
            if not files.is_remote(self.path) and jax.process_index() == 0:
                check_seal(self.path / str(step))
            self.fetch(step)
            restored = self.manager.restore(step, args=args)
            return (jax.block_until_ready(restored["state"]), restored["data"]), ""
        except Exception as error:
            return None, first_line(error)

    def _set_aside(self, step: int) -> None:
        """Rename a damaged checkpoint to STEP.damaged, in a store or where it cannot be renamed remove it."""
        damaged = self.path / str(step)
        if self.staged:
            files.remove(Path(self.manager.directory) / str(step))
        if files.is_remote(damaged):
            return files.remove(damaged)
        aside = self.path / f"{step}.damaged"
        files.remove(aside)
        aside.unlink(missing_ok=True)
        damaged.rename(aside)
        damaged.with_suffix(SEAL).unlink(missing_ok=True)

    def _send(self, step: int) -> None:
        """Send a checkpoint to the store, end it by its last object, and remove those that are too many."""
        self.manager.wait_until_finished()
        files.copy(Path(self.manager.directory) / str(step), self.path / str(step))
        files.write_atomically(self.path / str(step) / COMMITTED, b"")
        for old in self.steps()[self.keep :]:
            files.remove(self.path / str(old))

    def _seal(self, step: int) -> None:
        """Once a checkpoint is whole, write what its files hold beside it: Orbax's arrays carry no sums."""
        place = self.path / str(step)
        while not place.is_dir():
            if self._stop.wait(0.1):
                return
        try:
            seal(place)
        except FileNotFoundError:
            return  # a newer one has replaced it
        for path in files.folders(self.path):
            if path.suffix == SEAL and not path.with_suffix("").exists():
                path.unlink(missing_ok=True)

    def _ended(self) -> None:
        """Wait for what is being written. Raises what went wrong."""
        ending, self._ending = self._ending, None
        try:
            self.manager.wait_until_finished()
        except BaseException:
            self._stop.set()
            raise
        finally:
            if ending is not None:
                ending.result()


def quiet() -> None:
    """Orbax narrates every file, and what goes wrong in pages; that is raised too, and said once."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)


def _check_room(path: Path, state: Any) -> None:
    """Refuse to begin what cannot fit: of Orbax's many writes each would fail by itself, with a page of its own."""
    leaves = jax.tree.leaves(state)
    needed = sum(leaf.nbytes for leaf in leaves) + OVERHEAD * (50 + len(leaves))
    free = shutil.disk_usage(path).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"no space is left: {needed / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free")


def _agreed(mine: bool) -> bool:
    """Whether all processes could read a checkpoint: they go on from the same one."""
    if jax.process_count() == 1:
        return mine
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(jax.numpy.int32(mine)).all())


def first_line(error: Exception) -> str:
    """What went wrong, in one line."""
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def _unwritten(path: Path, error: Exception) -> OSError:
    """What a checkpoint that could not be written is said as."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    full = next((cause for cause in causes if isinstance(cause, OSError) and cause.errno == errno.ENOSPC
                 or "No space left" in str(cause)), None)
    reason = first_line(error) if full is None else getattr(full, "strerror", None) or "no space is left"
    return OSError(f"{path} could not be written ({reason}); the checkpoints before it are whole")
