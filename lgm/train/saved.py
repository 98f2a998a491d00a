"""Which checkpoints a run's folder has, told by their names alone."""

from pathlib import Path

from lgm import files

COMMITTED = "commit_success.txt"  # the object that ends a checkpoint in a store; Orbax's own name for it


def complete_steps(checkpoints: Path) -> list[int]:
    """The steps of the checkpoints in a folder, the newest first; in a store of those that were ended."""
    steps = {int(path.name) for path in files.folders(checkpoints) if path.name.isascii() and path.name.isdigit()}
    whole = lambda step: not files.is_remote(checkpoints) or (checkpoints / str(step) / COMMITTED).exists()
    return sorted(filter(whole, steps), reverse=True)


def newest_checkpoint(workdir: Path) -> int | None:
    """The step of a run's newest checkpoint, None where it has none."""
    return next(iter(complete_steps(workdir / "checkpoints")), None)
