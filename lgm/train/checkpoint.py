"""Orbax checkpoints: the train state and the data iterator's position, written whole or not at all."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from lgm.parsing import ConfigError


class Checkpoints:
    """The checkpoints of one run, kept under `workdir/checkpoints`, named by step."""

    def __init__(self, workdir: str | Path, keep: int = 2):
        logging.getLogger("absl").setLevel(logging.ERROR)  # orbax narrates every file it writes
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


def restore_weights(workdir: str | Path, abstract_state: Any) -> tuple[Any, int]:
    """(state, step) of a run's newest checkpoint, for sampling and evaluation. Raises ConfigError if there is none."""
    path = Path(workdir)
    if not (path / "checkpoints").is_dir():
        raise ConfigError(f"{path}/checkpoints is not there; train first, or give another --workdir")
    checkpoints = Checkpoints(path)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])  # whatever mesh the run was trained on
    abstract_state = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here), abstract_state)
    try:
        step = checkpoints.latest()
        state, _ = checkpoints.restore(abstract_state, step)
        return jax.block_until_ready(state), step
    finally:
        checkpoints.close()
