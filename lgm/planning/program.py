"""The real train step of a config, compiled for devices that need not be there.

A process of its own compiles. The compiler's dump of the scheduled program and its buffers is there early, before
machine code is generated, which is most of its work; memory, work, traffic and collectives are read from it. A quick
plan ends the process then. Otherwise the finished program follows, in which a TPU's instructions carry the compiler's
cycles; one for which no code can be generated, as a kernel that wants more of a core's own memory than it may, is told
so. A GPU's instructions carry their cost in the scheduled program already.
"""

import contextlib
import dataclasses
import itertools
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from lgm.config import Config
from lgm.models import Params
from lgm.models.flops import Kernel, kernels_in
from lgm.parallel import AXES, Layout, shardings
from lgm.planning import hlo
from lgm.planning.abstract import abstract_batch, abstract_system, frozen_axes
from lgm.planning.network import Network
from lgm.planning.topology import Topology
from lgm.system import System
from lgm.train.denoise import make_draw, make_loss
from lgm.train.optimizer import build_optimizer
from lgm.train.placing import check_latents, placed_step, state_shardings
from lgm.train.state import TrainState, init_state
from lgm.train.work import training_flops

UNITS = {"": 1.0, "K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}
# what the two processes tell each other
TASK, TRACED, FAILED, FINISHED = "task.pickle", "traced.pickle", "failed.pickle", "finished.txt"
CRASHED = (-signal.SIGABRT, -signal.SIGSEGV)  # where the compiler fails a check of its own
PROGRAM, BUFFERS = "*[._]after_optimizations.txt", "*[._]after_optimizations-buffer-assignment.txt"


class OutOfMemory(Exception):
    """The program does not fit; `needed` (by all but its arguments) and `available` are bytes a device as the compiler
    counts them. `needed` is 0 where the arguments alone do not fit."""

    def __init__(self, needed: float, available: float):
        super().__init__(needed, available)
        self.needed, self.available = needed, available


@dataclasses.dataclass(frozen=True)
class Program:
    """What is known of a step before it is compiled.

    sizes: bytes of each kind of state on one device. mesh: the sizes of all axes. model_flops: of one step on all
    devices, by the models' own counts (`lgm.train.work`). kernels: those that the compiler does not see into. notes:
    what stands in for folders that are not here.
    """

    sizes: dict[str, float]
    mesh: dict[str, int]
    model_flops: float
    kernels: tuple[Kernel, ...]
    network: Network
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler made: the scheduled program, bytes of its temporaries on a device, seconds that it took.

    finished: the program with its code, None where it was not waited for. failed: why there can be no code.
    """

    module: hlo.Module
    temporary: float
    seconds: float
    finished: hlo.Module | None = None
    failed: str = ""


@dataclasses.dataclass(frozen=True)
class Step:
    """What `lgm train` runs of a config: `run(state, frozen, batch)` with the state donated, and its arguments in
    shapes, placed. notes: what stands in for folders that are not here."""

    system: System
    run: Any
    state: TrainState
    frozen: Params
    batch: dict[str, jax.ShapeDtypeStruct]
    notes: tuple[str, ...]


def step_of(config: Config, layout: Layout) -> Step:
    """Loss, gradient, optimizer and EMA of a config, under a layout.

    Raises ConfigError, one line, where the layout cannot split the config's latents.
    """
    system, frozen, notes = abstract_system(config, layout)
    check_latents(config, layout, *system.latent_shape()[:2])
    optimizer = build_optimizer(config)
    state = jax.eval_shape(lambda: init_state(system.init(jax.random.key(config.seed)), optimizer))
    places = state_shardings(layout, state, system.logical_axes(), config)
    state = placed(state, places)
    frozen = placed(frozen, shardings(layout, frozen, frozen_axes(system, frozen)))
    batch = abstract_batch(config, system)
    batch = placed(batch, dict.fromkeys(batch, layout.batch))
    step = placed_step(config, make_loss(config, system), make_draw(config, system), optimizer, layout, places)
    return Step(system, step, state, frozen, batch, notes)


def trace(config: Config, layout: Layout, network: Network) -> tuple[Program, Any]:
    """(what is known, the traced step) of a config's `step_of`."""
    step = step_of(config, layout)
    state, frozen, batch = step.state, step.frozen, step.batch
    traced = step.run.trace(state, frozen, batch)
    parts = dict(parameters=state.params, optimizer=state.opt_state, ema=state.ema, frozen=frozen, batch=batch)
    program = Program(
        {kind: bytes_a_device(tree) for kind, tree in parts.items()}, {a: layout.size(a) for a in AXES},
        training_flops(step.system, frozen) * config.batch_size, kernels_in(traced.jaxpr.jaxpr), network, step.notes,
    )
    return program, traced


def placed(tree: Any, where: Any) -> Any:
    """Abstract arrays with the shardings of `where`."""
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, where)


def bytes_a_device(tree: Any) -> float:
    """Bytes of a tree of abstract arrays in one device's memory, by their shardings; what the host keeps is none."""
    size = lambda leaf: leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
    return float(sum(size(leaf) for leaf in jax.tree.leaves(tree) if leaf.sharding.memory_kind != "pinned_host"))


def compiled(config: Config, topology: Topology, quick: bool = False) -> tuple[Program, Compiled | OutOfMemory]:
    """(what is known before, what the compiler made) of a config's step, in a process of its own.

    quick: without waiting for the code. Raises what that process raised, as ConfigError for what cannot be.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lgm-plan-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / TASK).write_bytes(pickle.dumps((config, topology)))
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "JAX_PLATFORMS": "cpu"}
        with open(folder / "log", "wb") as log:
            process = subprocess.Popen([sys.executable, "-m", "lgm.planning.compiler", name], env=environment,
                                       stdout=log, stderr=log)  # fmt: skip
            try:
                ends = (lambda: _written(folder)) if quick else (folder / FINISHED).exists
                while not (ends() or (folder / FAILED).exists()) and process.poll() is None:
                    time.sleep(0.2)
            finally:
                process.kill()
                process.wait()
        error = pickle.loads((folder / FAILED).read_bytes()) if (folder / FAILED).exists() else None
        scheduled = _written(folder, settled=True)
        if isinstance(error, OutOfMemory):
            return pickle.loads((folder / TRACED).read_bytes()), error
        if error is not None and not (scheduled and isinstance(error, RuntimeError)):
            raise error
        failed = str(error or "")
        if not (scheduled and (quick or error or (folder / FINISHED).exists())):
            tail = " ".join((folder / "log").read_text(errors="replace").split()[-40:])
            if not (scheduled and process.returncode in CRASHED):
                raise RuntimeError(f"the compiler ended with code {process.returncode}: {tail}")
            failed = re.sub(r".*(Check failed: )", r"\1", tail)
        program = pickle.loads((folder / TRACED).read_bytes())
        module = hlo.parse(_largest(folder, PROGRAM).read_text())
        temporary = _temporary(_largest(folder, BUFFERS).read_text())
        finished = hlo.parse((folder / FINISHED).read_text()) if (folder / FINISHED).exists() else None
    return program, Compiled(module, temporary, time.monotonic() - start, finished, " ".join(failed.split())[:300])


def _written(folder: Path, settled: bool = False) -> bool:
    """Whether the compiler has written all of the scheduled program and its buffers; `settled`: it no longer writes."""
    files = [_largest(folder, pattern) for pattern in (PROGRAM, BUFFERS)]
    if None in files:
        return False
    if not settled and time.time() - max(path.stat().st_mtime for path in files) < 1.0:
        return False
    with open(files[0], "rb") as file:
        file.seek(max(0, files[0].stat().st_size - 16))
        return file.read().rstrip().endswith(b"}")


def _largest(folder: Path, pattern: str) -> Path | None:
    """The dump of the step, beside which small ones of constants may lie."""
    with contextlib.suppress(FileNotFoundError):
        return max(folder.glob(pattern), key=lambda path: path.stat().st_size, default=None)
    return None


def _temporary(buffers: str) -> float:
    """Bytes in main memory of what lives for a part of the step, from a dump of the buffer assignment.

    Allocations elsewhere on the chip have a colour. Raises RuntimeError for a dump of another form.
    """
    sizes = re.findall(r"^allocation \d+: size (\d+),(?: page \d+,)? preallocated-temp", buffers, re.MULTILINE)
    if not sizes:
        raise RuntimeError("this compiler's dump of the buffer assignment is not understood; another version may do")
    return float(sum(map(int, sizes)))


def out_of_memory(message: str) -> OutOfMemory | None:
    """The compiler's refusal as bytes needed and bytes there, or None where it is another error, as a kernel that wants
    more of a core's own memory (vmem)."""
    size = r"\(?([\d.]+)([KMGT]?)i?B?\)?"
    for pattern in (rf"temporaries {size} exceeds available HBM {size}", rf"Used {size} of {size} hbm",
                    rf"{size}\D* exceeds \D*{size}"):  # fmt: skip
        if "RESOURCE_EXHAUSTED" in message and "vmem" not in message and (found := re.search(pattern, message)):
            return OutOfMemory(float(found[1]) * UNITS[found[2]], float(found[3]) * UNITS[found[4]])
    return None


def kept_for_backward(module: hlo.Module) -> float:
    """Bytes of activations on a device: values that the forward pass makes and the backward pass reads.

    The most that lie in main memory at any point of the schedule between being made and being read for the last time.
    """
    made: dict[str, tuple[int, float]] = {}
    last: dict[str, int] = {}
    for backward, name, place, size in _values(module):
        if backward:
            last[name] = place
        else:
            made[name] = (place, size)
    changes = [made[name] for name in last] + [(end, -made[name][1]) for name, end in last.items()]
    return float(max(itertools.accumulate(size for _, size in sorted(changes)), default=0.0))


def _values(module: hlo.Module) -> Iterator[tuple[bool, str, int, float]]:
    """(whether it is read by the backward pass or made by the forward pass, value, place in the schedule, bytes)."""
    behind: dict[str, tuple[str, ...]] = {}  # the values that a name stands for
    several: dict[str, int] = {}  # where forward loops and fusions stand, whose results are taken apart later
    for place, i in enumerate(module.computations[module.entry].instructions):
        values = tuple(value for name in i.operands for value in behind.get(name, ()))
        backward, forward = "transpose(" in i.op_name, "jvp(" in i.op_name and i.opcode not in ("tuple", "bitcast")
        taken_apart = i.opcode == "get-tuple-element" and i.operands[0] in several
        if backward:
            yield from ((True, value, place, 0.0) for value in values)
        elif taken_apart or forward and len(i.shapes) == 1:
            start = several[i.operands[0]] if taken_apart else place
            yield False, i.name, start, sum(s.bytes for s in i.shapes if s.space == 0)
            behind[i.name] = (i.name,)
        elif forward:
            several[i.name] = place
        else:
            behind[i.name] = values
