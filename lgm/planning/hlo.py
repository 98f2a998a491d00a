"""Reading a compiled program: the text of an optimised HLO module as computations of instructions.

Only what a plan needs is understood: shapes and where they lie, operands, called computations, loops' trip counts,
products' and convolutions' work, and which devices a collective joins.
"""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Mapping

import numpy as np

_BITS = {"pred": 8, "s4": 4, "u4": 4, "f8": 8, "c64": 64, "c128": 128, "token": 0}
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^{}]*)\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAME = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_OPERAND = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(calls|body|condition|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_REIFIED = re.compile(r'"reification_cost":(\[[^\]]*\])')
_OP_NAME = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array of a type; `space` is 0 for the chip's main memory, others are on the chip or on the host."""

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        """Size without the padding of tiles."""
        bits = _BITS.get(self.dtype) or int(re.sub(r"\D", "", self.dtype[1:].split("e")[0]) or 32)
        return self.elements * bits / 8


@dataclasses.dataclass(frozen=True, eq=False)
class Instruction:
    """One line: its results, opcode, operands' names, called computations by role, and all else as text."""

    name: str
    root: bool
    shapes: tuple[Shape, ...]
    opcode: str
    operands: tuple[str, ...]
    arguments: str
    called: tuple[tuple[str, str], ...]
    attributes: str

    @functools.cached_property
    def cycles(self) -> int | None:
        """What the compiler's own cost model says this takes, in the chip's cycles, where it says so."""
        found = _CYCLES.search(self.attributes)
        return int(found[1]) if found else None

    @functools.cached_property
    def estimate(self) -> float | None:
        """What XLA:GPU's cost models say this takes, in seconds, where one of them is of its kind.

        Products have a table of measured ones ("sol"), fusions a model of their loops; of a fusion in tiles that model
        is wrong by orders of magnitude, and one of its tiles stands beside it.
        """
        found = _REIFIED.search(self.attributes)
        costs = {row["name"]: row["exec_time_us"] * 1e-6 for row in json.loads(found[1])} if found else {}
        tiled = re.search(r'"kind":"__triton(\w*)"', self.attributes)
        if self.opcode != "fusion" or tiled and "gemm" in tiled[1]:
            return costs.get("sol")
        return costs.get("indexing-cost-model" if tiled else "")

    @functools.cached_property
    def op_name(self) -> str:
        """The path of JAX calls that it came from."""
        found = _OP_NAME.search(self.attributes)
        return found[1] if found else ""

    def call(self, role: str) -> str | None:
        """The computation called as `role`."""
        return next((name for kind, name in self.called if kind == role), None)


@dataclasses.dataclass(frozen=True, eq=False)
class Computation:
    """Instructions in the order in which they are scheduled."""

    name: str
    instructions: tuple[Instruction, ...]

    @functools.cached_property
    def by_name(self) -> Mapping[str, Instruction]:
        """Instructions by their names."""
        return {i.name: i for i in self.instructions}

    @property
    def root(self) -> Instruction:
        """The instruction whose result is the computation's."""
        return next((i for i in self.instructions if i.root), self.instructions[-1])


@dataclasses.dataclass(frozen=True, eq=False)
class Module:
    """A compiled program."""

    computations: Mapping[str, Computation]
    entry: str

    def trips(self, loop: Instruction) -> int:
        """How often a `while` runs: its counter starts at zero and is compared with a constant, else 1.

        The step is by ones, but for loops that the compiler has unrolled, as of products that pass their operands on.
        """
        known = re.search(r'known_trip_count\D*(\d+)', loop.attributes)
        if known:
            return int(known[1])
        condition, body = (self.computations[loop.call(role)] for role in ("condition", "body"))
        limits = [int(i.arguments) for i in condition.instructions
                  if i.opcode == "constant" and re.fullmatch(r"\d+", i.arguments)]
        return -(-max(limits, default=1) // _step(condition, body))


def _step(condition: Computation, body: Computation) -> int:
    """By what the counter of a loop grows each time."""
    counters = [re.search(r"index=(\d+)", i.attributes) for name in condition.root.operands
                if (i := condition.by_name.get(name)) and i.opcode == "get-tuple-element"]
    if len(counters) == 1 and counters[0] and body.root.opcode == "tuple":
        grown = body.by_name.get(body.root.operands[int(counters[0][1])])
        terms = [body.by_name.get(name) for name in grown.operands] if grown and grown.opcode == "add" else []
        steps = [int(i.arguments) for i in terms if i and i.opcode == "constant" and i.arguments.isdigit()]
        return max(steps, default=1) or 1
    return 1


def parse(text: str) -> Module:
    """The module of `compiled.as_text()`."""
    computations, entry, name, lines = {}, "", "", []
    for line in text.splitlines():
        if name and (line == "}" or line.startswith("}, execution_thread=")):
            computations[name] = Computation(name, tuple(_instruction(found) for found in lines))
            name = ""
        elif not line.startswith(" ") and " -> " in line and (head := _HEAD.match(line)):
            name, lines = head[1], []
            entry = name if line.startswith("ENTRY") else entry
        elif name and _NAME.match(line):
            lines.append(line)
        elif name:  # a kernel's metadata goes over several lines
            lines[-1] += line
    return Module(computations, entry)


def _instruction(line: str) -> Instruction:
    found = _NAME.match(line)
    rest = line[found.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    arguments, attributes = rest[opening + 1 : closing], rest[closing + 1 :]
    called = [(role, target) for role, target in _CALLED.findall(attributes)]
    branches = _BRANCHES.search(attributes)
    called += [("branch", target) for target in _OPERAND.findall(branches[1])] if branches else []
    return Instruction(found[2], bool(found[1]), shapes(kind), rest[:opening], tuple(_OPERAND.findall(arguments)),
                       arguments.strip(), tuple(called), attributes)


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return i
    raise ValueError(f"unbalanced parentheses in {text[:80]!r}")


def shapes(kind: str) -> tuple[Shape, ...]:
    """The arrays of a type, those of a tuple side by side."""
    found = []
    for dtype, dims, layout in _SHAPE.findall(kind):
        space = _SPACE.search(layout)
        found.append(Shape(dtype, tuple(map(int, filter(None, dims.split(",")))), int(space[1]) if space else 0))
    return tuple(found)


def product_flops(instruction: Instruction, computation: Computation) -> float:
    """Floating-point operations of a `dot` or `convolution`, two a multiply-add; positions in padding do not count."""
    left, right = (computation.by_name[name].shapes[0] for name in instruction.operands[:2])
    out = instruction.shapes[0]
    if instruction.opcode == "dot":
        contracting = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        sizes = [left.dims[int(d)] for d in contracting[1].split(",") if d] if contracting else []
        return 2.0 * out.elements * math.prod(sizes)
    return convolution_flops(instruction.attributes, left, right, out)


def convolution_flops(attributes: str, left: Shape, right: Shape, out: Shape) -> float:
    """Floating-point operations of a convolution of `left` by the kernel `right`."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    inputs, kernel, outputs = labels[1], labels[2], labels[3]
    spatial = [label for label in outputs if label.isdigit()]
    window = _window(attributes, len(spatial))
    # what is multiplied at all, over each spatial dimension: kernel taps that meet a value, summed over outputs
    taps = 1.0
    for label, options in zip(sorted(spatial), window, strict=True):
        taps *= _taps(left.dims[inputs.index(label)], right.dims[kernel.index(label)], out.dims[outputs.index(label)],
                      **options)
    batch, features = out.dims[outputs.index("b")], out.dims[outputs.index("f")]
    groups = re.search(r"batch_group_count=(\d+)", attributes)
    return 2.0 * batch * features * right.dims[kernel.index("i")] * taps / (int(groups[1]) if groups else 1)


def _window(attributes: str, rank: int) -> list[dict[str, int]]:
    """Stride, padding and dilations of each spatial dimension."""
    found = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(field.split("=") for field in found[1].split()) if found else {}
    split = lambda key, default: fields[key].split("x") if key in fields else [default] * rank
    columns = zip(split("stride", "1"), split("pad", "0_0"), split("lhs_dilate", "1"), split("rhs_dilate", "1"),
                  strict=True)
    return [dict(stride=int(s), low=int(p.split("_")[0]), lhs=int(a), rhs=int(b)) for s, p, a, b in columns]


def _taps(size: int, kernel: int, out: int, stride: int, low: int, lhs: int, rhs: int) -> int:
    """Pairs of output position and kernel tap that lie on a value rather than in padding or between dilated values."""
    place = np.arange(out)[:, None] * stride - low + np.arange(kernel)[None] * rhs
    return int(((place >= 0) & (place <= (size - 1) * lhs) & (place % lhs == 0)).sum())


@functools.lru_cache(maxsize=4096)
def devices_joined(attributes: str) -> tuple[np.ndarray, int] | None:
    """(positions in the mesh of one group of devices that a collective joins, how many groups); None for all devices.

    Understands lists of groups, iota lists, named meshes and the pairs of a permutation.
    """
    if pairs := re.search(r"source_target_pairs=\{((?:\{[\d,]+\},?)*)\}", attributes):
        targets = re.findall(r"\{(\d+),(\d+)\}", pairs[1])
        return np.array([[int(a), int(b)] for a, b in targets]).reshape(-1, 2), len(targets)
    if listed := re.search(r"replica_groups=\{(\{[\d,]*\}(?:,\{[\d,]*\})*)\}", attributes):
        groups = [[int(d) for d in group.split(",") if d] for group in re.findall(r"\{([\d,]*)\}", listed[1])]
        return np.array(groups[0]), len(groups)
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        return _iota(iota)
    if named := re.search(r"replica_groups=@?mesh\w*\[([^\]]*)\]\s*(?:,\s*device_ids=\(([^)]*)\))?\s*\{([^}]*)\}",
                          attributes):
        return _named(named)
    return None


def transfer(attributes: str) -> tuple[str, str, int] | None:
    """(name, kind, slices that take part) of a collective's part between TPU slices, of which `send` and `recv` remain.

    The compiler does what is within a slice by collectives and leaves the rest to its runtime, each device exchanging
    with those at its place in other slices. None for any other transfer.
    """
    name = re.search(r'_xla_host_transfer_rendezvous="([^"]*)"', attributes)
    kind = re.search(r'_xla_megascale_transfer_type="([^"]*)"', attributes)
    if not name or not kind:
        return None
    # "{1,2,3,4}x{0:3}", slices by devices of each, or groups of slice and device in one number
    target = re.search(r'_xla_megascale_target="?\{+([\d,]+)\}', attributes)
    return name[1], kind[1].lower().replace("_", "-"), len(target[1].split(",")) if target else 2


def _iota(found: re.Match) -> tuple[np.ndarray, int]:
    numbers = lambda text: [int(n) for n in text.split(",")]
    order = np.arange(math.prod(numbers(found[2]))).reshape(numbers(found[2]))
    if found[3]:
        order = order.transpose(numbers(found[3]))
    groups = order.reshape(numbers(found[1]))
    return groups[0], len(groups)


def _named(found: re.Match) -> tuple[np.ndarray, int]:
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", found[1])}
    order = np.arange(math.prod(sizes.values()))
    if found[2] and (iota := re.search(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", found[2])):
        order = order.reshape([int(n) for n in iota[1].split(",")])
        order = order.transpose([int(n) for n in iota[2].split(",")]) if iota[2] else order
    # an axis of the group is a whole one of the mesh, or 'name':(before)size, a part of one
    dims, chosen = [], []
    parts = {name: (int(before), int(size)) for name, before, size in re.findall(r"'([^']+)':\((\d+)\)(\d+)", found[3])}
    whole = [name for name in re.findall(r"'([^']+)'", found[3]) if name not in parts]
    for name, size in sizes.items():
        before, part = parts.get(name, (size, 1))
        pieces = [(before, name in whole), (part, True), (size // (before * part), False)]
        for length, joined in pieces:
            chosen += [len(dims)] if joined else []
            dims.append(length)
    rest = [i for i in range(len(dims)) if i not in chosen]
    groups = order.reshape(dims).transpose(rest + chosen).reshape(-1, math.prod(dims[i] for i in chosen))
    return groups[0], len(groups)
