"""Where a train step's time goes: a profiler's trace as a table, by what the program's instructions are for.

    python tools/profile_step.py --config=configs/quickstart.py           on whatever device there is
    python tools/profile_step.py --case=sd3_1024 --steps=5 --keep=DIR     and keep the trace and the program

Every event of the trace is looked up in the compiled program: products, attention, convolution, norm and modulation,
optimizer (with EMA), copies and layouts, collectives, the rest; idle is when no event runs. What a fusion is for is
what it contains, then where in the source its result comes from. Times are a step's, summed over the streams or threads
of one device; an event counts without those that it encloses.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import jax

from lgm.planning import hlo
from lgm.planning.cost import COLLECTIVES

KINDS = ("products", "attention", "convolution", "norm and modulation", "optimizer", "copies", "collectives", "other")
COPIES = {"copy", "transpose", "concatenate", "slice", "dynamic-slice", "dynamic-update-slice", "pad", "reverse",
          "reshape", "bitcast-convert", "broadcast", "copy-start", "copy-done", "gather"}  # fmt: skip
NORMS = re.compile(r"norm|modulated", re.IGNORECASE)
FRAME = re.compile(r"stack_frame_id=(\d+)")


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that ran on a line (stream or thread) of a device, in nanoseconds; `name` is its instruction's."""

    device: str
    line: str
    name: str
    start: float
    end: float


def events_of(folder: Path) -> list[Event]:
    """The events of instructions, and of kernels and copies of none, in a folder of `jax.profiler.trace`."""
    found = []
    for path in folder.rglob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            accelerator = re.match(r"/device:(GPU|TPU)", plane.name)
            for number, line in enumerate(plane.lines):
                if accelerator and not re.match(r"Stream|XLA Ops", line.name):
                    continue  # the same once more, by modules and source lines
                for event in line.events:
                    told = {key: value for key, value in event.stats if key == "hlo_op"}.get("hlo_op")
                    if told is None and not accelerator:
                        continue  # the host's own affairs
                    name = told or re.sub(r"^%?([\w.\-]+) = .*", r"\1", event.name, flags=re.DOTALL)
                    found.append(Event(plane.name, f"{line.name} {number}", str(name), event.start_ns,
                                       event.start_ns + event.duration_ns))
    return found


class Purposes:
    """What the instructions of a compiled program, given as text, are for."""

    def __init__(self, text: str):
        self.module = hlo.parse(text)
        self.instructions = {i.name: i for c in self.module.computations.values() for i in c.instructions}
        self.frames = _frames(text)
        self.of = functools.cache(self._of)

    def _of(self, name: str) -> str:
        """The kind of an event by its instruction's name; of kernels without one, by their own."""
        i = self.instructions.get(name)
        if i is None:
            if re.search(r"nccl|all_?reduce|all_?gather|reduce_?scatter", name, re.IGNORECASE):
                return "collectives"
            return "copies" if re.search(r"memcpy|memset|copy", name, re.IGNORECASE) else "other"
        inside = {i.opcode for i in self._inside(i)}
        paths = " ".join(j.op_name for j in self._inside(i))
        where = [frame for found in FRAME.findall(i.attributes) for frame in self.frames.get(int(found), ())]
        if any(opcode.removesuffix("-start").removesuffix("-done") in COLLECTIVES for opcode in inside):
            return "collectives"
        if "fmha" in i.attributes or any(re.search(r"models/(attention|splash)\.py$", file) for file, _ in where):
            return "attention"
        if "conv_general_dilated" in paths and inside & {"convolution", "custom-call"}:
            return "convolution"
        if inside & {"dot", "convolution"} or re.search(r"gemm|matmul|dot", i.attributes.split("metadata=")[0]):
            return "products"
        if any("/optax/" in file or re.search(r"train/(optimizer|muon|in_place)\.py$", file) for file, _ in where) or (
                where and where[0][0].endswith("train/state.py")):
            return "optimizer"
        if any(NORMS.search(function) for file, function in where if "/models/" in file):
            return "norm and modulation"
        return "copies" if inside <= COPIES | {"parameter", "constant", "fusion", "bitcast", "tuple"} else "other"

    def _inside(self, i: hlo.Instruction) -> Iterator[hlo.Instruction]:
        yield i
        for role, target in i.called:
            if role in ("calls", "to_apply") and i.opcode in ("fusion", "call", "async-start"):
                for inner in self.module.computations[target].instructions:
                    yield from self._inside(inner)


def _frames(text: str) -> dict[int, list[tuple[str, str]]]:
    """The (file, function) pairs of each stack frame that a program's text lists, the innermost first."""
    tables: dict[str, dict[int, str]] = collections.defaultdict(dict)
    table = ""
    for line in text.splitlines():
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            table = line
        elif table and (row := re.match(r"(\d+) (.*)", line)):
            tables[table][int(row[1])] = row[2]
        elif line.startswith(("ENTRY", "%")):
            break
    number = lambda row, key: int(re.search(rf"{key}=(\d+)", row)[1])
    chains: dict[int, list[tuple[str, str]]] = {}
    for first in tables["StackFrames"]:
        frame, chain, seen = first, [], set()
        while frame in tables["StackFrames"] and frame not in seen:
            seen.add(frame)
            row = tables["StackFrames"][frame]
            place = tables["FileLocations"][number(row, "file_location_id")]
            chain.append((tables["FileNames"][number(place, "file_name_id")].strip('"'),
                          tables["FunctionNames"][number(place, "function_name_id")].strip('"')))
            frame = number(row, "parent_frame_id") - 1 if "parent_frame_id" in row else 0
        chains[first] = chain
    return chains


def table_of(events: Iterable[Event], purposes: Purposes, steps: int) -> dict[str, tuple[float, float]]:
    """(milliseconds, events) a step of every kind, and of "idle" and "all" (the time from first to last event), on the
    first device."""
    events = sorted(events, key=lambda e: (e.start, -e.end))
    device = min(e.device for e in events)
    sums: dict[str, list[float]] = {kind: [0.0, 0] for kind in KINDS}
    lines: Mapping[str, list[Event]] = collections.defaultdict(list)
    for event in (e for e in events if e.device == device):
        lines[event.line].append(event)
    for line in lines.values():
        around: list[Event] = []  # those that are still running
        for event in line:
            while around and around[-1].end <= event.start:
                around.pop()
            row = sums[purposes.of(event.name)]
            row[0] += event.end - event.start
            row[1] += 1
            if around:
                sums[purposes.of(around[-1].name)][0] -= event.end - event.start
            around.append(event)
    busy, end, first = 0.0, 0.0, None
    for event in (e for e in events if e.device == device):
        first = event.start if first is None else first
        busy += max(event.end - max(event.start, end), 0.0)
        end = max(end, event.end)
    found = {kind: (ns / 1e6 / steps, count / steps) for kind, (ns, count) in sums.items()}
    return found | {"idle": ((end - first - busy) / 1e6 / steps, 0), "all": ((end - first) / 1e6 / steps, 0)}


def main() -> None:
    """Compile, run under the profiler, print."""
    from bench_cases import CASES, config_of, opened

    from lgm import config as schema

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--config", help="a page instead: file.py or file.py:arg")
    parser.add_argument("--small", action="store_true", help="the case in small")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--keep", help="a folder for the trace and the program")
    arguments = parser.parse_args()
    if (arguments.case is None) == (arguments.config is None):
        parser.error("give --case or --config")
    run = opened(schema.load(arguments.config) if arguments.config else config_of(arguments.case, arguments.small))
    compiled = run.step.run.lower(run.state, run.frozen, run.batch).compile()
    state, _ = jax.block_until_ready(compiled(run.state, run.frozen, run.batch))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(arguments.keep or name)
        with jax.profiler.trace(str(folder)):
            for _ in range(arguments.steps):
                state, metrics = compiled(state, run.frozen, run.batch)
            jax.block_until_ready(metrics)
        (folder / "program.txt").write_text(compiled.as_text())
        rows = table_of(events_of(folder), Purposes(compiled.as_text()), arguments.steps)
    print(f"{run.config.name} on {jax.devices()[0].device_kind}, a step of {arguments.steps}: {rows['all'][0]:.4g} ms")
    worked = sum(rows[kind][0] for kind in KINDS)
    for kind in (*KINDS, "idle"):
        milliseconds, events = rows[kind]
        share = milliseconds / (worked if kind in KINDS else rows["all"][0])
        print(f"  {kind:<22}{milliseconds:10.3f} ms {share:7.1%} {events:8.0f}")


if __name__ == "__main__":
    main()
