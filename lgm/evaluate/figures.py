"""Figures of curves, as PNG bytes."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from lgm.evaluate.curves import AXES, HIGHER, front
from lgm.plotting import png

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8C564B", "#8A8A8A")
MARKS = "osD^vP*Xh"
WITHIN = 5  # lines whose names stand in a panel
STYLE = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6, "axes.titlesize": 11, "axes.titlelocation": "left", "legend.frameon": False,
    "axes.axisbelow": True, "figure.constrained_layout.use": True,
}


def lines_of(rows: Sequence[dict[str, Any]], axis: str) -> dict[str, list[dict[str, Any]]]:
    """{name of a line: its rows, along the axis}: one for each run and what it was held at."""
    lines: dict[str, list] = {}
    for row in rows:
        if row["axis"] == axis:
            lines.setdefault(row["line"], []).append(row)
    return lines


def curves(rows: Sequence[dict[str, Any]], axis: str, metrics: Sequence[str]) -> bytes:
    """Every metric along an axis, a line a run, with bars of its error where that is known."""
    with matplotlib.rc_context(STYLE):
        columns = min(len(metrics), 2)
        rows_of_panels = -(-len(metrics) // columns)
        figure = Figure(figsize=(5.4 * columns, 3.8 * rows_of_panels))
        panels = np.ravel(figure.subplots(rows_of_panels, columns, squeeze=False))
        for panel in panels[len(metrics) :]:
            panel.remove()
        for panel, metric in zip(panels, metrics, strict=False):
            numeric = all(isinstance(row["value"], (int, float)) for row in rows if row["axis"] == axis)
            for name, line in lines_of(rows, axis).items():
                line = [row for row in line if metric in row["metrics"]]
                x = [_place(row, axis) if numeric else str(row["value"]) for row in line]
                order = np.argsort(x, kind="stable") if numeric else range(len(x))
                y = [line[i]["metrics"][metric] for i in order]
                error = [line[i]["metrics"].get(f"{metric}_error", 0.0) for i in order]
                colour, mark, stroke = _style(rows, name)
                panel.errorbar([x[i] for i in order], y, error if any(error) else None, color=colour, marker=mark,
                               markersize=4.5, linewidth=1.4, elinewidth=0.8, capsize=2, label=name,
                               linestyle=stroke if numeric else "")
            better = "higher" if HIGHER.fullmatch(metric) else "lower"
            panel.set_title(f"{metric.replace('_', ' ')} ({better} is better)")
            panel.set_xlabel(AXES[axis][1])
            if numeric and axis != "guidance":
                panel.set_xscale("log")
                _ticks(panel.xaxis, sorted({_place(row, axis) for row in rows if row["axis"] == axis}))
        _legend(figure, panels[0])
        return png(figure)


def pareto(rows: Sequence[dict[str, Any]], metric: str) -> bytes:
    """All points by what an image costs, and the front that none of them beats."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 4.6))
        panel, best = figure.subplots(), front(rows, metric)
        for name in dict.fromkeys(row["line"] for row in rows):
            mine = [row for row in rows if row["line"] == name and row["evaluations"] and metric in row["metrics"]]
            colour, mark, _ = _style(rows, name)
            x, y = ([row["evaluations"] for row in mine], [row["metrics"][metric] for row in mine])
            panel.plot(x, y, mark, color=colour, alpha=0.55, markersize=5, label=name)
        x, y = ([rows[i]["evaluations"] for i in best], [rows[i]["metrics"][metric] for i in best])
        panel.step(x, y, where="post", color="#555555", linewidth=1.2, linestyle="--", label="front")
        for i in best:
            panel.plot(rows[i]["evaluations"], rows[i]["metrics"][metric], "o", markersize=11, fillstyle="none",
                       color="#333333", markeredgewidth=1.1)
        panel.set_xscale("log")
        _ticks(panel.xaxis, sorted({row["evaluations"] for row in rows if row["evaluations"]}))
        panel.set_xlabel(AXES["steps"][1])
        panel.set_ylabel(metric.replace("_", " "))
        _legend(figure, panel)
        return png(figure)


def _place(row: dict[str, Any], axis: str) -> float:
    """Steps are told by what they cost: solvers of two evaluations a step, and guidance, cost twice as much."""
    return row["evaluations"] if axis == "steps" and row["evaluations"] else row["value"]


def _legend(figure: Figure, panel) -> None:
    """Within a panel where that leaves room for the lines, else above all of them."""
    handles, names = panel.get_legend_handles_labels()
    if len(names) <= WITHIN:
        panel.legend(fontsize=9)
    else:
        figure.legend(handles, names, fontsize=9, loc="outside upper center", ncols=5)


def _style(rows: Sequence[dict[str, Any]], line: str) -> tuple[str, str, str]:
    """The colour, mark and stroke of a line, the same in every figure."""
    number = list(dict.fromkeys(row["line"] for row in rows)).index(line)
    lap, place = divmod(number, len(COLOURS))  # beyond the colours there is another mark of each, and dashes
    return COLOURS[place], MARKS[(place + lap) % len(MARKS)], "--" if lap % 2 else "-"


def _ticks(axis, values: Sequence[float]) -> None:
    """The values themselves, as many as can be read."""
    kept: list[float] = []
    for value in values:
        if not kept or value >= 1.35 * kept[-1]:
            kept.append(value)
    axis.set_major_locator(matplotlib.ticker.FixedLocator(kept))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(matplotlib.ticker.NullLocator())
