"""What `lgm sweep` does, once its words are parsed: list a plan, train one run of it, or all that is missing."""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np

from lgm import config as schema
from lgm import files
from lgm.data import open_data
from lgm.data.near_duplicates import overlap
from lgm.parsing import ConfigError
from lgm.scaling import adaptive, one_run, results, together
from lgm.scaling.board import Board
from lgm.scaling.design import Candidates
from lgm.scaling.families import Family
from lgm.scaling.sweep import Run, Sweep, expand, load, parse_sweep, thin, whole
from lgm.train import loop
from lgm.train.lock import NAME as LOCK
from lgm.train.lock import hold, wait_for
from lgm.train.main import keep_freed_memory, tell_place
from lgm.train.opening import use_compilation_cache

LOOKED = 12  # sizes of a ladder among which the next runs are looked for


def run(spec: str, workdir: str, overrides: list[tuple[str, str]], *, only: int | None = None, gather: bool = False,
        list_: bool = False, fill: bool = False) -> int:
    """Run a sweep in `workdir`; returns the exit code: 0 when done, 75 when preempted and saved.

    list_: print the runs instead, one a line, with their number first. only: train the run of that number, by itself
    and without the table, as a cluster's job does. gather: write the table from what is finished, and train nothing.
    fill: choose the sizes of each budget as results come in (`adaptive`).
    """
    place = files.place(workdir, "--workdir")
    plan = load(spec, overrides)
    runs = expand(plan)
    if fill:
        adaptive.check(plan)
        if only is not None or list_:
            raise ConfigError("--adaptive chooses runs as results come in: --only and --list know of none; leave them "
                              "out")
        known = adaptive.shapes(plan)
        runs, filled = _filled(plan, known, place)
    if list_:
        print("\n".join([*listing(runs), *totals(plan, runs)]))
        return 0
    if place.exists() and not place.is_dir():
        raise ConfigError(f"--workdir={workdir} is a file; give a folder")
    if only is not None and not 0 <= only < len(runs):
        raise ConfigError(f"--only={only} is not a run of this plan; --list shows them, 0 to {len(runs) - 1}")
    if not gather:
        if only is None and jax.process_count() > 1:
            raise ConfigError(f"lgm sweep over {jax.process_count()} processes trains one run; give --only=I, its "
                              "number in --list, or start it as one process")
        use_compilation_cache()
        keep_freed_memory()
        tell_place()
        for one in runs if only is None else [runs[only]]:
            results.check(place, one)
        if plan.near_duplicates == "refuse":
            check_heldout(runs if only is None else [runs[only]])
        try:
            if only is None:
                with hold(place):
                    _train(plan, runs, place)
                    while fill and not filled:
                        runs, filled = _filled(plan, known, place)
                        _train(plan, runs, place)
            else:
                wait_for(place / LOCK)  # a sweep of all runs may be on this one
                one_run.train(runs[only], place, say=lambda line: print(line, flush=True))
        except loop.Preempted as error:
            print(f"lgm sweep: {error}", flush=True)
            return error.exit_code
    if only is None:
        rows, missing = results.gather(place, runs)
        table = place / "runs.csv"
        rest = f", {missing} still missing" if missing else f"; now: lgm fit --data={table} --out={place / 'fit'}"
        print(f"{table}: {rows} rows{rest}", flush=True)
    return 0


def check_heldout(runs: list[Run]) -> None:
    """Raise ConfigError, one line, where held-out images of a run are near duplicates of its training images, or may
    be: there are too many to look at."""
    for config in {str(schema.to_dict(one.configs[0])["data"]): one.configs[0] for one in runs}.values():
        images, heldout = open_data(config.data)
        found, line = overlap(images, heldout.take(range(min(len(heldout), config.evaluation.max_images))))
        if found:
            raise ConfigError(f"{line}; their loss is not of unseen images: leave them out by config.base.data."
                              "heldout_where, or set config.near_duplicates='keep'")
        if line:
            raise ConfigError(f"{line}; to call them held out all the same set config.near_duplicates='keep'")


def _filled(plan: Sweep, known, workdir: Path) -> tuple[list[Run], bool]:
    """All runs that results so far ask for, and whether there will be no more."""
    def loss(architecture: str, objective: str, size: int, images: int) -> float | None:
        entry = dict(architecture=architecture, objective=objective, size=size, images=images)
        by_rate: dict[float, list[float]] = {}
        for run in expand(_alone(plan, entry)):
            result = results.read(workdir, run, run.configs[0])
            if result is None:
                return None
            by_rate.setdefault(run.lr, []).append(math.inf if result["diverged"] else result["figures"]["v_loss"])
        return float(min(np.mean(losses) for losses in by_rate.values()))

    wanted, filled = adaptive.entries(plan, known, loss)
    return expand(dataclasses.replace(plan, budgets=(), images=(), also=tuple(wanted))), filled


def _alone(plan: Sweep, entry: dict) -> Sweep:
    """A plan of one entry, whatever its seeds and learning rates."""
    name, objective = entry["architecture"], entry["objective"]
    return dataclasses.replace(
        plan, budgets=(), images=(), also=(entry,), objectives={objective: plan.objectives[objective]},
        architectures={name: dataclasses.replace(plan.architectures[name], sizes=())})


def listing(runs: list[Run]) -> list[str]:
    """One line a run: its number, name, parameters, images of every cooldown, FLOPs and the hash of its last config."""
    width = max(len(one.name) for one in runs)
    return [f"{index:4d}  {one.name:{width}}  params {one.shape.params:.4g}  images "
            f"{','.join(map(str, one.images))}  FLOPs {one.flops:.3g}  config {schema.digest(one.configs[-1])}"
            for index, one in enumerate(runs)]


def totals(plan: Sweep, runs: list[Run]) -> list[str]:
    """What all runs cost, as comment lines; hours where the plan names a machine."""
    flops = sum(one.flops for one in runs)
    rows = sum(len(one.configs) for one in runs)
    lines = [f"# {len(runs)} runs, {rows} rows of runs.csv, {flops:.3g} training FLOPs",
             *(f"# {line}" for line in thin(plan, runs))]
    if plan.machine:
        m = plan.machine
        largest = max(runs, key=lambda one: one.flops)
        hours = m.hours(flops)
        lines.append(f"# {_hours(hours)} of {m.chips} chip{'s' * (m.chips > 1)} of {m.peak / 1e12:g} TFLOP/s at "
                     f"{m.mfu:.0%} MFU, {hours * m.chips:,.1f} chip-hours; the longest run, {largest.name}, takes "
                     f"{_hours(m.hours(largest.flops))}")
    return lines


def candidates(given: dict, family: Family, most: float) -> Candidates:
    """Runs of a family's ladder of at most so many FLOPs, seeds counted: sizes about those of the plan that is given,
    amounts from the table's least to four times its most. Raises ConfigError, one line, where it has no such family."""
    plan = parse_sweep(given)
    pairs = {f"{name} {objective}": (name, objective) for name in plan.architectures for objective in plan.objectives}
    if family.runs.family not in pairs:
        raise ConfigError(f"--sweep: the plan has no family {family.runs.family!r}; is the table of another?")
    name, objective = pairs[family.runs.family]
    architecture = plan.architectures[name]
    tried = np.geomspace(1, 2 * max(architecture.sizes), LOOKED).round().astype(int)
    there = {(run.architecture, run.objective, run.size, images) for run in expand(plan) for images in run.images}
    rows = []
    for size in sorted({*architecture.sizes, *tried.tolist()}):
        entry = dict(architecture=name, objective=objective, size=size, images=int(family.runs.d.max()))
        try:
            run = expand(_alone(plan, entry))[0]
        except ConfigError:  # a size that the ladder, or its learning rates, do not have
            continue
        batch = run.configs[0].batch_size
        for images in np.geomspace(family.runs.d.min(), 4 * family.runs.d.max(), 17):
            images = whole(images, batch)
            flops = run.shape.flops * images * len(plan.seeds)
            if flops <= most and (name, objective, size, images) not in there:
                rows.append((run.shape.params, images, flops, entry | {"images": images}))
    n, d, flops, entries = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Candidates(*(np.array(column, float) for column in (n, d, flops)), entries)


def _hours(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours >= 2 else f"{60 * hours:,.1f} minutes"


def _train(plan: Sweep, runs: list[Run], workdir: Path) -> None:
    """Everything that is missing, group by group.

    Compiling a small group takes one core longer than stepping it takes all: the next group's programs are compiled
    meanwhile by a thread.
    """
    parts = [part for part in _parts(plan, runs) if not all(results.finished(workdir, one) for one in part)]
    architecture = lambda part: plan.architectures[part[0].architecture]

    def prepare(part: list[Run]):
        shared = architecture(part).together > 1
        return thread.submit(together.prepare, part, architecture(part).how, workdir) if shared else None

    with loop.signals() as stop, Board(runs, workdir) as board, ThreadPoolExecutor(1) as thread:
        ahead = prepare(parts[0]) if parts else None
        for part, following in itertools.zip_longest(parts, parts[1:]):
            if number := stop():
                raise loop.Preempted(number, f"before {part[0].name}")
            board.start(part)
            group = ahead.result() if ahead else None
            ahead = prepare(following) if following else None
            if group:
                together.train(group, board.note, board.say, stop)
            else:
                one_run.train(part[0], workdir, board.say, quiet=True)
            board.done(part)


def _parts(plan: Sweep, runs: list[Run]) -> Iterator[list[Run]]:
    """Runs that share a program, at most so many together as their architecture says."""
    for _, members in itertools.groupby(runs, key=lambda one: one.group):
        members = list(members)
        together = plan.architectures[members[0].architecture].together
        for start in range(0, len(members), together):
            yield members[start : start + together]
