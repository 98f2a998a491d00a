"""Does a config fit a machine, on which mesh, and how fast: answered by the compiler before the machine is paid for."""

import dataclasses
import math
from typing import Any

from lgm.config import Config
from lgm.models import family_of
from lgm.parallel import Layout
from lgm.parallel.options import options_of
from lgm.parsing import ConfigError, as_dict
from lgm.planning import gpus
from lgm.planning.advice import advice
from lgm.planning.cost import Collective, Cost, cost_of
from lgm.planning.program import Compiled, OutOfMemory, Program, compiled, kept_for_backward
from lgm.planning.topology import Topology, open_devices, read_topology
from lgm.train.placing import layout_of


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes a chip, by kind. `activations` are what the forward pass keeps for the backward pass; `temporaries` all
    else that lives for a part of the step (gradients, gathered weights, workspace). The program's code, about 0.1 GB,
    is not in it.

    Of a program that does not fit, only what is laid out before it runs is known, and the rest is `temporaries`; these
    are 0 where the state alone is too large and nothing was compiled.
    """

    parameters: float
    optimizer: float
    ema: float
    frozen: float
    batch: float
    activations: float
    temporaries: float
    capacity: float

    @property
    def total(self) -> float:
        """All of it."""
        return sum(getattr(self, kind) for kind in KINDS)

    @property
    def holds(self) -> bool:
        """Whether a chip's memory holds it all."""
        return self.total <= USABLE * self.capacity

    @property
    def state(self) -> float:
        """What stays from step to step."""
        return self.parameters + self.optimizer + self.ema + self.frozen


# of a chip's memory: its runtime keeps 0.25 of v5e's 16 GiB and 0.75 of v6e's 32, and JAX takes 92% of what a GPU has,
# which is 6% more than its maker's page says
USABLE = 0.975
STANDS_IN = ("XLA:GPU is not installed: memory, work and traffic are of a program for TPU v5p, timed at the GPU's "
             "peaks; for the GPU's own: pip install 'lgm[plan-gpu]'")  # fmt: skip
KINDS = ("parameters", "optimizer", "ema", "frozen", "batch", "activations", "temporaries")


@dataclasses.dataclass(frozen=True)
class Timed:
    """A step by one meter: seconds of the whole schedule, of computing in it, and what follows for MFU and rate."""

    step: float
    busy: float
    mfu: float
    images_per_second: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """One train step of a config on a machine, as compiled. All counts are a chip's.

    flops, bytes: done and moved to and from main memory. model_flops: by the models' own counts (`lgm.train.work`),
    what MFU is about. bounds: seconds that work at peak, memory, ICI and DCN would each take alone; `roofline` is the
    largest, below which no time is. The schedule is timed twice, and what was measured lies about the two
    (`lgm.planning.measured`): `peak`, each instruction the longer of its work and bytes at the chip's peaks, and
    `cycles`, by the compiler's own cost model: cycles of a TPU's finished program, None of a quick plan; microseconds
    of a GPU's, None where a TPU's compiler stands in for its own. options: what the compiler was told of the chip
    (`lgm.parallel.options`, of GPUs `launch/flags.toml`). reason: why it does not run; if it could not be compiled for
    that, all but memory is zero.
    """

    name: str
    topology: str
    chip: str
    chips: int
    mesh: dict[str, int]
    remat: str
    batch_size: int
    fits: bool
    memory: Memory
    flops: float = 0.0
    model_flops: float = 0.0
    bytes: float = 0.0
    collectives: tuple[Collective, ...] = ()
    bounds: dict[str, float] = dataclasses.field(default_factory=dict)
    peak: Timed | None = None
    cycles: Timed | None = None
    compile_seconds: float = 0.0
    compiled_for: str = ""
    accumulate: int = 1
    group: int = 1
    options: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    reason: str = ""

    @property
    def roofline(self) -> float:
        """Seconds of a step that overlaps everything."""
        return max(self.bounds.values(), default=0.0)

    @property
    def times(self) -> tuple[Timed, ...]:
        """What the meters say, the faster first."""
        return tuple(sorted(filter(None, (self.peak, self.cycles)), key=lambda timed: timed.step))

    @property
    def step(self) -> float:
        """Seconds to rank plans by that have the same meters: the geometric mean; 0 where nothing was compiled."""
        steps = [timed.step for timed in self.times]
        return math.prod(steps) ** (1 / len(steps)) if steps else 0.0

    @property
    def speed(self) -> str:
        """Rate and MFU in words, of a plan that has times."""
        fast, slow = self.times[0], self.times[-1]
        return (f"{between(slow.images_per_second, fast.images_per_second, ',.0f')} images/s at "
                f"{between(slow.mfu, fast.mfu, '.0%')} MFU")  # fmt: skip

    def moved(self, network: str) -> float:
        """Bytes that leave a chip in a step over "ici" or "dcn"."""
        return sum(c.bytes for c in self.collectives if c.network == network)


def between(low: float, high: float, form: str = ".4g") -> str:
    """A range in words, one number where its ends print alike."""
    low, high = format(low, form), format(high, form)
    return low if low == high else f"{low} to {high}"


def plan(config: Config, topology: Topology | str, slices: int = 1, quick: bool = False) -> Plan:
    """Compile the train step of `config` for a machine and say what it takes.

    quick: without machine code, several times sooner: no cycles, nor whether there can be code. The mesh is the
    config's. Raises ConfigError, one line, for a topology, mesh or batch that cannot be; a program that is too large
    for the memory, or for which there can be no code, is a Plan with `fits` False.
    """
    machine = read_topology(topology, slices) if isinstance(topology, str) else topology
    return compiled_plan(config, machine, quick)[0]


def compiled_plan(config: Config, topology: Topology, quick: bool = False) -> tuple[Plan, Program, Compiled | None]:
    """(the plan, what is known of the step before, and what the compiler made if it fits its memory). A GPU's plan by
    another chip's compiler is always quick: the cycles of a stand-in say nothing of it."""
    if family_of(config.model).role == "autoencoder":
        raise ConfigError("config.model.family='autoencoder' is trained on one chip; `lgm plan` is for denoisers")
    devices, compiled_for = open_devices(topology)
    layout_on(config, topology, devices)
    program, made = compiled(config, topology, quick or topology.stands_in)
    flags = {} if topology.stands_in or not topology.gpu else gpus.told(topology.chip.name)
    notes = (STANDS_IN, *program.notes) if topology.stands_in else program.notes
    common: dict[str, Any] = dict(
        name=config.name, topology=str(topology), chip=topology.chip.name, chips=topology.chips,
        mesh={axis: size for axis, size in program.mesh.items() if size > 1},
        remat=family_of(config.model).remat(config.model) or "none", batch_size=config.batch_size,
        accumulate=config.accumulate, group=as_dict(config.model).get("group", 1),
        compiled_for=compiled_for, options=options_of(devices[0].device_kind) | flags, notes=notes,
    )
    chip, share = topology.chip, topology.chip.share
    each = {kind: size * chip.devices for kind, size in program.sizes.items()}
    if isinstance(made, OutOfMemory):
        memory = Memory(**each, activations=0.0, temporaries=made.needed * chip.devices,
                        capacity=made.available * chip.devices)  # fmt: skip
        return Plan(**common, fits=False, memory=memory, reason=reason(config, topology, memory)), program, None
    cost = cost_of(made.module, share, program.network, program.kernels, by_peaks=True)
    activations = min(kept_for_backward(made.module), made.temporary) * chip.devices
    memory = Memory(**each, activations=activations, temporaries=made.temporary * chip.devices - activations,
                    capacity=chip.hbm)  # fmt: skip
    why = "" if memory.holds else reason(config, topology, memory)
    if memory.holds and made.failed:
        why = f"the compiler cannot generate code for {config.name} on {topology}: {made.failed}"
    model_flops = program.model_flops / topology.chips
    bounds = {"compute": cost.flops / share.flops, "memory": cost.bytes / share.hbm_rate,
              "ici": cost.over("ici", "seconds"), "dcn": cost.over("dcn", "seconds")}  # fmt: skip

    def timed(cost: Cost) -> Timed:
        step = max(cost.step, *bounds.values())
        return Timed(step, cost.busy, model_flops / chip.flops / step, config.batch_size / step)

    costed = made.finished
    if topology.gpu:  # whose costs are in the scheduled program
        costed = None if topology.stands_in else made.module
    told = costed and cost_of(costed, share, program.network, program.kernels)
    return Plan(
        **common, fits=not why, memory=memory, flops=cost.flops * chip.devices, model_flops=model_flops,
        bytes=cost.bytes * chip.devices, bounds=bounds, peak=timed(cost), cycles=told and timed(told),
        collectives=tuple(dataclasses.replace(c, bytes=c.bytes * chip.devices) for c in cost.collectives),
        compile_seconds=made.seconds, reason=why,
    ), program, made


def layout_on(config: Config, topology: Topology, devices) -> Layout:
    """The layout of a config over devices. Raises ConfigError, one line, where mesh, heads or batch do not divide."""
    try:
        return layout_of(config, devices)
    except ValueError as error:
        raise ConfigError(f"{topology}: {error}") from None


def reason(config: Config, topology: Topology, memory: Memory) -> str:
    """One line that says by how much it does not fit and what would."""
    rest = memory.activations + memory.temporaries
    needs = f"{'' if rest else 'at least '}{memory.total / 1e9:.1f} GB a chip"
    over = f"{config.name} needs {needs} of the {memory.capacity / 1e9:.1f} GB of {topology}"
    return f"{over}; {advice(config, topology, memory.state, memory.batch, rest, memory.capacity)}"
