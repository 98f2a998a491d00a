"""Several small runs of one shape in one compiled program: seeds, learning rates and lengths are its arguments.

A small run is dear for what surrounds its steps: start-up, encoding and compilation cost more than they do, and a step
of little work leaves an accelerator idle. Here all of that is paid once for many runs. With "vmap" one call steps all
of them, for accelerators; with "turns" one after another, for networks whose operations do not batch over weights: a
convolution then becomes a grouped one, several times slower in XLA.

The next group's programs are compiled, by `prepare` in a thread, while a group is stepped (see `sweeping`).

The runs are those that `lgm train` makes of their configs, from the same batches and keys, up to the rounding of
another program. Within a group they are the same bits however often the sweep is killed and resumed.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lgm import files, weights
from lgm.config import Config
from lgm.data import Bad, ImageSet, open_data, read_cache, write_index, write_shard
from lgm.data.order import shuffled
from lgm.drawing import encode_all
from lgm.evaluate.drawn import check_enough, image_distances
from lgm.evaluate.snr_grid import check_range, snr_errors
from lgm.models import family_of
from lgm.parsing import ConfigError
from lgm.scaling import results
from lgm.scaling.sweep import Run
from lgm.system import System, read_autoencoder
from lgm.train import encoding
from lgm.train.checkpoint import Checkpoints
from lgm.train.denoise import make_draw, make_loss
from lgm.train.divergence import Watch
from lgm.train.loop import Preempted
from lgm.train.optimizer import build_optimizer, decay_start, warmup_stable_decay
from lgm.train.start import open_system
from lgm.train.state import TrainState, init_state, make_step, run_once
from lgm.train.steady import compiled_once

NEVER = 2**30  # the step at which a trunk would cool down
CHUNK = 16  # steps in one call, at most: a call's overhead is shared, and a kill is heard in time
Note = Callable[[int, float], None]  # (images of every run, mean loss)


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs of one shape and what they share. `parts` are the runs, by number, that are stepped by one call."""

    runs: list[Run]
    parts: list[list[int]]
    system: System
    frozen: Any
    data: dict[str, jax.Array]  # batches are rows of it
    heldout: ImageSet
    test: tuple[np.ndarray, np.ndarray, np.ndarray]  # its latents, tokens and mask
    chunk: int
    workdir: Path
    init: Any  # (seed) -> state, compiled; of all runs of a part, as the next
    advance: Any  # see `_advance`

    @property
    def config(self) -> Config:
        """The longest run's; the others differ from it in seed, rate and length only."""
        return self.runs[0].configs[-1]

    def own(self, part: list[int], values: list) -> np.ndarray:
        """What the runs of a part have of their own: an array, or a scalar where they take turns."""
        mine = np.array([values[member] for member in part])
        return mine if self.stacked else mine[0]

    @property
    def stacked(self) -> bool:
        return len(self.parts) == 1

    def seeds(self, part: list[int]) -> np.ndarray:
        return self.own(part, [run.seed for run in self.runs])

    def rates(self, part: list[int]) -> np.ndarray:
        return self.own(part, [np.float32(run.lr) for run in self.runs])

    def rows(self, member: int, step: int) -> np.ndarray:
        """[chunk, batch] rows of the data: those that `lgm.data.batches` serves from this step on."""
        size, count = self.config.batch_size, len(self.data["latent"])
        return shuffled(step * size, (step + self.chunk) * size, count, self.runs[member].seed).reshape(-1, size)

    def step(self, state: TrainState, part: list[int], step: int, line) -> tuple[TrainState, jax.Array]:
        """A part's state `chunk` steps on, and its losses; the rate falls along `line` = (first, last step)."""
        rows = self.own(part, [self.rows(member, step) for member in range(len(self.runs))])
        given = dict(seed=self.seeds(part), rate=self.rates(part), start=line[0], end=line[1], rows=rows)
        return self.advance(state, (self.frozen, self.data), jax.device_put(given))

    def drawing(self) -> Any:
        """What is frozen in the runs with the autoencoder, which those from a cache have only while they draw."""
        return self.frozen if self.config.data.cache is None else self.frozen | read_autoencoder(self.config)

    def weights(self, states: list[TrainState], member: int) -> Any:
        """The EMA weights of one run, with what is frozen."""
        ema = jax.tree.map(lambda leaf: leaf[member], states[0].ema) if self.stacked else states[member].ema
        return self.system.whole(ema, self.frozen)


def prepare(runs: list[Run], how: str, workdir: Path) -> Group:
    """Open a group and compile what it runs by running it once."""
    group = open_group(runs, how, workdir)
    state = group.init(group.seeds(group.parts[0]))
    snr_errors(group.system, group.weights([state], 0), *group.test)
    jax.block_until_ready(group.step(state, group.parts[0], 0, (np.float32(NEVER), np.float32(NEVER + 1))))
    return group


def train(group: Group, note: Note, say: Callable[[str], None], stop: Callable[[], int]) -> None:
    """Train what is missing of a group's runs, which all have the same amounts of data.

    `note` hears of progress, `say` of results; when `stop()` tells a signal the trunk is saved and Preempted raised.
    """
    runs, workdir = group.runs, group.workdir
    place = workdir / "groups" / runs[0].name
    has = lambda run, i: results.read(workdir, run, run.configs[i]) is not None
    missing = [i for i in range(len(runs[0].configs)) if not all(has(run, i) for run in runs)]
    if missing:
        checkpoints = Checkpoints(place, keep=1)
        if (checkpoints.latest() or 0) > decay_start(runs[0].configs[missing[0]]):
            checkpoints.close()  # the plan has a shorter run now, and the trunk is past its cooldown's start
            files.remove(place)
            checkpoints = Checkpoints(place, keep=1)
        try:
            _train(group, missing, checkpoints, note, say, stop)
        finally:
            checkpoints.close()
    files.remove(place)


def open_group(runs: list[Run], how: str, workdir: Path) -> Group:
    """A group of runs, nothing compiled yet. Raises what a config that cannot be trained raises."""
    config = runs[0].configs[-1]
    if varying := config.data.varying:
        raise ConfigError(f"config.data.{varying[0]} asks for what runs that are trained together do not take, who "
                          "have each image once an epoch and as it is; set together=1")
    from_cache = config.data.cache is not None
    system, frozen, _ = open_system(config, cached=from_cache)
    check_range(system)
    bad = Bad(config.data.bad_share)
    images, heldout = open_data(config.data, bad)
    if any(len(texts) > 1 for texts in images.rows.choices()):
        raise ConfigError(f"config.data.caption={config.data.caption!r} names several captions of an image, and one "
                          "is drawn each time; runs that are trained together have one each: set together=1")
    heldout = encoding.measured(config, heldout)
    if from_cache:
        images, _, kept = encoding.cached(config, images, "train")
        heldout, _, kept_heldout = encoding.cached(config, heldout, "heldout")
        kept, kept_heldout = kept["latent"], kept_heldout["latent"]
    else:
        images, heldout = images.whole(bad), heldout.whole(bad)
    check_enough(system, heldout)
    tokens, mask = system.tokenize(images.captions)
    test_tokens = system.tokenize(heldout.captions)
    for run in runs:  # what could be wrong with a config has been found by now
        results.claim(workdir, run)
    if not from_cache:
        kept, kept_heldout = (encoded(system, frozen, some, workdir) for some in (images, heldout))
    arrays = {"latent": np.asarray(kept), "tokens": np.asarray(tokens), "mask": mask}
    test = np.asarray(kept_heldout), *test_tokens
    parts = [list(range(len(runs)))] if how == "vmap" else [[member] for member in range(len(runs))]
    stacked = len(parts) == 1
    init = lambda seed: init_state(system.init(jax.random.key(seed)), build_optimizer(config))
    init = run_once(jax.vmap(init) if stacked else init)
    return Group(runs, parts, system, jax.device_put(frozen), jax.device_put(arrays), heldout, test, _chunk(runs[0]),
                 workdir, init, _advance(config, system, stacked))


def encoded(system: System, frozen, images: ImageSet, workdir: Path) -> np.ndarray:
    """Standardised latents [N, h, w, c] of all images, float32, encoded once a sweep and kept in `workdir/latents`."""
    made_of = {"autoencoder": weights.fingerprint(system.config.autoencoder), "images": images.fingerprint}
    place = workdir / "latents" / "-".join(made_of.values())
    if not (place / "index.json").is_file():
        write_shard(place, 0, {"latent": encode_all(system, frozen, images)}, made_of)
        write_index(place, 1, made_of)
    return np.asarray(read_cache(place, made_of)["latent"])


def _chunk(run: Run) -> int:
    """Steps a call that divide the lengths of trunk and cooldowns, so that one program serves all."""
    if family_of(run.configs[0].model).convolves and jax.default_backend() == "cpu":
        return 1  # XLA:CPU runs a convolution inside a loop many times slower than outside one
    starts = [decay_start(config) for config in run.configs]
    cooled = [config.steps - start for config, start in zip(run.configs, starts, strict=True)]
    common = math.gcd(*starts, *cooled)
    return max(size for size in range(1, CHUNK + 1) if common % size == 0)


def _train(group: Group, missing: list[int], checkpoints: Checkpoints, note: Note, say, stop) -> None:
    runs, began = group.runs, time.monotonic()
    ends = [any((results.read(group.workdir, r, c) or {}).get("diverged") for c in r.configs) for r in runs]
    drive = Drive(group, np.array(ends), note, stop)
    states, step = drive.begin(checkpoints)
    for i in missing:
        config = runs[0].configs[i]
        split = decay_start(config)
        states = drive.go(states, step, split, i, checkpoints=checkpoints)
        if split > (checkpoints.latest() or 0):
            checkpoints.save(split, states, drive.kept())
        before = [dataclasses.replace(watch) for watch in drive.watches]
        cooled = drive.go(jax.tree.map(jnp.copy, states), split, config.steps, i, cooling=True)
        drive.watches, step, losses = before, split, []
        for member, run in enumerate(runs):
            if not drive.diverged[member] and results.read(group.workdir, run, run.configs[i]) is None:
                weights = group.weights(cooled, member)
                figures = snr_errors(group.system, weights, *group.test)
                if config.evaluation.distance:
                    figures |= image_distances(group.system, weights, group.drawing(), group.heldout)
                seconds = (time.monotonic() - began) / len(runs)
                results.write(group.workdir, run, run.configs[i], figures, seconds)
                losses.append(figures["v_loss"])
        began = time.monotonic()
        say(f"{runs[0].group}: {config.total_images:,} images, loss " +
            (f"{min(losses):.4f} to {max(losses):.4f}" if losses else "none") +
            (f", {drive.diverged.sum()} of {len(runs)} diverged" if drive.diverged.any() else ""))


class Drive:
    """Steps a group's states; knows who has diverged, and steps it no more where it has a call of its own."""

    def __init__(self, group: Group, diverged: np.ndarray, note: Note, stop):
        self.group, self.diverged, self.note, self.stop = group, diverged, note, stop
        self.watches = [Watch.of(group.config) for _ in group.runs]

    def kept(self) -> dict:
        """What a checkpoint keeps beside the states."""
        return {"losses": [watch.state for watch in self.watches]}

    def begin(self, checkpoints: Checkpoints) -> tuple[list[TrainState], int]:
        """The trunk's newest states, one a part, and their step."""
        seeds = [self.group.seeds(part) for part in self.group.parts]
        if checkpoints.latest() is None:
            return [self.group.init(seed) for seed in seeds], 0
        states, kept = checkpoints.restore([jax.eval_shape(self.group.init, seed) for seed in seeds], repair=True)
        self.watches = [Watch.of(self.group.config, state) for state in kept["losses"]]
        return states, checkpoints.latest()

    def go(self, states: list[TrainState], step: int, until: int, amount: int, cooling: bool = False,
           checkpoints: Checkpoints | None = None) -> list[TrainState]:
        """Step every part to `until`; a cooldown lowers the rate from `step` to there."""
        group, size = self.group, self.group.config.batch_size
        line = (np.float32(step), np.float32(until)) if cooling else (np.float32(NEVER), np.float32(NEVER + 1))
        every = group.config.log.checkpoint_every_images
        waiting: list[tuple[int, dict[int, jax.Array]]] = []
        while step < until:
            losses = {}
            for place, part in enumerate(group.parts):
                if not self.diverged[part].all():
                    states[place], losses[place] = group.step(states[place], part, step, line)
            step += group.chunk
            if not losses:
                continue
            waiting.append((step, losses))
            if len(waiting) > 1:  # the device has the next call before the host looks at the last one's losses
                self.look(*waiting.pop(0), amount)
            due = every and step * size // every > (step - group.chunk) * size // every
            if checkpoints and step < until and (due or self.stop()):
                self.look(*waiting.pop(), amount)
                checkpoints.save(step, states, self.kept())
            if self.stop():
                if checkpoints:
                    checkpoints.wait()
                raise Preempted(self.stop(), f"in {group.runs[0].group}")
        for pair in waiting:
            self.look(*pair, amount)
        return states

    def look(self, step: int, losses: dict[int, jax.Array], amount: int) -> None:
        """Tell of progress, and record runs that have diverged: they have no result from this amount on. `losses`
        [chunk, runs of a part] of parts by number."""
        last = []
        for place, values in jax.device_get(losses).items():
            values = np.reshape(values, (self.group.chunk, -1))
            last += values[-1][np.isfinite(values[-1])].tolist()
            for member, column in zip(self.group.parts[place], values.T, strict=True):
                if not self.diverged[member] and (reason := self._wrong(member, step, column)):
                    self._end(member, amount, reason)
        self.note(step * self.group.config.batch_size, float(np.mean(last)) if last else float("nan"))

    def _wrong(self, member: int, step: int, losses: np.ndarray) -> str | None:
        if not np.isfinite(losses).all():
            return f"the loss is not finite by step {step}; a lower rate may do"
        first, see = step - len(losses) + 1, self.watches[member].see
        return next(filter(None, [see(first + i, float(loss)) for i, loss in enumerate(losses)]), None)

    def _end(self, member: int, amount: int, reason: str) -> None:
        self.diverged[member] = True
        run = self.group.runs[member]
        for config in run.configs[amount:]:
            if results.read(self.group.workdir, run, config) is None:
                results.write(self.group.workdir, run, config, {}, diverged=reason)


def _advance(config: Config, system: System, stacked: bool):
    """`advance(state, (frozen, data), given) -> (state, losses [K])`, compiled once, with "seed", "rate", "start",
    "end" and "rows" [K, B] in `given`."""
    loss, draw = make_loss(config, system), make_draw(config, system)
    warmup = round(config.optimizer.warmup_images / config.batch_size)

    def advance(state, fixed, given):
        (frozen, data), rows_KB = fixed, given["rows"]
        schedule = lambda step: warmup_stable_decay(step, given["rate"], warmup, given["start"], given["end"],
                                                    config.optimizer.final)  # fmt: skip
        step = make_step(dataclasses.replace(config, seed=given["seed"]), loss, build_optimizer(config, schedule), draw)

        def one(state, rows_B):
            state, metrics = step(state, frozen, {name: array[rows_B] for name, array in data.items()})
            return state, jnp.where(jnp.isfinite(metrics["grad_norm"]), metrics["loss"], jnp.nan)

        if len(rows_KB) > 1:
            return jax.lax.scan(one, state, rows_KB)
        state, value = one(state, rows_KB[0])
        return state, value[None]

    if stacked:
        # losses of all runs, step by step
        own = dict(seed=0, rate=0, start=None, end=None, rows=0)
        advance = jax.vmap(advance, in_axes=(0, None, own), out_axes=(0, 1))
    # a small network's program takes longer to compile than to run: level 1 takes three quarters of the default's time,
    # and its steps are as fast, products being a library's
    level = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    return compiled_once(jax.jit(advance, donate_argnums=0, compiler_options=level))
