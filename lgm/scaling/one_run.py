"""One run a process: a trunk and its cooldowns by the ordinary training loop, on whatever mesh its config has.

The trunk goes from one cooldown's start to the next; there its checkpoint is copied into the cooldown's folder, where
it is the checkpoint of an ordinary run that had come so far, and the loop goes on from it as from any other.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import jax

from lgm import files
from lgm.config import Config
from lgm.parallel import agreed
from lgm.processes import member
from lgm.scaling import results
from lgm.scaling.sweep import Run
from lgm.train import loop
from lgm.train.divergence import Diverged
from lgm.train.lock import hold
from lgm.train.main import task_of
from lgm.train.optimizer import decay_start
from lgm.train.placing import layout_of
from lgm.train.saved import newest_checkpoint


def train(run: Run, workdir: Path, say: Callable[[str], None], quiet: bool = False) -> None:
    """Train what is missing of a run; resumes where an earlier call was killed. Raises loop.Preempted on SIGTERM."""
    with hold(workdir / "runs" / run.name):
        member.barrier("the run is held")
        _train(run, workdir, say, quiet)


def _train(run: Run, workdir: Path, say: Callable[[str], None], quiet: bool) -> None:
    # the first process looks, for all to do the same: of a shared folder the others may see an older state
    missing = [config for config in run.configs if agreed(results.read(workdir, run, config) is None)]
    for config in missing:
        place, began = results.folder(workdir, run, config), time.monotonic()
        try:
            source = _trunk(run, workdir, config, quiet)
            _once(lambda: _seed(source, place))
            _loop(config, place, quiet)
        except Diverged as error:
            reason = str(error)
            for rest in missing[missing.index(config):]:
                _once(lambda rest=rest: results.write(workdir, run, rest, {}, diverged=reason))
            say(f"{run.name}: diverged at {config.total_images:,} images: {error}")
            break
        figures = _figures(place, config)
        _once(lambda: results.write(workdir, run, config, figures, time.monotonic() - began))
        say(f"{run.name}: {config.total_images:,} images, loss {figures['v_loss']:.4f}")
    _once(lambda: _remove(p for p in files.folders(workdir / "runs" / run.name) if p.name.startswith("trunk-")))


def _trunk(run: Run, workdir: Path, config: Config, quiet: bool) -> Path | None:
    """A folder whose newest checkpoint is the trunk's at the start of `config`'s cooldown, or at an earlier one's."""
    starts = [decay_start(c) for c in run.configs]
    done = {start: path for start in starts
            if agreed(((path := _trunk_folder(run, workdir, start)) / "done").exists())}
    before = max((step for step in done if step <= decay_start(config)), default=None)
    source = None if before is None else done[before]
    if config is run.configs[-1] or before == decay_start(config):
        return source  # nothing branches off later: the last config's own run goes on from the trunk
    ahead = _trunk_folder(run, workdir, decay_start(config))
    _once(lambda: _seed(source, ahead))
    _loop(_constant(config), ahead, quiet)
    _once(lambda: files.write_atomically(ahead / "done", b""))
    _once(lambda: _remove(done.values()))
    return ahead


def _once(act: Callable[[], object]) -> None:
    """Let the first process act on the shared folder while the others wait."""
    if jax.process_index() == 0:
        act()
    member.barrier("the first process's turn")


def _trunk_folder(run: Run, workdir: Path, start: int) -> Path:
    return workdir / "runs" / run.name / f"trunk-{start}"


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        files.remove(path)


def _seed(source: Path | None, place: Path) -> None:
    """Copy the newest checkpoint of `source` to a run's folder that has none, whole or not at all."""
    if source is None or newest_checkpoint(place) is not None:
        return
    step = newest_checkpoint(source)
    target = place / "checkpoints" / str(step)
    files.remove(target)
    files.write_folder(target, lambda folder: files.copy(source / "checkpoints" / str(step), folder))


def _constant(config: Config) -> Config:
    """The trunk up to a cooldown's start: the same run at a constant rate, without pictures and figures.

    It ends with a checkpoint, for the cooldown to go on from, also where runs are to save none on their way.
    """
    images = decay_start(config) * config.batch_size
    every = config.log.checkpoint_every_images or images
    return dataclasses.replace(
        config, total_images=images, log=dataclasses.replace(config.log, checkpoint_every_images=every),
        optimizer=dataclasses.replace(config.optimizer, schedule="constant"),
        evaluation=dataclasses.replace(config.evaluation, max_images=0, distance=0),
        sampling=dataclasses.replace(config.sampling, count=0, prompts=()),
    )


def _loop(config: Config, place: Path, quiet: bool) -> None:
    loop.train(config, place, task_of(config), layout_of(config), quiet)


def _figures(place: Path, config: Config) -> dict[str, float]:
    """The held-out errors of the last step."""
    rows = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["step"] == config.steps and "v_loss" in row][-1]
    return {name: value for name, value in last.items() if name.startswith(results.FIGURES)}
