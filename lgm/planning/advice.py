"""What would fit, where a plan does not: one line with the key to change or the smallest slice."""

import math

from lgm.config import Config
from lgm.models import family_of
from lgm.planning.topology import Topology

ROOM = 0.85  # of a chip's memory, that a suggestion fills with what stays from step to step


def advice(config: Config, topology: Topology, state: float, batch: float, rest: float, capacity: float) -> str:
    """What to change in `config` so that a step fits `topology`, or which topology would do.

    Bytes a chip: `state` of weights, optimizer, EMA and frozen parts; the `batch` as it comes; `rest` of all else that
    a step needs, 0 where that is not known; `capacity` of the chip.
    """
    mesh = config.mesh
    others = mesh.context * mesh.tensor * mesh.stage
    most = topology.devices // others
    fsdp = most // mesh.data if mesh.fsdp < 0 else mesh.fsdp
    if state > ROOM * capacity:
        parts = fsdp * state / (ROOM * capacity)  # into which fsdp must split for the state to fit
        enough = [n for n in range(1, most + 1) if most % n == 0 and n >= parts]
        held = f"weights, optimizer, EMA and frozen parts alone take {state / 1e9:.1f} GB"
        if enough and config.batch_size % most == 0:
            return f"{held}, which config.mesh.fsdp={enough[0]} would hold (with data={most // enough[0]})"
        chips = math.ceil(parts * others / topology.chip.devices)
        return f"{held}; the smallest slice over which fsdp would hold them is {smallest(topology, chips)}"
    if state + batch > ROOM * capacity:
        fewer = int((ROOM * capacity - state) / batch * config.batch_size / most) * most
        least = f"a config.batch_size of {fewer:,}" if fewer else "a smaller config.batch_size"
        return f"the batch alone takes {batch / 1e9:.1f} GB; {least} leaves room for the step"
    if family_of(config.model).remat(config.model) not in ("full", ""):
        return "config.model.remat='full' keeps one activation a block"
    free = 0.95 * capacity - state
    pieces = config.accumulate * math.ceil(rest / free)
    images = config.batch_size // math.gcd(config.batch_size, most)  # of one device, at least
    enough = [n for n in range(1, images + 1) if images % n == 0 and n >= pieces]
    if enough:
        return f"config.accumulate={enough[0]} would about fit, as would a smaller config.batch_size"
    if mesh.context * math.ceil(rest / free) <= 8 and most % 2 == 0:
        return (f"with one image a device, config.mesh.context={2 * mesh.context} splits its tokens and rows (and a "
                f"config.batch_size of {config.batch_size // 2} then does)")
    chips = math.ceil(topology.chips * (state + rest) / (0.95 * capacity))
    return f"with one image a device at most, take chips with more memory or the {smallest(topology, chips)}"


def smallest(topology: Topology, chips: int) -> str:
    """The smallest usual machine of the same chip that has as many chips, in the words of --topology and --slices."""
    name = topology.chip.name
    if topology.gpu:
        each = topology.sides[1]
        return f"{name}:{math.ceil(chips / each)}x{each}"
    shape = [2, 2] if topology.chip.links == 4 else [1, 2, 2]
    while math.prod(shape) < chips and min(shape) < 16:
        shape = sorted([2 * shape[0], *shape[1:]])
    order = shape if topology.chip.links == 4 or shape[0] > 1 else shape[::-1]  # 2x2x1
    text = f"{name}:{'x'.join(map(str, order))}"
    slices = math.ceil(chips / math.prod(shape))
    return text if slices == 1 else f"{text} with --slices={slices}"
