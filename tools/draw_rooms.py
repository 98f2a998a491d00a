"""The figure of docs/architecture.md: the rooms of the package in the order to which tests/test_imports.py holds them.

    python tools/draw_rooms.py --out=docs/figures/rooms.svg
"""

import argparse
import ast
from pathlib import Path

import matplotlib

matplotlib.use("agg")
matplotlib.rcParams["svg.hashsalt"] = "rooms"  # the same file each time
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.patches import FancyBboxPatch  # noqa: E402

ROOT = Path(__file__).parents[1]
WHAT = ("values and files", "several processes, meshes", "the mathematics", "what is trained, how it is drawn",
        "networks", "images in, pictures out", "a run, said and checked", "checkpoints of others", "released systems",
        "a system, put together", "how good it is", "one loop", "absent machines; laws", "clusters", "the command line")


def order() -> list[list[str]]:
    """The lines of rooms, the lowest-level first."""
    for node in ast.parse((ROOT / "tests/test_imports.py").read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "ORDER":
            return [line.split() for line in ast.literal_eval(node.value).split("\n") if line.strip()]
    raise SystemExit("tests/test_imports.py has no ORDER")


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--out", default="docs/figures/rooms.svg", help="the SVG to write")
    out = words.parse_args().out
    lines = order()
    figure, axes = plt.subplots(figsize=(10, 0.42 * len(lines) + 0.3), layout="constrained")
    for row, (rooms, what) in enumerate(zip(lines, WHAT, strict=True)):
        axes.text(0, -row, what, ha="left", va="center", fontsize=9, color="#555")
        left, unit = 2.6, 7.4 / sum(len(room) + 3 for room in rooms)
        for room in rooms:
            width = unit * (len(room) + 3)
            axes.add_patch(FancyBboxPatch((left + 0.04, -row - 0.3), width - 0.08, 0.6, linewidth=0.8,
                                          boxstyle="round,pad=0,rounding_size=0.08", facecolor="#e8eaf6",
                                          edgecolor="#3f51b5"))  # fmt: skip
            axes.text(left + width / 2, -row, room, ha="center", va="center", family="monospace", color="#1a237e",
                      fontsize=min(9.5, 80 * unit))  # fmt: skip
            left += width
    axes.set(xlim=(-0.05, 10.05), ylim=(-len(lines) + 0.4, 0.6))
    axes.axis("off")
    figure.savefig(out, metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main()
