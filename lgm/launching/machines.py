"""What can be asked for: TPU slices and GPU nodes, how many devices JAX sees of them, and what clusters call them."""

from __future__ import annotations

import dataclasses
import math
import re

from lgm.parsing import ConfigError, near_miss


@dataclasses.dataclass(frozen=True)
class TPU:
    """One generation. dimensions: of a topology. single_host: the most chips that one host has as a slice by itself; a
    larger slice has 4 a host. devices: those that JAX shows of one chip. gke: the label cloud.google.com/
    gke-tpu-accelerator. vm: its --type on Cloud TPU VMs, and runtime: their software, both None where there are none.
    """

    dimensions: int
    single_host: int
    gke: str
    vm: str | None
    runtime: str | None
    devices: int = 1


# https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus and https://cloud.google.com/tpu/docs/runtimes
TPUS = {
    "v4": TPU(3, 4, "tpu-v4-podslice", "v4", "tpu-ubuntu2204-base"),
    "v5e": TPU(2, 8, "tpu-v5-lite-podslice", "v5litepod", "v2-alpha-tpuv5-lite"),
    "v5p": TPU(3, 4, "tpu-v5p-slice", "v5p", "v2-alpha-tpuv5"),
    "v6e": TPU(2, 8, "tpu-v6e-slice", "v6e", "v2-alpha-tpuv6e"),
    "tpu7x": TPU(3, 4, "tpu7x", None, None, devices=2),
}
GPUS = {  # kind: the label cloud.google.com/gke-accelerator
    "a100": "nvidia-a100-80gb", "h100": "nvidia-h100-80gb", "h200": "nvidia-h200-141gb", "b200": "nvidia-b200",
}


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

    kind: of TPU or GPU, or "cpu". shape: of a TPU slice, as 4x4. processes_a_host: training processes on each.
    """

    kind: str
    groups: int
    hosts: int
    chips: int
    shape: str = ""
    devices_a_chip: int = 1
    processes_a_host: int = 1

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
        return f"{self.kind}:{self.shape or f'{self.groups * self.hosts}x{self.chips}'}"

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
    if slices < 1:
        raise ConfigError(f"--slices={slices} must be at least 1")
    chips = math.prod(map(int, shape.split("x")))
    if chips > tpu.single_host and chips % 4:
        raise ConfigError(f"--topology={topology} has {chips} chips; more than {tpu.single_host} come 4 a host, as "
                          f"{kind}:{example}")
    hosts = 1 if chips <= tpu.single_host else chips // 4
    return Machines(kind, slices, hosts, chips // hosts, shape, tpu.devices)


def gpu_nodes(kind: str, nodes: int, gpus: int, process_a_gpu: bool = False) -> Machines:
    """So many nodes of so many GPUs; kind "cpu" (or no GPUs) is one CPU device a process."""
    if nodes < 1:
        raise ConfigError(f"--nodes={nodes} must be at least 1")
    if not gpus or kind == "cpu":
        return Machines("cpu", nodes, 1, 1)
    if kind not in GPUS:
        raise ConfigError(f"gpu={kind!r} is not a known kind{near_miss(kind, [*GPUS, 'cpu'])}")
    return Machines(kind, nodes, 1, gpus, processes_a_host=gpus if process_a_gpu else 1)
