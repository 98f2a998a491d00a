"""The README's plans on GPUs, by XLA:GPU without a GPU: six systems on 8 and on 64, and a peer's shapes on one.

    pip install -e '.[plan-gpu]'
    python tools/plan_gpus.py                      compiles what tools/plans/gpu has not, then writes the tables
    python tools/plan_gpus.py --only=sd3_medium    as much of that as one system or case needs; --only= for none
    python tools/plan_gpus.py --check=DIR          beside what tools/gpu_figures.sh measured on this GPU

A program is compiled as far as its schedule, one to five minutes of a core. --check exits with 1 where memory is more
than 5% or the step more than 15% beyond what was planned; what is not planned yet of that GPU is compiled first.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from bench_cases import CASES, config_of  # noqa: E402
from plan_pods import TITLES, mesh  # noqa: E402

from lgm import config as schema  # noqa: E402
from lgm.config import Config  # noqa: E402
from lgm.files import write_atomically  # noqa: E402
from lgm.parallel.chips import chip_of  # noqa: E402
from lgm.planning import gpus, plan  # noqa: E402
from lgm.planning.page import as_json  # noqa: E402

ROOT = Path(__file__).resolve().parent
PLANS = ROOT / "plans" / "gpu"
MEMORY, STEP = 0.05, 0.15  # shares of what was planned by which a measurement may be off


@dataclasses.dataclass(frozen=True)
class Row:
    """A system of configs/pod.py on nodes of GPUs: images a GPU, and the mesh and remat policy to compile for."""

    system: str
    machine: str
    images: int
    mesh: dict[str, int]
    remat: str = "full"

    @property
    def place(self) -> Path:
        """Where its plan is kept."""
        split = "-".join(f"{axis}{size}" for axis, size in self.mesh.items())
        return PLANS / f"{self.system}_{self.machine.replace(':', '_')}_{split}_{self.remat}.json"

    def config(self) -> Config:
        """What is compiled."""
        nodes, each = map(int, self.machine.partition(":")[2].split("x"))
        sizes = {"data": 1, "fsdp": 1, **self.mesh}
        return schema.load(f"{ROOT.parent / 'configs' / 'pod.py'}:{self.system}", [
            ("batch_size", str(nodes * each * self.images)), ("model.remat", self.remat),
            *((f"mesh.{axis}", str(size)) for axis, size in sizes.items())])  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
    """One of the shapes of `bench_train.py` on one GPU."""

    system: str
    machine: str

    @property
    def place(self) -> Path:
        """Where its plan is kept."""
        return PLANS / f"case_{self.system}_{self.machine.partition(':')[0]}.json"

    def config(self) -> Config:
        """What is compiled."""
        return config_of(self.system)


NODE, FLEET = dict(fsdp=8), dict(data=8, fsdp=8)  # weights are gathered within a node, gradients summed between nodes
IMAGES = {"sdxl": 8, "sd3_medium": 16, "sd35_large": 8, "flux_dev": 4, "z_image": 4, "qwen_image": 4}
REMAT = {"sd3_medium": "dots"}  # what keeps most and fits
PODS = tuple(
    Row(name, f"{chip}:{shape}", images * IMAGES[name], sizes, REMAT.get(name, "full"))
    for chip, shape, images, sizes, names in (
        ("h100", "1x8", 1, NODE, IMAGES), ("h100", "8x8", 1, FLEET, IMAGES),
        ("h200", "8x8", 2, FLEET, ("sd3_medium", "flux_dev")), ("b200", "8x8", 2, FLEET, ("sd3_medium", "flux_dev")),
    ) for name in names)  # fmt: skip
ONE = tuple(Case(name, f"{chip}:1x1") for chip in ("h100", "h200") for name in CASES)


def planned(row: Row | Case) -> dict | None:
    """A plan as plain values, if it has been compiled with the options of today."""
    found = json.loads(row.place.read_text()) if row.place.exists() else None
    return found if found and found["options"] == gpus.told(found["chip"]) else None


def compiled(row: Row | Case) -> dict:
    """As `planned`, compiled where it has not been."""
    if found := planned(row):
        return found
    made = plan(row.config(), row.machine, quick=True)
    versions = {name: importlib.metadata.version(name) for name in ("jaxlib", "jax-cuda13-plugin")}
    values = as_json(made) | {"versions": versions}
    write_atomically(row.place, (json.dumps(values, indent=1) + "\n").encode())
    print(f"{row.place.stem}: {made.speed if made.fits else made.reason}", flush=True)
    return values


def main() -> int:
    """Compile, write tables, compare; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = [*IMAGES, *CASES, ""]
    parser.add_argument("--only", action="append", choices=names, help="compile for this; may be repeated")
    parser.add_argument("--check", type=Path, metavar="DIR", help="compare with the figures in DIR")
    arguments = parser.parse_args()
    if arguments.check:
        return check(arguments.check)
    if not gpus.installed():
        print("XLA:GPU is not installed: pip install -e '.[plan-gpu]'", file=sys.stderr)
        return 2
    for row in (*ONE, *PODS):
        if arguments.only is None or row.system in arguments.only:
            compiled(row)
    write_atomically(PLANS / "table.md", table().encode())
    write_atomically(PLANS / "peers.md", peers().encode())
    return 0


def table() -> str:
    """The systems as a Markdown table."""
    lines = ["| system | GPUs | mesh | remat | images a step | GB a GPU | step by peaks / by the compiler | MFU | "
             "NVLink / network GB a GPU | compiled in |", "|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in PODS:
        if not (p := planned(row)):
            continue
        both = lambda key, form: " / ".join(format(p[meter][key], form) for meter in ("peak", "cycles"))
        speed = f"{both('step', '.2f')} s | {both('mfu', '.0%')}" if p["fits"] else "does not fit | "
        memory = f"{p['memory']['total'] / 1e9:.1f} of {p['memory']['capacity'] / 1e9:.0f}"
        lines.append(f"| {TITLES[row.system]} | {p['topology']} ({p['chips']}) | {mesh(p)} | {p['remat']} | "
                     f"{p['batch_size']:,} | {memory} | {speed} | {p['ici_bytes'] / 1e9:.0f} / "
                     f"{p['dcn_bytes'] / 1e9:.2f} | {p['compile_seconds'] / 60:.1f} min |")  # fmt: skip
    return "\n".join(lines) + "\n"


def peers() -> str:
    """The shapes of one H100, planned of lgm, beside what diffusers took of them there, as a Markdown table."""
    lines = ["| training step, one H100 | batch | GB | images/s, planned of lgm | diffusers, measured | MFU planned |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for row in ONE:
        if row.machine != "h100:1x1" or not (p := planned(row)) or not p["peak"]:
            continue
        slow, fast = sorted(p[meter]["images_per_second"] for meter in ("peak", "cycles"))
        low, high = sorted(p[meter]["mfu"] for meter in ("peak", "cycles"))
        lines.append(f"| {row.system} | {p['batch_size']} | {p['memory']['total'] / 1e9:.1f} | {slow:.3g} to "
                     f"{fast:.3g} | {CASES[row.system].h100:.3g} | {low:.0%} to {high:.0%} |")  # fmt: skip
    return "\n".join(lines) + "\n"


def check(folder: Path) -> int:
    """Print what was measured beside what is planned, and say whether all of it is as near as it should be."""
    far = 0
    print(f"{'':<16}{'GB planned':>12}{'measured':>10}{'step by peaks':>15}{'compiler':>10}{'measured':>10} ms")
    for name, measured in measurements(folder):
        chip = chip_of(measured["device"])
        if chip is None or chip.name not in gpus.TARGETS or measured["devices"] != 1:
            print(f"{name:<16}measured on {measured['devices']} x {measured['device']}, of which there are no plans")
            far += 1
            continue
        p = compiled(Case(name, f"{chip.name}:1x1"))
        wrong = off(p, measured)
        far += bool(wrong)
        print(f"{name:<16}{p['memory']['total'] / 1e9:12.2f}{measured['peak_gb']:10.2f}{p['peak']['step'] * 1e3:15.1f}"
              f"{p['cycles']['step'] * 1e3:10.1f}{measured['step_s'] * 1e3:10.1f}{' '.join(['', *wrong])}")
    return int(far > 0)


def measurements(folder: Path) -> Iterator[tuple[str, dict]]:
    """(case, figures) of the cases that `bench_train.py` has written into a folder."""
    for name in CASES:
        path = folder / f"train_{name}.json"
        if row := json.loads(path.read_text()).get(name) if path.exists() else None:
            yield name, row


def off(p: dict, measured: dict) -> list[str]:
    """In what a measurement is too far from a plan: beyond 5% of its memory, or 15% outside the range of its step."""
    wrong = []
    if abs(measured["peak_gb"] / (p["memory"]["total"] / 1e9) - 1) > MEMORY:
        wrong.append("memory")
    low, high = sorted((p["peak"]["step"], p["cycles"]["step"]))
    if not low * (1 - STEP) <= measured["step_s"] <= high * (1 + STEP):
        wrong.append("step")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
