"""What one step of a compiled program costs a chip: work, memory traffic, collectives, and the time of its schedule.

The program is followed in the order in which the compiler scheduled it, loops as often as they run. By peaks, what
computes takes the longer of work / peak and bytes / memory rate. By the compiler an instruction takes what its own cost
model says: cycles in a TPU's finished program, microseconds in a GPU's scheduled one. Kernels that it does not see into
are by peaks there too, as a GPU's attention and convolutions. Collectives take the time of their bytes over the links
that they use; one that is started and awaited later, or carried by several fusions, runs beside what is scheduled in
between, all others are waited for. Between TPU slices a collective is what is sent and received (`hlo.transfer`).
"""

import dataclasses
import re
from collections.abc import Sequence

from lgm.models.flops import Kernel
from lgm.parallel.chips import Chip
from lgm.planning import hlo
from lgm.planning.calls import call_flops, library, results
from lgm.planning.hlo import Computation, Instruction, Module
from lgm.planning.network import Network

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
# not work: names for values, or the end of what was started before
_FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "call", "conditional", "partition-id",
         "replica-id", "after-all", "iota", "rng-bit-generator", "opt-barrier"}  # fmt: skip
_NO_KERNELS = {"AllocateBuffer", "Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape", "MoveToHost",
               "MoveToDevice", "AssumeGatherIndicesInBound"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind and network in a step: how many run, bytes that leave a chip, seconds they take."""

    kind: str
    network: str
    count: int
    bytes: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Cost:
    """One step on one device. `flops` are of products, convolutions and kernels, `bytes` to and from main memory.

    busy: seconds of computing. step: of the whole schedule; what it has above `busy` is waiting for collectives.
    """

    flops: float
    bytes: float
    busy: float
    step: float
    collectives: tuple[Collective, ...]

    def over(self, network: str, field: str = "bytes") -> float:
        """Bytes (or seconds) of all collectives over "ici" or "dcn"."""
        return sum(getattr(c, field) for c in self.collectives if c.network == network)


def cost_of(module: Module, chip: Chip, network: Network, kernels: Sequence[Kernel], by_peaks: bool = False) -> Cost:
    """The cost of one run on one device, of which `chip` says the rates. `kernels` are the Pallas kernels in it.

    by_peaks: whatever the compiler says of an instruction.
    """
    tally = _Tally(module, chip, network, kernels, by_peaks)
    step = tally.run(module.entry, 1)
    found = tuple(Collective(kind, over, *values) for (kind, over), values in sorted(tally.collectives.items()))
    return Cost(tally.flops, tally.bytes, tally.busy, step, found)


class _Tally:
    """Sums over a program, and the clock of its schedule."""

    def __init__(self, module: Module, chip: Chip, network: Network, kernels: Sequence[Kernel], by_peaks: bool):
        self.by_peaks = by_peaks
        self.module, self.chip, self.network, self.kernels = module, chip, network, kernels
        self.flops = self.bytes = self.busy = 0.0
        self.collectives: dict[tuple[str, str], list[float]] = {}
        self.inside: dict[str, tuple[float, list[tuple[Instruction, Computation]]]] = {}

    def run(self, name: str, times: int) -> float:
        """Seconds of one run of a computation, which runs `times` times in a step."""
        computation = self.module.computations[name]
        now, free, ends, carried, named = 0.0, {"ici": 0.0, "dcn": 0.0}, {}, {}, {}
        last = {_channel(row, i): i for i in computation.instructions for row in self._joined(i, computation)}
        for i in computation.instructions:
            if i.opcode == "while":
                trips = self.module.trips(i)
                now += trips * self.run(i.call("body"), times * trips)
                continue
            if i.opcode in ("call", "conditional"):
                targets = [target for role, target in i.called if role != "condition"]
                now += max((self.run(target, times) for target in targets), default=0.0)
                continue
            if i.opcode.endswith(("-done", "-update")):
                begun_by = next(iter(i.operands), "")
                ends[i.name] = ends.get(named.get(begun_by, begun_by), 0.0)
                now = max(now, ends[i.name]) if i.opcode.endswith("-done") else now
                continue
            begun = now
            if i.opcode in ("send", "recv") and (transfer := hlo.transfer(i.attributes)):
                named[i.name] = transfer[0]
                if i.opcode == "send":
                    seconds = self._count(transfer[1], times, *self.network.between(transfer[1], i.shapes[0].bytes,
                                                                                    transfer[2]))
                    ends[transfer[0]] = free["dcn"] = max(now, free["dcn"]) + seconds
            now += self._compute(i, computation, times)
            for joined in self._joined(i, computation):
                channel = _channel(joined, i)
                if channel not in carried:  # else begun in an earlier fusion, of which several carry it on
                    ready = begun
                    for over, moved, seconds in self.network.collective(*joined):
                        self._count(joined[0], times, over, moved, seconds)
                        ready = free[over] = max(ready, free[over]) + seconds
                    carried[channel] = ready
                if i.opcode.endswith("-start"):
                    ends[i.name] = max(ends.get(i.name, 0.0), carried.pop(channel))
                elif last[channel] is i:
                    now = max(now, carried.pop(channel))
        return max(now, *free.values())

    def _count(self, kind: str, times: int, over: str, moved: float, seconds: float) -> float:
        """Add a collective that runs `times` times to the sums; its seconds."""
        row = self.collectives.setdefault((kind, over), [0, 0.0, 0.0])
        for place, value in enumerate((1, moved, seconds)):
            row[place] += times * value
        return seconds

    def _compute(self, i: Instruction, computation: Computation, times: int) -> float:
        """Seconds of computing of one instruction; adds up its work."""
        if i.opcode in _FREE or i.opcode.removesuffix("-start") in COLLECTIVES:
            return 0.0
        flops, traffic = self._flops(i, computation), _traffic(i, computation, self.module)
        self.flops += times * flops
        self.bytes += times * traffic
        if i.opcode.endswith("-start") or i.opcode in ("send", "recv"):
            return 0.0
        seconds = max(flops * self._padding(i, computation) / self.chip.flops, traffic / self.chip.hbm_rate)
        if not self.by_peaks:
            seconds = self._told(i, seconds)
        self.busy += times * seconds
        return seconds

    def _told(self, i: Instruction, otherwise: float) -> float:
        """Seconds by the compiler's own cost model, `otherwise` where it says nothing."""
        if self.chip.clock:
            return otherwise if i.cycles is None else i.cycles / self.chip.clock
        return otherwise if i.estimate is None else i.estimate

    def _flops(self, i: Instruction, computation: Computation) -> float:
        if library(i):
            return call_flops(i, computation)
        if i.opcode in ("dot", "convolution"):
            return hlo.product_flops(i, computation)
        if i.opcode == "fusion":
            return self._inside(i.call("calls"))[0]
        if i.opcode == "custom-call" and (target := re.search(r'custom_call_target="([^"]*)"', i.attributes)):
            if target[1] not in _NO_KERNELS:
                operands = [computation.by_name[name] for name in i.operands if name in computation.by_name]
                elements = sum(s.elements for o in operands for s in o.shapes)
                named = [k for k in self.kernels if k.name in i.op_name or k.name in i.name]
                return min(named, key=lambda k: abs(k.elements - elements)).flops if named else 0.0
        return 0.0

    def _padding(self, i: Instruction, computation: Computation) -> float:
        """By what a kernel's narrow products fall short of the matrix unit: heads of 64 fill half of one of 128."""
        if i.opcode != "custom-call" or not self.chip.mxu:
            return 1.0
        widths = [s.dims[-1] for name in i.operands if name in computation.by_name
                  for s in computation.by_name[name].shapes if len(s.dims) >= 3 and s.dtype == "bf16"]
        return self.chip.mxu / min(min(widths), self.chip.mxu) if widths else 1.0

    def _inside(self, name: str) -> tuple[float, list[tuple[Instruction, Computation]]]:
        """(FLOPs, collectives and where they stand) within a fused or asynchronous computation."""
        if name not in self.inside:
            flops, found = 0.0, []
            computation = self.module.computations[name]
            for i in computation.instructions:
                if i.opcode in ("dot", "convolution"):
                    flops += hlo.product_flops(i, computation)
                elif library(i):
                    flops += call_flops(i, computation)
                elif i.opcode.removesuffix("-start") in COLLECTIVES:
                    found.append((i, computation))
                for role, target in i.called:
                    if role in ("calls", "to_apply") and i.opcode in ("fusion", "call", "async-start"):
                        more, others = self._inside(target)
                        flops, found = flops + more, found + others
            self.inside[name] = flops, found
        return self.inside[name]

    def _joined(self, i: Instruction, computation: Computation) -> list[tuple[str, float, float, str]]:
        """(kind, bytes in, bytes out, attributes) of the collectives that an instruction starts or is."""
        kind = i.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            operands = [computation.by_name[name] for name in i.operands if name in computation.by_name]
            given = sum(s.bytes for o in operands for s in o.shapes)
            made = given if kind != "all-gather" else _gathered(i, given)
            made = sum(s.bytes for s in i.shapes) if kind == "reduce-scatter" else made
            return [(kind, given, made, i.attributes)]
        if i.opcode not in ("fusion", "async-start") or not i.call("calls"):
            return []
        rows = []
        for inner, home in self._inside(i.call("calls"))[1]:
            (row,) = self._joined(inner, home)
            scattered = inner.opcode == "all-reduce" and sum(s.bytes for s in i.shapes) * 2 <= row[1] and (
                any(o.opcode == "dynamic-slice" for o in home.instructions))
            rows.append(("reduce-scatter", row[1], sum(s.bytes for s in i.shapes), row[3]) if scattered else row)
        return rows


def _channel(joined: tuple[str, float, float, str], i: Instruction) -> str:
    """What tells a collective from the others of its computation, also where several fusions carry it."""
    found = re.search(r"channel_id=(\d+)", joined[3])
    return found[1] if found else i.name


def _gathered(i: Instruction, given: float) -> float:
    """Bytes that an all-gather makes; one that is started names its operands among its results too."""
    total = sum(s.bytes for s in i.shapes)
    return total - given if i.opcode.endswith("-start") and len(i.shapes) > 1 else total


def _traffic(i: Instruction, computation: Computation, module: Module) -> float:
    """Bytes that an instruction moves to and from the chip's main memory."""
    here = lambda shapes: sum(s.bytes for s in shapes if s.space == 0)
    given = [computation.by_name[name].shapes for name in i.operands if name in computation.by_name]
    if i.opcode == "custom-call" and any(f'"{name}"' in i.attributes for name in _NO_KERNELS):
        return 0.0
    if i.opcode in ("send", "recv"):
        return here(i.shapes[:1])
    if i.opcode in ("copy-start", "slice-start"):
        moved = min(i.shapes[:2], key=lambda s: s.bytes)
        return moved.bytes * sum(s.space == 0 for s in i.shapes[:2])
    if i.opcode in ("dynamic-slice", "slice", "gather"):
        return 2.0 * here(i.shapes)
    if i.opcode == "dynamic-update-slice":
        return 2.0 * here(given[1]) if len(given) > 1 else 0.0
    if i.opcode != "fusion":
        return here(results(i) if library(i) else i.shapes) + sum(map(here, given))
    fused = module.computations[i.call("calls")]
    return _written(fused) + sum(_read(fused, place) for place in range(len(i.operands)))


def _written(fused: Computation) -> float:
    """Bytes that a fusion writes: of an update in place, only what it updates."""
    root = fused.root
    outputs = [fused.by_name[name] for name in root.operands] if root.opcode == "tuple" else [root]
    total = 0.0
    for output in outputs:
        while output.opcode == "bitcast" and output.operands and output.operands[0] in fused.by_name:
            output = fused.by_name[output.operands[0]]
        if output.opcode == "dynamic-update-slice":
            output = fused.by_name[output.operands[1]]
        total += sum(s.bytes for s in output.shapes if s.space == 0)
    return total


def _read(fused: Computation, place: int) -> float:
    """Bytes that a fusion reads of its operand at `place`: only slices where nothing but slices of it are used."""
    parameter = next(i for i in fused.instructions if i.opcode == "parameter" and i.arguments == str(place))
    if not any(s.space == 0 for s in parameter.shapes):
        return 0.0
    uses, names = [], {parameter.name}
    for i in fused.instructions:
        if names & set(i.operands):
            if i.opcode == "bitcast":
                names.add(i.name)
            else:
                uses.append(i)
    whole = sum(s.bytes for s in parameter.shapes)
    read = 0.0
    for use in uses:
        if use.opcode in ("dynamic-slice", "slice", "gather"):
            read += sum(s.bytes for s in use.shapes)
        elif use.opcode == "dynamic-update-slice" and use.operands[0] in names:
            continue
        else:
            return whole
    return min(read, whole)


