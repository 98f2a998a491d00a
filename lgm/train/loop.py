"""The one training loop: any task, resumed bit for bit from its folder."""

import contextlib
import dataclasses
import errno
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lgm import config as schema
from lgm import files
from lgm.config import Config
from lgm.parallel import Layout, put_batch
from lgm.parallel.chips import peak_flops
from lgm.parsing import ConfigError
from lgm.processes import PREEMPTED, member
from lgm.train.checkpoint import Checkpoints
from lgm.train.divergence import Diverged, Watch
from lgm.train.extending import EXTENDED, check_extension, may_extend, recorded
from lgm.train.failure import report_non_finite
from lgm.train.goodput import Ledger
from lgm.train.lock import NAME as LOCK
from lgm.train.lock import hold, wait_for
from lgm.train.logs import MetricLog, ProgressLine
from lgm.train.optimizer import build_optimizer, learning_rate
from lgm.train.placing import placed_step, state_shardings
from lgm.train.state import Draw, Loss, TrainState, init_state, run_once
from lgm.train.steady import compiled_ahead, compiled_once, guarded
from lgm.train.trackers import check_installed, open_trackers


@dataclasses.dataclass(frozen=True)
class Task:
    """What is trained. The loop knows nothing else of models or data.

    `frozen` holds arrays that the loss reads and never changes; they are arguments of the compiled step, not constants.
    """

    init: Callable[[jax.Array], Any]
    logical_axes: Any
    loss: Loss
    frozen: Any
    batches: Any  # an iterator with get_state() and set_state()
    flops: float  # of a step on one image, by the models' standard counts
    executed_flops: float  # of the same, as computed
    heldout: Callable[[Any], dict[str, float]]
    pictures: Callable[[Any, Path | None], np.ndarray]  # (weights, path of the PNG to write) -> the picture [H, W, 3]
    start: Callable[[Any], Any] | None = None  # shardings -> the weights to start from, where `init` does not draw them
    draw: Draw | None = None


class Preempted(Exception):
    """A signal arrived and the state is saved; running the same command again goes on from there."""

    def __init__(self, number: int, where: str):
        interrupted = number == signal.SIGINT
        said = "interrupted" if interrupted else "stopped by SIGTERM"
        super().__init__(f"{said} {where}; the same command goes on from there")
        self.exit_code = 130 if interrupted else PREEMPTED
        self.ending = "interrupted" if interrupted else "preempted"  # what trackers are told: it has not failed


def train(config: Config, workdir: str | Path, make_task: Callable[[Config, Layout, Path], Task], layout: Layout,
          quiet: bool = False, extend: bool = False) -> TrainState:
    """Train until `config.total_images`, starting from the folder's newest checkpoint if there is one.

    With `extend` the folder's run may be one of other `lgm.train.extending.EXTENDABLE` values, and goes on with these.
    Of several processes all run this; only the first holds the folder and writes what there is one of.
    """
    workdir = files.place(workdir, "--workdir")
    if jax.process_index() == 0:
        wait_for(workdir / LOCK)  # a second start ends here, before any work
    check_workdir(config, workdir, extend)
    check_installed(config)
    member.barrier("the same config", schema.digest(config))
    task = make_task(config, layout, workdir)  # before anything is written: a bad source must leave no folder behind
    member.barrier("data is ready")
    optimizer = build_optimizer(config)
    create = lambda: init_state(task.init(jax.random.key(config.seed)), optimizer)
    abstract = jax.eval_shape(create)
    places = state_shardings(layout, abstract, task.logical_axes, config)
    with _room(workdir), hold(workdir) as lock, signals() as stop:
        claim_workdir(config, workdir)
        member.barrier("the folder is held")
        checkpoints = Checkpoints(workdir, config.log.keep)
        step, batch = placed_step(config, task.loss, task.draw, optimizer, layout, places), None
        here = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, places)
        if checkpoints.latest() is None and jax.process_count() == 1:
            batch = put_batch(layout, next(task.batches))
            step = compiled_ahead(step, here, task.frozen, batch)
        run = _Run(config, workdir, task, layout, checkpoints, compiled_once(step), quiet, lock, stop, batch)
        try:
            if checkpoints.latest() is None and task.start is not None:
                start = run_once(lambda params: init_state(params, optimizer), out_shardings=places)
                state = start(task.start(places.params))
            elif checkpoints.latest() is None:
                state = run_once(create, out_shardings=places)()
            else:
                state, data_state = checkpoints.restore(here, repair=True)
                task.batches.set_state(data_state["batches"])
                run.watch = Watch.of(config, data_state["loss"])
            return run.until_done(state)
        finally:
            run.close()


@contextlib.contextmanager
def signals() -> Iterator[Callable[[], int]]:
    """Tells which of SIGTERM and a terminal's interrupt has arrived, or 0; a second interrupt interrupts.

    Of several processes JAX's preemption service tells, and their supervisors hear of interrupts.
    """
    arrived: list[int] = []

    def hear(number: int, _frame) -> None:
        arrived.append(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            print("interrupted: the run is saved at its next step; interrupt again to stop at once", file=sys.stderr)

    heard = [] if member.joined() else [signal.SIGTERM]
    if heard and callable(signal.getsignal(signal.SIGINT)):  # which a shell's job in the background does not hear
        heard.append(signal.SIGINT)
    try:
        previous = {number: signal.signal(number, hear) for number in heard}
    except ValueError:  # not the main thread: whoever runs the loop there handles signals
        previous = {}
    try:
        yield lambda: arrived[0] if arrived else 0
    finally:
        for number, handler in previous.items():
            if handler is not None:  # one that was not Python's cannot be put back
                signal.signal(number, handler)


@contextlib.contextmanager
def _room(workdir: Path) -> Iterator[None]:
    """What is raised where no space is left names the folder."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(f"{workdir} cannot be written: no space is left; the checkpoints there are whole, and the same "
                      "command goes on from the last") from error


def check_workdir(config: Config, workdir: Path, extend: bool = False) -> None:
    """Refuse a folder that holds another config's run, naming the first key that differs.

    Where nothing has been trained yet, as in one that was just imported, the config may still change; later only what
    says where a step is computed (`lgm.config.PLACING`), and with `extend` what a run can go on with otherwise.
    """
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"--workdir={workdir} is a file; give a folder")
    path = workdir / "config.json"
    begun = path.exists() and any((workdir / name).exists() for name in ("checkpoints", "metrics.jsonl"))
    if not begun:
        if extend:
            raise ConfigError(f"--extend: --workdir={workdir} holds no run to go on with; train it without --extend")
        return
    theirs = files.read_json(path, "give another --workdir")
    if not isinstance(theirs, dict):
        raise ConfigError(f"{path} is no run's config.json; give another --workdir")
    theirs.pop(EXTENDED, None)
    if extend:
        return check_extension(config, theirs, workdir)
    if (key := schema.other_run(config, theirs)) is not None:
        name, mine, other = key
        more = "" if not may_extend(name) else "; --extend goes on with the new value"
        raise ConfigError(f"--workdir={workdir} holds a run with config.{name}={other!r}, not {mine!r}; give another "
                          f"--workdir, or the same config to go on with it{more}")


def claim_workdir(config: Config, workdir: Path) -> None:
    """Create the folder and write the resolved config, with what it was before each extension."""
    if jax.process_index() == 0:
        path = workdir / "config.json"
        values = recorded(schema.to_dict(config), files.read_json(path) if path.is_file() else {}, workdir)
        files.write_json(path, values)


class _Run:
    """One pass of the loop: the things it holds open."""

    def __init__(self, config, workdir, task, layout, checkpoints, step_function, quiet, lock, stop, batch=None):
        self.config, self.workdir, self.task, self.layout = config, workdir, task, layout
        self.checkpoints, self.step_function, self.quiet, self.lock = checkpoints, step_function, quiet, lock
        self.rate, self.stop = jax.jit(learning_rate(config)), stop
        self.batch, self.first = batch, jax.process_index() == 0  # the next step's, where it is known already
        self.log = self.progress = self.ledger = None
        self.watch, self.watched = Watch.of(config), 0

    def until_done(self, state: TrainState) -> TrainState:
        config, task = self.config, self.task
        step = self.watched = int(state.step)
        self.ledger = Ledger(self.workdir, step, writes=self.first)
        trackers = open_trackers(config, self.workdir) if self.first else ()
        self.log = MetricLog(self.workdir, step, self.first, config.batch_size, trackers)
        self.progress = ProgressLine(config.total_images, step * config.batch_size, self.quiet or not self.first)
        if step == 0:
            self.measure(state, 0)
        pending = None  # the step whose metrics have not been looked at yet: the device never waits for the host
        self.clock, self.clock_step = time.monotonic(), step
        self.ledger.turn("step")
        while step < config.steps:
            with guarded(pending is not None):  # all but the first step, measurements and checkpoints
                with self.ledger.spent("data"):
                    batch, self.batch = self.batch or put_batch(self.layout, next(task.batches)), None
                with self.ledger.stepping():
                    state, metrics = self.step_function(state, task.frozen, batch)
                step += 1
                if pending is None and not self._due(step, config.log.every_images):  # images/s counts no compiling
                    jax.block_until_ready(metrics["loss"])
                    self.clock, self.clock_step = time.monotonic(), step
                member.at_step(step)
                if pending:
                    self._check(state, *pending)
                pending = (step, metrics, batch)
                self.progress.advance(step * config.batch_size)
                if self._due(step, config.log.every_images):
                    self._check(state, *pending)
                    self._log(step, metrics)
            paused = time.monotonic()
            self.measure(state, step)  # before the checkpoint, so that a run resumed there has its rows
            stop = signal.SIGTERM * member.stop_agreed() if member.joined() else self.stop()
            if stop or self._due(step, config.log.checkpoint_every_images):
                self._save(state, *pending)
            if stop and step < config.steps:
                self.checkpoints.wait()
                raise Preempted(stop, f"at step {step}")
            self.clock += time.monotonic() - paused  # images/s counts training alone
        with self.ledger.spent("checkpoint"):
            self.checkpoints.wait()
        member.barrier("end of training")
        return state

    def measure(self, state: TrainState, step: int) -> None:
        """Held-out loss and sample pictures, when due; both use the EMA weights."""
        config = self.config
        images = step * config.batch_size
        if step and self._due(step, config.evaluation.every_images) or step in (0, config.steps):
            with self.ledger.spent("evaluation"):
                values = self.task.heldout(state.ema)
            if values:
                self.log.write(step, images, values, "heldout")
                self.progress.say(f"held-out at {images:,} images: " +
                                  "  ".join(f"{k} {v:.4g}" for k, v in values.items()))
        drawn = config.sampling.count or config.sampling.prompts
        if drawn and (step and self._due(step, config.sampling.every_images) or step == config.steps):
            path = self.workdir / "samples" / f"{images:09d}.png"
            with self.ledger.spent("pictures"):
                picture = self.task.pictures(state.ema, path if self.first else None)
            self.log.image(images, "samples", picture)
            self.progress.say(f"samples at {images:,} images: {path}")

    def close(self) -> None:
        """Release files and threads, whatever happened."""
        failed = sys.exc_info()[1] is not None
        with contextlib.ExitStack() as stack:  # the last first, whatever fails
            for part in filter(None, (self.log, self.progress)):
                stack.callback(part.close)
            if self.ledger:
                stack.enter_context(contextlib.suppress(OSError) if failed else contextlib.nullcontext())
                stack.callback(self.ledger.write)
            stack.callback(self.checkpoints.close)

    def _due(self, step: int, every_images: int) -> bool:
        """True once for each multiple of `every_images` that a step reaches or passes, and at the end."""
        size = self.config.batch_size
        return bool(every_images) and (step * size // every_images > (step - 1) * size // every_images
                                       or step == self.config.steps)

    def _check(self, state: TrainState, step: int, metrics: dict, batch: dict) -> None:
        if step == self.watched:  # the last step before a row or a checkpoint is looked at there, and again by the next
            return
        loss, norm = jax.device_get([metrics["loss"], metrics["grad_norm"]])
        if not np.isfinite([loss, norm]).all():
            with guarded(False):
                report_non_finite(self.workdir, self.task, self.config, self.layout, state, step, metrics, batch)
        self.watched = step
        if line := self.watch.see(step, float(loss)):
            raise Diverged(line)

    def _save(self, state: TrainState, step: int, metrics: dict, batch: dict) -> None:
        self._check(state, step, metrics, batch)
        if self.lock:
            self.lock.check()
        self.log.flush()  # a run that is resumed at a checkpoint has the rows up to it
        with self.ledger.spent("checkpoint"):
            self.checkpoints.save(step, state, {"batches": self.task.batches.get_state(), "loss": self.watch.state})
        self.ledger.saved(step)

    def _log(self, step: int, metrics: dict) -> None:
        lr = self.rate(jax.device_put(np.int32(step - 1)))
        metrics = {k: float(v) for k, v in jax.device_get(metrics | {"lr": lr}).items()}
        images = step * self.config.batch_size
        rate = (step - self.clock_step) * self.config.batch_size / (time.monotonic() - self.clock)
        self.clock, self.clock_step = time.monotonic(), step
        speed = {"images_per_second": rate, "step_seconds": self.config.batch_size / rate,
                 "tflops_per_second": self.task.flops * rate / 1e12,
                 "executed_tflops_per_second": self.task.executed_flops * rate / 1e12}
        if (peak := peak_flops(jax.devices()[0])) is not None:
            speed["mfu"] = speed["tflops_per_second"] * 1e12 / (peak * jax.device_count())
        self.log.write(step, images, {**metrics, **speed, **self.ledger.row()})
        self.ledger.write()
        self.progress.note(images, {"loss": metrics["loss"], "s/step": speed["step_seconds"], "images/s": rate,
                                    "TFLOP/s": speed["tflops_per_second"]})
