"""Does a config fit a machine, on which mesh, and how fast: answered by the compiler before the machine is paid for."""

import dataclasses
from typing import Any

from lgm.config import Config
from lgm.models import family_of
from lgm.parallel import Layout
from lgm.parsing import ConfigError
from lgm.planning.advice import advice
from lgm.planning.cost import Collective, cost_of
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
    def state(self) -> float:
        """What stays from step to step."""
        return self.parameters + self.optimizer + self.ema + self.frozen


USABLE = 0.975  # of a chip's memory: its runtime keeps 0.25 of v5e's 16 GiB and 0.75 of v6e's 32
KINDS = ("parameters", "optimizer", "ema", "frozen", "batch", "activations", "temporaries")


@dataclasses.dataclass(frozen=True)
class Plan:
    """One train step of a config on a machine, as compiled. All counts are a chip's.

    flops, bytes: done and moved to and from main memory. model_flops: by the models' own counts (`lgm.train.work`),
    what MFU is about. bounds: seconds that work at peak, memory, ICI and DCN would each take alone; `roofline` is the
    largest. step: seconds of the compiled schedule by the compiler's cost model, which MFU and rate are of. reason: why
    it does not fit; if it could not be compiled for that, all but memory is zero.
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
    busy: float = 0.0
    step: float = 0.0
    mfu: float = 0.0
    images_per_second: float = 0.0
    compile_seconds: float = 0.0
    compiled_for: str = ""
    notes: tuple[str, ...] = ()
    reason: str = ""

    @property
    def roofline(self) -> float:
        """Seconds of a step that overlaps everything."""
        return max(self.bounds.values(), default=0.0)

    def moved(self, network: str) -> float:
        """Bytes that leave a chip in a step over "ici" or "dcn"."""
        return sum(c.bytes for c in self.collectives if c.network == network)


def plan(config: Config, topology: Topology | str, slices: int = 1) -> Plan:
    """Compile the train step of `config` for a machine and say what it takes.

    The mesh is the config's. Raises ConfigError, one line, for a topology, mesh or batch that cannot be; a program that
    is too large for the memory is a Plan with `fits` False.
    """
    return compiled_plan(config, read_topology(topology, slices) if isinstance(topology, str) else topology)[0]


def compiled_plan(config: Config, topology: Topology) -> tuple[Plan, Program, Compiled | None]:
    """(the plan, what is known of the step before, and what the compiler made if it fits)."""
    if family_of(config.model).role == "autoencoder":
        raise ConfigError("config.model.family='autoencoder' is trained on one chip; `lgm plan` is for denoisers")
    devices, compiled_for = open_devices(topology)
    layout_on(config, topology, devices)
    program, made = compiled(config, topology)
    common: dict[str, Any] = dict(
        name=config.name, topology=str(topology), chip=topology.chip.name, chips=topology.chips,
        mesh={axis: size for axis, size in program.mesh.items() if size > 1},
        remat=family_of(config.model).remat(config.model) or "none", batch_size=config.batch_size,
        compiled_for=compiled_for, notes=program.notes,
    )
    chip, share = topology.chip, topology.chip.share
    each = {kind: size * chip.devices for kind, size in program.sizes.items()}
    if isinstance(made, OutOfMemory):
        memory = Memory(**each, activations=0.0, temporaries=made.needed * chip.devices,
                        capacity=made.available * chip.devices)  # fmt: skip
        return Plan(**common, fits=False, memory=memory, reason=reason(config, topology, memory)), program, None
    cost = cost_of(made.module, share, program.network, program.kernels)
    activations = min(kept_for_backward(made.module), made.temporary) * chip.devices
    memory = Memory(**each, activations=activations, temporaries=made.temporary * chip.devices - activations,
                    capacity=chip.hbm)  # fmt: skip
    fits = memory.total <= USABLE * chip.hbm
    model_flops = program.model_flops / topology.chips
    return Plan(
        **common, fits=fits, memory=memory, flops=cost.flops * chip.devices, model_flops=model_flops,
        bytes=cost.bytes * chip.devices, busy=cost.busy, step=cost.step, mfu=model_flops / chip.flops / cost.step,
        collectives=tuple(dataclasses.replace(c, bytes=c.bytes * chip.devices) for c in cost.collectives),
        bounds={"compute": cost.flops / share.flops, "memory": cost.bytes / share.hbm_rate,
                "ici": cost.over("ici", "seconds"), "dcn": cost.over("dcn", "seconds")},
        images_per_second=config.batch_size / cost.step, compile_seconds=made.seconds,
        reason="" if fits else reason(config, topology, memory),
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
