"""Machines that are not here: `v5p:4x4x8` and `h100:8x8` (nodes of GPUs) as devices to compile for.

The TPU compiler comes with libtpu, which runs without a TPU, and XLA:GPU with JAX's CUDA plugin, which runs without a
GPU. Where the plugin is not installed a GPU cluster is planned from a program compiled for as many TPU v5p devices: its
counts of work, bytes and collectives are timed at the GPU's rates.
"""

import dataclasses
import importlib.util
import math
import os
import re

from lgm.parallel.chips import CHIPS, Chip
from lgm.parsing import ConfigError, near_miss
from lgm.planning import gpus
from lgm.planning.network import Network, nodes, torus

STAND_IN = "v5p"  # what a GPU's program is compiled for without XLA:GPU
LIBTPU = {  # what libtpu reads when it is loaded
    "TPU_SKIP_MDS_QUERY": "1",  # there is no TPU here of which to ask a metadata server
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several planners may compile beside each other
    # else it warns of each that it misses
    "TPU_ACCELERATOR_TYPE": "v5litepod-1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0",
    "TPU_STDERR_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3", "TF_CPP_MIN_LOG_LEVEL": "3",
}  # fmt: skip
GPUS = tuple(name for name, chip in CHIPS.items() if not chip.clock)
ALSO = {"gpu": "h100", "v5litepod": "v5e", "trillium": "v6e", "ironwood": "tpu7x"}  # what chips are called as well
# chips of the largest slice, by the makers' pages; of GPUs what their stand-in has
LARGEST = {"v4": 4096, "v5e": 256, "v5p": 8960, "v6e": 256, "tpu7x": 9216} | dict.fromkeys(GPUS, 8960)


@dataclasses.dataclass(frozen=True)
class Topology:
    """So many slices (or, of GPUs, one cluster) of chips, each slice of `sides`; GPUs' sides are (nodes, each)."""

    chip: Chip
    sides: tuple[int, ...]
    slices: int = 1

    @property
    def gpu(self) -> bool:
        """Whether these are GPUs."""
        return self.chip.name in GPUS

    @property
    def stands_in(self) -> bool:
        """Whether the compiler of another chip must do."""
        return self.gpu and not gpus.installed()

    @property
    def chips(self) -> int:
        """Chips in all slices."""
        return math.prod(self.sides) * self.slices

    @property
    def devices(self) -> int:
        """What JAX sees of them."""
        return self.chips * self.chip.devices

    @property
    def groups(self) -> int:
        """Slices or nodes, between which the data-center network lies."""
        return self.sides[0] if self.gpu else self.slices

    def __str__(self) -> str:
        spec = f"{self.chip.name}:{'x'.join(map(str, self.sides))}"
        return spec if self.slices == 1 else f"{self.slices} x {spec}"


def read_topology(spec: str, slices: int = 1) -> Topology:
    """The topology of `v5p:4x4x8` or `h100:8x8` (nodes x GPUs each; `gpu` means h100).

    Raises ConfigError, one line, for a chip or a shape that is not there.
    """
    name, _, shape = spec.partition(":")
    name = ALSO.get(name.lower(), name.lower())
    if name not in CHIPS:
        raise ConfigError(f"--topology={spec}: chip {name!r} is unknown{near_miss(name, CHIPS)}")
    chip = CHIPS[name]
    ranks = (2,) if name in GPUS or chip.links == 4 else (3,)
    example = {"v5e": "v5e:4x4", "v6e": "v6e:16x16"}.get(name, f"{name}:8x8" if name in GPUS else f"{name}:4x4x8")
    if not re.fullmatch(r"\d+(x\d+)*", shape) or shape.count("x") + 1 not in ranks or "0" in shape.split("x"):
        what = "NODESxGPUS" if name in GPUS else "x".join("ABC"[: ranks[0]])
        raise ConfigError(f"--topology={spec}: give a shape {name}:{what}, as {example}")
    if slices < 1:
        raise ConfigError(f"--slices={slices} must be at least 1")
    if name in GPUS and slices != 1:
        raise ConfigError(f"--slices={slices} is for TPUs; of GPUs give nodes, as {name}:{slices}x8")
    sides = tuple(map(int, shape.split("x")))
    if name not in GPUS and chip.links == 4 and max(sides) > 16:
        raise ConfigError(f"--topology={spec}: a slice of {name} has at most 16 x 16 chips; give --slices for more")
    if math.prod(sides) > LARGEST[name]:
        more = f"{LARGEST[name]:,} GPUs are the most that can be planned" if name in GPUS else (
            f"a slice of {name} has at most {LARGEST[name]:,} chips; give --slices for more")
        raise ConfigError(f"--topology={spec}: {math.prod(sides):,} chips: {more}")
    return Topology(chip, sides, slices)


def open_devices(topology: Topology) -> tuple[list, str]:
    """(devices to compile for, what they are in words). Raises ConfigError, one line, without a compiler."""
    if topology.gpu and not topology.stands_in:
        return _open_gpus(topology)
    if importlib.util.find_spec("libtpu") is None:
        kind, extra = ("GPU", "plan-gpu") if topology.gpu else ("TPU", "plan")
        raise ConfigError(f"planning needs the {kind} compiler, which runs without a {kind}: "
                          f"pip install 'lgm[{extra}]'")
    for name, value in LIBTPU.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    shown = topology if not topology.gpu else Topology(CHIPS[STAND_IN], _cube(topology.chips))
    name = f"{shown.chip.name}:{'x'.join(map(str, shown.sides))}"
    options = {"num_slices": shown.slices} if shown.slices > 1 else {}
    if shown.chips == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)  # a part of a host
    if shown.chip.name == "v4":
        options["chip_config_name"] = "megacore"  # one device a chip, as JAX has it
    try:
        devices = list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
    except Exception as error:
        line = " ".join(str(error).split())
        bounds = re.search(r'chips_per_host_bounds "([\dx]+)"', line)
        hint = line
        if bounds:
            host = [int(n) for n in bounds[1].split("x")]
            near = "x".join(str(-(-side // n) * n) for side, n in zip(shown.sides, host, strict=False))
            hint = f"its sides must be multiples of a host's {bounds[1]} chips, as {shown.chip.name}:{near}"
        raise ConfigError(f"--topology={topology}: libtpu has no such slice: {hint}") from None
    return devices, f"{len(devices)} devices of TPU {shown}" if topology.gpu else f"TPU {shown}"


def _open_gpus(topology: Topology) -> tuple[list, str]:
    """As `open_devices`, by XLA:GPU: a partition of nodes x GPUs."""
    from jax.experimental import topologies

    shape = f"1x{topology.sides[0]}x{topology.sides[1]}"
    target = gpus.described(topology.chip.name)
    devices = list(topologies.get_topology_desc(platform="cuda", target_config=target, topology=shape).devices)
    return devices, f"{len(devices)} x {devices[0].device_kind}"


def network_of(topology: Topology, devices) -> Network:
    """The network between the devices of a mesh, given in its order."""
    chip = topology.chip.share
    return nodes(chip, *topology.sides) if topology.gpu else torus(chip, devices)


def _cube(count: int) -> tuple[int, int, int]:
    """A slice of v5p with so many chips, its sides near each other. Raises ConfigError where there is none."""
    shapes = [(a, b, count // (a * b)) for a in range(1, count + 1) if count % a == 0
              for b in range(a, count // a + 1) if count // a % b == 0 and count // (a * b) >= b]
    fitting = [s[::-1] for s in shapes if count == 1 or s[2] % 2 == 0 and s[1] % 2 == 0]
    if not fitting:
        raise ConfigError(f"{count} GPUs cannot be planned; choose 1 or a number that 4 divides")
    return min(fitting, key=lambda s: s[0] - s[2])
