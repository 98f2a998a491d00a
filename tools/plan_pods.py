"""The README's plans of full-size training on pods, and weak scaling from 8 to 2,048 chips, from compiled programs.

    python tools/plan_pods.py                 compiles what tools/plans has not, then writes table and figure
    python tools/plan_pods.py --only=sdxl     as much of that as one row needs
    python tools/plan_pods.py --only=         table and figure of what there is

Of each row the meshes and remat policies that one would try first are compiled as far as their schedule; the fastest
by peaks that fits is the row's, and is compiled to the end for the compiler's cycles. Writes a JSON a program (delete
it to have it made again; one that was made with other compiler options is made again too), table.md and
weak_scaling.png into tools/plans. A program takes one to five minutes of a free core and up to 4 GB, to the end up to
ten; no TPU, folder or weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from lgm import config as schema  # noqa: E402
from lgm.files import write_atomically  # noqa: E402
from lgm.parallel.options import options_of  # noqa: E402
from lgm.planning import Topology, read_topology  # noqa: E402
from lgm.planning.page import as_json  # noqa: E402
from lgm.planning.plan import compiled_plan  # noqa: E402
from lgm.planning.scaling import resized, weak_scaling  # noqa: E402

ROOT = Path(__file__).resolve().parent
PLANS = ROOT / "plans"
TITLES = {"sdxl": "SDXL", "sd3_medium": "SD3-medium", "sd35_large": "SD3.5-large", "flux_dev": "Flux.1-dev",
          "z_image": "Z-Image", "qwen_image": "Qwen-Image"}  # fmt: skip
COLOURS = {"sdxl": "#d1495b", "sd3_medium": "#30638e", "flux_dev": "#00798c"}


@dataclasses.dataclass(frozen=True)
class Choice:
    """A mesh and a remat policy to compile for."""

    mesh: dict[str, int]
    remat: str = "full"


@dataclasses.dataclass(frozen=True)
class Row:
    """A config on a machine. `weak` are the machines on which its fastest choice is timed with the same batch a chip,
    `checked` those of them that it is compiled for as well."""

    system: str
    machine: Topology
    batch_size: int
    tried: tuple[Choice, ...]
    weak: tuple[Topology, ...] = ()
    checked: tuple[Topology, ...] = ()


v5e, v5p, v6e = ((lambda shape, slices=1, chip=chip: read_topology(f"{chip}:{shape}", slices))
                 for chip in ("v5e", "v5p", "v6e"))  # fmt: skip
V5E = (v5e("2x4"), v5e("4x4"), v5e("8x8"), v5e("16x16"), v5e("16x16", 2), v5e("16x16", 4), v5e("16x16", 8))
V5P = (v5p("2x2x2"), v5p("4x4x2"), v5p("4x4x8"), v5p("8x8x8"), v5p("8x8x16"), v5p("8x16x16"))
ROWS = {
    "sdxl": Row("sdxl", v5e("4x4"), 64, (
        Choice(dict(data=2, fsdp=8), "attention"), Choice(dict(data=2, fsdp=8)), Choice(dict(fsdp=16))),
        weak=V5E, checked=(v5e("2x4"), v5e("16x16"), v5e("16x16", 8))),
    "sd3_medium": Row("sd3_medium", v5e("16x16"), 1024, (
        Choice(dict(data=16, fsdp=16)), Choice(dict(data=16, fsdp=16), "attention")), weak=V5E),
    "sd35_large": Row("sd35_large", v6e("16x16"), 1024, (
        Choice(dict(data=8, fsdp=32)), Choice(dict(data=16, fsdp=16)), Choice(dict(data=8, fsdp=32), "attention"))),
    "flux_dev_128": Row("flux_dev", v5p("4x4x8"), 512, (
        Choice(dict(data=4, fsdp=32), "dots"), Choice(dict(data=8, fsdp=16), "dots")),
        weak=V5P, checked=(v5p("2x2x2"), v5p("8x16x16"))),
    "flux_dev_2048": Row("flux_dev", v5p("8x16x16"), 8192, (
        Choice(dict(data=64, fsdp=32), "dots"), Choice(dict(data=32, fsdp=64), "dots"))),
    "flux_dev_4_slices": Row("flux_dev", v6e("16x16", 4), 2048, (
        Choice(dict(data=32, fsdp=32)), Choice(dict(data=32, fsdp=32), "attention"), Choice(dict(data=16, fsdp=64)))),
    "z_image": Row("z_image", v5p("4x4x8"), 512, (
        Choice(dict(data=4, fsdp=32), "dots"), Choice(dict(data=4, fsdp=32)))),
    "qwen_image": Row("qwen_image", v5p("4x4x8"), 512, (
        Choice(dict(data=2, fsdp=64), "dots"), Choice(dict(data=2, fsdp=64)))),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", action="append", choices=[*ROWS, ""], help="compile for this row; may be repeated")
    rows = parser.parse_args().only or list(ROWS)
    for row in (ROWS[name] for name in rows if name):
        for choice in row.tried:
            program_of(row, row.machine, choice)
        while (best := fastest(row)) and best["cycles"] is None:
            mesh = Choice(best["mesh"], best["remat"])
            program_of(row, row.machine, mesh, quick=False)
        for machine in row.checked if best else ():
            mesh = resized(best["mesh"], machine.devices)
            program_of(row, machine, Choice({axis: n for axis, n in mesh.items() if n > 1}, best["remat"]))
    write_atomically(PLANS / "table.md", table(ROWS.values()).encode())
    if scaled := [row for row in ROWS.values() if row.weak and fastest(row)]:
        figure(scaled, PLANS / "weak_scaling.png")


def place(row: Row, machine: Topology, choice: Choice) -> Path:
    """Where a program's plan is kept."""
    mesh = "-".join(f"{axis}{size}" for axis, size in choice.mesh.items())
    slices = f"{machine.slices}x" if machine.slices > 1 else ""
    shape = "x".join(map(str, machine.sides))
    return PLANS / f"{row.system}_{slices}{machine.chip.name}_{shape}_{mesh}_{choice.remat}.json"


def known(row: Row, machine: Topology, choice: Choice) -> dict | None:
    """A program's plan, if it has been compiled."""
    path = place(row, machine, choice)
    return json.loads(path.read_text()) if path.exists() else None


def program_of(row: Row, machine: Topology, choice: Choice, quick: bool = True) -> dict:
    """A program's plan and its points of weak scaling, as plain values; compiled if it is not known. quick: without
    cycles."""
    found = known(row, machine, choice)
    if found and found["options"] == told(machine) and (quick or found["cycles"] or not found["fits"]):
        return found
    found, program, made = compiled_plan(config_of(row, machine, choice), machine, quick)
    points = weak_scaling(found, program, made, row.weak) if made and machine == row.machine else ()
    values = as_json(found) | {"weak_scaling": [dataclasses.asdict(point) for point in points],
                               "libtpu": importlib.metadata.version("libtpu")}  # fmt: skip
    path = place(row, machine, choice)
    write_atomically(path, (json.dumps(values, indent=1) + "\n").encode())
    print(f"{path.stem}: {found.speed if found.fits else found.reason}", flush=True)
    return values


def config_of(row: Row, machine: Topology, choice: Choice, changes: Sequence[tuple[str, str]] = ()) -> schema.Config:
    """What is compiled for a choice, with the row's batch a chip; `changes` are overrides of it."""
    batch_size = row.batch_size * machine.chips // row.machine.chips
    sizes = {"data": 1, "fsdp": 1, **choice.mesh}
    options = [("batch_size", str(batch_size)), ("model.remat", choice.remat),
               *((f"mesh.{axis}", str(size)) for axis, size in sizes.items())]  # fmt: skip
    return schema.load(f"{ROOT.parent / 'configs' / 'pod.py'}:{row.system}", [*options, *changes])


def told(machine: Topology) -> dict[str, str]:
    """What the compiler is told today."""
    return options_of(machine.chip.kinds[0])


def compared(row: Row) -> list[dict]:
    """The plans of a row that are known."""
    return [found for choice in row.tried if (found := known(row, row.machine, choice))]


def fastest(row: Row) -> dict | None:
    """The fastest plan by peaks of a row that fits."""
    return min((p for p in compared(row) if p["fits"]), key=lambda p: p["peak"]["step"], default=None)


def table(rows: Sequence[Row]) -> str:
    """The plans as a Markdown table."""
    lines = ["| system | chips | best mesh | remat | images a step | GB a chip | step by peaks / by cycles | MFU | "
             "ICI / DCN GB a chip | also compiled: MFU by peaks |",
             "|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in rows:
        plans = compared(row)
        if not plans:
            continue
        p = fastest(row) or min(plans, key=lambda p: p["memory"]["total"])
        memory = f"{p['memory']['total'] / 1e9:.1f} of {p['memory']['capacity'] / 1e9:.0f}"
        both = lambda key, form: " / ".join(format(t[key], form) if t else "?" for t in (p["peak"], p["cycles"]))
        speed = f"{both('step', '.2f')} s | {both('mfu', '.0%')}" if p["fits"] else "does not fit | "
        speed += "" if p["options"] == told(row.machine) else " (without the options of today)"
        others = "; ".join(f"{mesh(q)}, {q['remat']}: {rate(q) if q['fits'] else 'does not fit'}"
                           for q in plans if q is not p and q != p)  # fmt: skip
        lines.append(f"| {TITLES[row.system]} | {row.machine} ({row.machine.chips:,}) | {mesh(p)} | {p['remat']} | "
                     f"{p['batch_size']:,} | {memory} | {speed} | {p['ici_bytes'] / 1e9:.0f} / "
                     f"{p['dcn_bytes'] / 1e9:.2f} | {others} |")  # fmt: skip
    return "\n".join(lines) + "\n"


def rate(plan: dict) -> str:
    """MFU by peaks."""
    return format(plan["peak"]["mfu"], ".0%")


def mesh(plan: dict) -> str:
    """A mesh in words."""
    return " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())


def points_of(row: Row) -> list[dict]:
    """The points of weak scaling; those that were compiled are the compiled ones' own."""
    best = fastest(row)
    points = [point | {"compiled": point["topology"] == best["topology"]} for point in best["weak_scaling"]]
    for machine in row.checked:
        mesh = {axis: n for axis, n in resized(best["mesh"], machine.devices).items() if n > 1}
        if found := known(row, machine, Choice(mesh, best["remat"])):
            own = {key: found["peak"][key] for key in ("step", "busy", "mfu")} | {"compiled": True}
            own |= {key: found[key] for key in ("ici_bytes", "dcn_bytes")}
            points = [point | own if point["topology"] == str(machine) else point for point in points]
    return points


def figure(rows: Sequence[Row], path: Path) -> None:
    """Step time by peaks and bytes of collectives a chip against chips, the batch a chip held."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, NullLocator

    pane, (time, moved) = pyplot.subplots(1, 2, figsize=(11.5, 4.6))
    ticks, handles = set(), []
    for row in rows:
        points, colour = points_of(row), COLOURS[row.system]
        chips = [q["chips"] for q in points]
        ticks |= set(chips)
        label = f"{TITLES[row.system]} on {row.machine.chip.name}, {row.batch_size / row.machine.chips:g} images a chip"
        handles.append(Line2D([], [], color=colour, label=label))
        time.plot(chips, [q["busy"] for q in points], ":", color=colour, linewidth=1)
        curves = [(time, [q["step"] for q in points], "-"), (moved, [q["ici_bytes"] / 1e9 for q in points], "-"),
                  (moved, [q["dcn_bytes"] / 1e9 or float("nan") for q in points], "--")]  # fmt: skip
        for axes, values, style in curves:
            axes.plot(chips, values, style, color=colour, linewidth=1.5)
            for place, value, q in zip(chips, values, points, strict=True):
                face = colour if q["compiled"] else "white"
                axes.plot(place, value, "o", color=colour, markerfacecolor=face, markersize=6)
    mark = lambda label, **style: Line2D([], [], color="gray", label=label, **style)
    handles += [Line2D([], [], linestyle="", label="")] * (-len(handles) % 2)  # two a column
    handles += [mark("compiled for so many chips", marker="o", linestyle=""),
                mark("timed from the program of another size", marker="o", markerfacecolor="white", linestyle=""),
                mark("computing alone", linestyle=":"), mark("between slices (DCN)", linestyle="--")]  # fmt: skip
    time.set(title="seconds a step, by peaks", ylim=(0, 1.15 * time.dataLim.y1))
    moved.set(title="GB of collectives that leave a chip in a step", yscale="log")
    for axes in (time, moved):
        axes.set(xscale="log", xlabel="chips")
        axes.set_xticks(sorted(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:g}"))
        axes.tick_params(axis="x", labelrotation=45)
        axes.grid(alpha=0.3)
    moved.yaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:g}"))
    pane.legend(handles=handles, loc="lower center", ncols=4, fontsize=8, frameon=False)
    pane.tight_layout(rect=(0, 0.08, 1, 1))
    pane.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
