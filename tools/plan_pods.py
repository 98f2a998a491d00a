"""The README's plans of full-size training on pods, and weak scaling from 8 to 2,048 chips, from compiled programs.

    python tools/plan_pods.py                    all rows that tools/plans has not, then table and figure
    python tools/plan_pods.py --only=sdxl        that row again

Writes a JSON a row, table.md and weak_scaling.png into tools/plans. A row takes
half a minute to a minute of a free core and up to 2 GB; no TPU, folder or weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from lgm import config as schema  # noqa: E402
from lgm.files import write_atomically  # noqa: E402
from lgm.planning import read_topology  # noqa: E402
from lgm.planning.plan import compiled_plan  # noqa: E402
from lgm.planning.report import as_json  # noqa: E402
from lgm.planning.scaling import weak_scaling  # noqa: E402

ROOT = Path(__file__).resolve().parent
TITLES = {"sdxl": "SDXL", "sd3_medium": "SD3-medium", "sd35_large": "SD3.5-large", "flux_dev": "Flux.1-dev"}


@dataclasses.dataclass(frozen=True)
class Row:
    """A config on a machine; `weak` are the machines that its step is timed on with the same batch a chip."""

    system: str
    topology: str
    slices: int = 1
    options: tuple[tuple[str, str], ...] = ()
    weak: tuple[tuple[str, int], ...] = ()


V5E = (("v5e:2x4", 1), ("v5e:4x4", 1), ("v5e:8x8", 1), ("v5e:16x16", 1), ("v5e:16x16", 2), ("v5e:16x16", 4),
       ("v5e:16x16", 8))  # fmt: skip
V5P = (("v5p:2x2x2", 1), ("v5p:4x4x2", 1), ("v5p:4x4x8", 1), ("v5p:8x8x8", 1), ("v5p:8x8x16", 1), ("v5p:8x16x16", 1))
DOTS = ("model.remat", "dots")  # which 95 GB a chip have room for
mesh = lambda **sizes: tuple((f"mesh.{axis}", str(size)) for axis, size in sizes.items())
ROWS = {
    "sdxl": Row("sdxl", "v5e:4x4", options=mesh(data=2, fsdp=8), weak=V5E),
    "sd3_medium": Row("sd3_medium", "v5e:16x16", weak=V5E),
    "sd35_large": Row("sd35_large", "v6e:16x16"),
    "flux_dev_128": Row("flux_dev", "v5p:4x4x8", options=(DOTS,), weak=V5P),
    "flux_dev_2048": Row("flux_dev", "v5p:8x16x16", options=(DOTS, ("batch_size", "8192"))),
    "flux_dev_4_slices": Row("flux_dev", "v6e:16x16", 4, options=(("batch_size", "2048"),)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", action="append", choices=ROWS, help="make this row again; may be repeated")
    parser.add_argument("--out", default=str(ROOT / "plans"), help="the folder to write")
    arguments = parser.parse_args()
    out = Path(arguments.out)
    for name in arguments.only or [name for name in ROWS if not (out / f"{name}.json").exists()]:
        values = made(ROWS[name])
        write_atomically(out / f"{name}.json", (json.dumps(values, indent=1) + "\n").encode())
        print(f"{name}: step {values['step']:.3f} s, MFU {values['mfu']:.1%}", flush=True)
    plans = {name: json.loads((out / f"{name}.json").read_text()) for name in ROWS if (out / f"{name}.json").exists()}
    write_atomically(out / "table.md", table(plans).encode())
    figure({name: plan for name, plan in plans.items() if plan.get("weak_scaling")}, plans, out / "weak_scaling.png")


def made(row: Row) -> dict:
    """A row's plan and its points of weak scaling, as plain values."""
    config = schema.load(f"{ROOT.parent / 'configs' / 'pod.py'}:{row.system}", row.options)
    found, program, made = compiled_plan(config, read_topology(row.topology, row.slices))
    points = weak_scaling(found, program, made, [read_topology(*t) for t in row.weak]) if made else ()
    return as_json(found) | {"weak_scaling": [dataclasses.asdict(point) for point in points]}


def table(plans: dict[str, dict]) -> str:
    """The plans as a Markdown table."""
    lines = ["| system | chips | mesh | remat | images a step | GB a chip | step | MFU | ICI / DCN GB a chip |",
             "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for p in plans.values():
        memory = f"{p['memory']['total'] / 1e9:.1f} of {p['memory']['capacity'] / 1e9:.0f}"
        shape = " x ".join(f"{axis} {size}" for axis, size in p["mesh"].items())
        speed = f"{p['step']:.2f} s | {p['mfu']:.0%}" if p["fits"] else "does not fit | "
        lines.append(f"| {TITLES[p['name']]} | {p['topology']} ({p['chips']}) | {shape} | {p['remat']} | "
                     f"{p['batch_size']:,} | {memory} | {speed} | {p['ici_bytes'] / 1e9:.0f} / "
                     f"{p['dcn_bytes'] / 1e9:.1f} |")  # fmt: skip
    return "\n".join(lines) + "\n"


def figure(scaled: dict[str, dict], plans: dict[str, dict], path: Path) -> None:
    """Step time and bytes of collectives a chip against chips, the batch a chip held."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, NullLocator

    colours = dict(zip(ROWS, ("#d1495b", "#30638e", "#7a5195", "#00798c", "#00798c", "#edae49"), strict=True))
    pane, (time, moved) = pyplot.subplots(1, 2, figsize=(11, 4.2))
    ticks = set()
    for name, p in scaled.items():
        points = p["weak_scaling"]
        chips = [q["chips"] for q in points]
        ticks |= set(chips)
        each = p["batch_size"] / p["chips"]
        label = f"{TITLES[p['name']]} on {p['chip']}, {each:g} images a chip"
        time.plot(chips, [q["step"] for q in points], "o-", color=colours[name], label=label)
        time.plot(chips, [q["busy"] for q in points], ":", color=colours[name], linewidth=1)
        moved.plot(chips, [q["ici_bytes"] / 1e9 for q in points], "o-", color=colours[name], label=f"{label}: ICI")
        if any(q["dcn_bytes"] for q in points):
            slow = [(q["chips"], q["dcn_bytes"] / 1e9) for q in points if q["dcn_bytes"]]
            moved.plot(*zip(*slow, strict=True), "s--", color=colours[name], label="its bytes between slices: DCN")
    for p in plans.values():
        if not p.get("weak_scaling") and p["fits"] and any(q["chips"] == p["chips"] and q["topology"] == p["topology"]
                                                           for s in scaled.values() for q in s["weak_scaling"]):
            time.plot(p["chips"], p["step"], "x", color="black", markersize=9, label=f"compiled for {p['topology']}")
    for axes, title in ((time, "seconds a step (dotted: computing alone)"), (moved, "GB that leave a chip in a step")):
        axes.set(xscale="log", xlabel="chips", title=title, ylim=(0, 1.25 * axes.dataLim.y1))
        axes.set_xticks(sorted(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:g}"))
        axes.tick_params(axis="x", labelrotation=45)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, frameon=False, loc="upper left")
    pane.tight_layout()
    pane.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
