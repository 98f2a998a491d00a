"""What can be asked for: TPU slices and GPU nodes, how many devices JAX sees of them, and what clusters call them."""

import dataclasses
import math
import re

from lgm.parsing import ConfigError, near_miss
from lgm.scaling.compute import Machine


@dataclasses.dataclass(frozen=True)
class TPU:
    """One generation. shapes: the topologies there are; of three sides also those of whole cubes of 4 x 4 x 4 chips, up
    to the last of these. single_host: the most chips that one host has as a slice by itself; a larger slice has 4 a
    host. devices: those that JAX shows of one chip. gke: the label cloud.google.com/gke-tpu-accelerator. vm: how
    Cloud TPU VMs call it, and runtime: their software, both None where there are none; cores: what they count of a
    chip. host: vCPUs and GB of memory for each chip of a GKE node.
    """

    shapes: tuple[str, ...]
    single_host: int
    gke: str
    host: tuple[float, float]
    vm: str | None = None
    runtime: str | None = None
    cores: int = 1
    devices: int = 1

    @property
    def dimensions(self) -> int:
        return self.shapes[0].count("x") + 1

    def accelerator(self, shape: str) -> list[str]:
        """How gcloud is asked for a slice: --type and --topology are for v2 to v4 alone, later ones have names with a
        count, of cores or chips, and come in the most compact shape of that many. Raises ConfigError for another."""
        if self.vm == "v4":
            return ["--type=v4", f"--topology={shape}"]
        chips = math.prod(map(int, shape.split("x")))
        spread = lambda sides: sum(chips // side for side in sides)  # half of a box's surface
        lengths = range(4, chips // 16 + 1, 4)
        cubes = [(a, b, chips // (a * b)) for a in lengths for b in lengths if self.dimensions == 3
                 and chips % (a * b) == 0 and self.has(f"{a}x{b}x{chips // (a * b)}")]  # fmt: skip
        usual = "x".join(map(str, min(cubes, key=spread))) if cubes else shape
        if shape != usual:
            raise ConfigError(f"--topology={shape}: {chips} chips of Cloud TPU VMs come as {usual}; ask for that, or "
                              f"for {shape} on GKE")
        return [f"--accelerator-type={self.vm}-{chips * self.cores}"]

    def has(self, shape: str) -> bool:
        """Whether there are slices of this topology."""
        sides, most = ([int(side) for side in text.split("x")] for text in (shape, self.shapes[-1]))
        cubes = len(sides) == 3 and sides == sorted(sides) and not any(side % 4 for side in sides)
        return shape in self.shapes or (cubes and all(a <= b for a, b in zip(sides, most, strict=True)))


@dataclasses.dataclass(frozen=True)
class GPU:
    """One kind of node, of eight. gke: the label cloud.google.com/gke-accelerator. host: vCPUs and GB of memory for
    each GPU of a GKE node."""

    gke: str
    host: tuple[float, float]


SQUARES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
SMALL = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4")  # and whole cubes
# https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus and https://cloud.google.com/tpu/docs/runtimes
TPUS = {
    "v4": TPU((*SMALL, "12x16x16"), 4, "tpu-v4-podslice", (60, 101.75), "v4", "tpu-ubuntu2204-base", 2),
    "v5e": TPU(SQUARES, 8, "tpu-v5-lite-podslice", (24, 48), "v5litepod", "v2-alpha-tpuv5-lite"),
    "v5p": TPU((*SMALL, "16x16x24"), 4, "tpu-v5p-slice", (52, 112), "v5p", "v2-alpha-tpuv5", 2),
    "v6e": TPU(SQUARES, 8, "tpu-v6e-slice", (22, 176), "v6e", "v2-alpha-tpuv6e"),
    "tpu7x": TPU((*SMALL, "8x16x16"), 4, "tpu7x", (56, 240), devices=2),
}
# https://cloud.google.com/compute/docs/accelerator-optimized-machines: A2 ultra, A3 high, A3 mega, A3 ultra, A4
GPUS = {
    "a100": GPU("nvidia-a100-80gb", (12, 170)), "h100": GPU("nvidia-h100-80gb", (26, 234)),
    "h100-mega": GPU("nvidia-h100-mega-80gb", (26, 234)),
    "h200": GPU("nvidia-h200-141gb", (28, 369)), "b200": GPU("nvidia-b200", (28, 496)),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Device:
    """What a mesh asks of a device: which it is, of which process, in which slice or node. `platform` is none whose
    interconnect has coordinates, which only a device that is there could tell."""

    id: int
    process_index: int
    slice_index: int
    platform: str = "gpu"


@dataclasses.dataclass(frozen=True)
class Machines:
    """What one run uses: `groups` slices of TPU hosts, or nodes, with `hosts` in each and `chips` a host.

    kind: of TPU or GPU, or "cpu". shape: of a TPU slice, as 4x4. processes_a_host: training processes on each. cores:
    CPUs that a process is given, 0 where nobody has said.
    """

    kind: str
    groups: int
    hosts: int
    chips: int
    shape: str = ""
    devices_a_chip: int = 1
    processes_a_host: int = 1
    cores: int = 0

    @property
    def devices(self) -> int:
        """What JAX sees in all processes together."""
        return self.groups * self.hosts * self.chips * self.devices_a_chip

    @property
    def processes(self) -> int:
        """Training processes in all."""
        return self.groups * self.hosts * self.processes_a_host

    def stand_ins(self) -> list[Device]:
        """All devices, to lay a mesh over without one of them being here."""
        each, slice_size = self.devices // self.processes, self.devices // self.groups
        return [Device(i, i // each, i // slice_size) for i in range(self.devices)]

    @property
    def topology(self) -> str:
        """As `lgm plan` takes it."""
        return f"{self.kind.removesuffix('-mega')}:{self.shape or f'{self.groups * self.hosts}x{self.chips}'}"

    def __str__(self) -> str:
        if self.shape:
            return f"{self.groups} x {self.topology}" if self.groups > 1 else self.topology
        return f"{self.groups} x {self.chips} {self.kind}"


def tpu_slices(topology: str, slices: int) -> Machines:
    """`v5e:4x4` and how many of them. Raises ConfigError, one line, for what no slice is."""
    kind, colon, shape = topology.partition(":")
    if kind not in TPUS:
        raise ConfigError(f"--topology={topology}: {kind!r} is no TPU{near_miss(kind, TPUS)}")
    tpu = TPUS[kind]
    example = "x".join(["4"] * tpu.dimensions)
    if not colon or not re.fullmatch(rf"[1-9]\d*(x[1-9]\d*){{{tpu.dimensions - 1}}}", shape):
        raise ConfigError(f"--topology={topology}: a {kind} slice has {tpu.dimensions} sides, as {kind}:{example}")
    if not tpu.has(shape):
        others = ", ".join(tpu.shapes[:-1]) + (f" and cubes of 4x4x4, sides ascending, to {tpu.shapes[-1]}"
                                               if tpu.dimensions == 3 else f" and {tpu.shapes[-1]}")
        raise ConfigError(f"--topology={topology}: there are no such slices; of {kind} there are {others}")
    if slices < 1:
        raise ConfigError(f"--slices={slices} must be at least 1")
    chips = math.prod(map(int, shape.split("x")))
    hosts = 1 if chips <= tpu.single_host else chips // 4
    return Machines(kind, slices, hosts, chips // hosts, shape, tpu.devices)


def of_a_plan(machine: Machine, kind: str, gpus: int, process_a_gpu: bool = False) -> Machines:
    """What one run of a sweep is planned for, on nodes of so many GPUs of a kind: as many as its machine has chips, or
    one process of so many cores. Raises ConfigError, one line, where whole nodes cannot hold them."""
    if machine.kind == "cpu" or kind == "cpu" or not gpus:
        return dataclasses.replace(gpu_nodes("cpu", 1, 0), cores=machine.chips if machine.kind == "cpu" else 0)
    if machine.chips > gpus and machine.chips % gpus:
        raise ConfigError(f"config.machine.chips={machine.chips} fill no whole number of nodes of {gpus} {kind}; give "
                          "--nodes")
    nodes = max(machine.chips // gpus, 1)
    return gpu_nodes(kind, nodes, min(machine.chips, gpus), process_a_gpu)


def gpu_nodes(kind: str, nodes: int, gpus: int, process_a_gpu: bool = False) -> Machines:
    """So many nodes of so many GPUs; kind "cpu" (or no GPUs) is one CPU device a process."""
    if nodes < 1:
        raise ConfigError(f"--nodes={nodes} must be at least 1")
    if not gpus or kind == "cpu":
        return Machines("cpu", nodes, 1, 1)
    if kind not in GPUS:
        raise ConfigError(f"gpu={kind!r} is not a known kind{near_miss(kind, [*GPUS, 'cpu'])}")
    return Machines(kind, nodes, 1, gpus, processes_a_host=gpus if process_a_gpu else 1)
