"""Orbax checkpoints: the train state and the data iterator's position, written whole or not at all."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from lgm.parsing import ConfigError


class Checkpoints:
    """The checkpoints of one run, kept under `workdir/checkpoints`, named by step."""

    def __init__(self, workdir: str | Path, keep: int = 2):
        quiet()
        self.path = Path(workdir).resolve() / "checkpoints"
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
        self.manager = ocp.CheckpointManager(self.path, options=options)

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return self.manager.latest_step()

    def save(self, step: int, state: Any, data_state: dict) -> None:
        """Start writing; returns once the arrays are copied off the device."""
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data_state))
        self.manager.save(step, args=args, force=True)

    def restore(self, abstract: Any, step: int | None = None) -> tuple[Any, dict]:
        """(state, data state) of `step` or of the newest; `abstract` gives shapes, types and shardings."""
        step = self.latest() if step is None else step
        if step is None:
            raise ConfigError(f"{self.path} holds no checkpoint; train first, or give another --workdir")
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore())
        try:
            restored = self.manager.restore(step, args=args)
        except Exception as error:
            line = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            place = self.path / str(step)
            raise ConfigError(f"{place} cannot be read ({line}); delete it to use an older one") from error
        return restored["state"], restored["data"]

    def wait(self) -> None:
        """Block until what was saved is on disk."""
        self.manager.wait_until_finished()

    def close(self) -> None:
        """Wait and release the manager's threads."""
        self.manager.close()


def newest_first(folder: Path) -> list[int]:
    """Steps of the complete checkpoints in a folder of them."""
    return sorted(ocp.utils.checkpoint_steps(folder), reverse=True) if folder.is_dir() else []


def quiet() -> None:
    """Orbax narrates every file it reads and writes; only what goes wrong is of interest."""
    logging.getLogger("absl").setLevel(logging.ERROR)
