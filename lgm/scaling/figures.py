"""Figures of a fit, as PNG bytes."""

import re

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from lgm.plotting import png
from lgm.scaling import parametric, predicting, solver
from lgm.scaling.bootstrap import interval
from lgm.scaling.families import Family, Settings

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LABELS = {"huber": "Huber", "least_absolute": "least absolute", "variable_projection": "variable projection"}
POINTS = 4000
STYLE = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6, "axes.titlesize": 11, "axes.titlelocation": "left", "legend.frameon": False,
    "axes.axisbelow": True,
}


def _figure(columns: int, width: float = 11, height: float = 4.2, left=0.75, between=0.8, right=0.25, bottom=0.55):
    """(figure, its axes side by side), of inches. The margins are said and not measured: Matplotlib's engines of layout
    take longer than all that is drawn."""
    figure = Figure(figsize=(width, height))
    one = (width - left - right - between * (columns - 1)) / columns
    figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - 0.35 / height, between / one)
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def draw(analysed: list[Family], settings: Settings, budgets) -> dict[str, bytes]:
    """Figure name -> PNG."""
    figures: dict[str, Figure] = {}
    slugs = slugs_of([family.runs.family for family in analysed])
    with matplotlib.rc_context(STYLE):
        for family in analysed:
            if family.reason:
                continue
            name = slugs[family.runs.family]
            figures[f"{name}_loss"] = losses(family, settings, budgets)
            if family.isoflop.slices:
                figures[f"{name}_isoflop"] = isoflops(family, settings, budgets)
            figures[f"{name}_exponents"] = exponents(family)
            figures[f"{name}_convergence"] = convergence(family)
            figures[f"{name}_residuals"] = residuals(family, settings)
            if "ranges" in family.checks:
                figures[f"{name}_sensitivity"] = sensitivities(family, settings)
        able = [family for family in analysed if not family.refusal(settings.method)]
        if len(able) > 1:
            figures["comparison"] = comparison(able, settings, budgets)
        return {name: png(figure) for name, figure in figures.items()}


def slugs_of(names: list[str]) -> dict[str, str]:
    """Families' names as parts of file names, all different."""
    slugs: dict[str, str] = {}
    for name in names:
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "family"
        while slug in slugs.values():
            slug += "_"
        slugs[name] = slug
    return slugs


def _sizes(family: Family) -> tuple[np.ndarray, ScalarMappable]:
    """Distinct sizes and their colours, light for small."""
    n = np.unique(family.runs.n)
    shades = ListedColormap(matplotlib.colormaps["viridis_r"](np.linspace(0.08, 1, 256)))
    return n, ScalarMappable(LogNorm(n[0], max(n[-1], n[0] * 1.01)), shades)


def _size_bar(figure, axes, sizes: np.ndarray, colours: ScalarMappable) -> None:
    bar = figure.colorbar(colours, ax=axes, pad=0.02, fraction=0.07, aspect=30)
    bar.set_label("parameters")
    bar.outline.set_visible(False)
    _named_ticks(bar.ax.yaxis, sizes, _count)


def _named_ticks(axis, values: np.ndarray, name) -> None:
    """Ticks where the values are, if they are few and apart: powers of ten say little within a decade or two."""
    values = np.unique(values)
    if len(values) <= 6 and (len(values) < 2 or np.diff(np.log(values)).min() > 0.05 * np.ptp(np.log(values))):
        axis.set_minor_locator(NullLocator())
        axis.set_ticks(values, [name(value) for value in values])


def _optimum(axis, family: Family, settings: Settings, part: int, budgets: np.ndarray, colour: str, **style) -> None:
    """A line of the best N (part 0) or of its loss (2) along budgets, in its 95% interval."""
    value, drawn = predicting.best(family, settings, budgets)
    axis.plot(budgets, value[part], color=colour, **style)
    axis.fill_between(budgets, *interval(drawn[part], value[part]), color=colour, alpha=0.15, lw=0)


def _some(runs):
    """At most `POINTS` of the runs: more are a smear that takes long to draw."""
    return runs.take(np.arange(len(runs)) % -(-len(runs) // POINTS) == 0)


def losses(family: Family, settings: Settings, budgets) -> Figure:
    """Loss against data for each size, and against FLOPs with the compute frontier."""
    runs, estimate = family.runs, family.estimates[settings.method]
    figure, axes = _figure(2 if family.cost else 1, right=0.5)
    sizes, colours = _sizes(family)
    shown = _some(runs)
    axes[0].scatter(shown.d, shown.loss, c=colours.to_rgba(shown.n), s=18, zorder=3)
    for n in sizes if len(sizes) <= 12 else np.geomspace(sizes[0], sizes[-1], 7):
        near = np.abs(np.log(runs.n / n)) < (0.01 if len(sizes) <= 12 else np.log(sizes[-1] / sizes[0]) / 7)
        d = np.geomspace(runs.d[near].min() / 1.2, runs.d[near].max() * 1.2, 50)
        axes[0].plot(d, predicting.loss(family, settings, n, d)[0], lw=1, color=colours.to_rgba(n))
    axes[0].set(xscale="log", yscale="log", xlabel=runs.unit, ylabel="loss",
                title="Runs and the fitted law" + ("" if estimate.fit.convergence.converged else " (NOT CONVERGED)"))
    if family.cost:
        axes[1].scatter(shown.flops, shown.loss, c=colours.to_rgba(shown.n), s=16)
        axes[1].set(xscale="log", yscale="log", xlabel="training FLOPs", title="Compute frontier")
        if not family.refusal(settings.method):
            c = np.geomspace(runs.flops.min(), max([runs.flops.max(), *budgets]) * 1.3, 80)
            _optimum(axes[1], family, settings, 2, c, "black", lw=1.5,
                     label="lowest loss for the FLOPs, with 95% interval")
            if len(budgets):
                axes[1].plot(budgets, predicting.best(family, settings, np.array(budgets))[0][2], "*", ms=11,
                             color=COLOURS[1], label="asked for")
            axes[1].legend(loc="upper right", fontsize=9)
        else:
            axes[1].set_title("Loss against compute (no frontier: see the reasons)")
    for axis in axes:
        _plain_log_ticks(axis)
    _named_ticks(axes[0].xaxis, runs.d, _data)
    if len(sizes) > 1:
        _size_bar(figure, list(axes), sizes, colours)
    return figure


def _plain_log_ticks(axis) -> None:
    """Loss spans less than a decade, where powers of ten say nothing: about six plain numbers instead."""
    low, high = axis.get_ylim()
    if high / low < 30:
        if high / low < 4:
            ticks = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        else:
            decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)))
            ticks = np.outer(decades, (1, 1.5, 2, 3, 5, 7)).ravel()
        axis.set_yticks([tick for tick in ticks if low <= tick <= high])
        axis.yaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.5g}"))


def isoflops(family: Family, settings: Settings, budgets) -> Figure:
    """Parabolas at each budget, and the best size against the budget by every method that states one."""
    figure, (left, right) = _figure(2)
    found, runs = family.isoflop, family.runs
    map_ = matplotlib.colormaps["plasma"].resampled(256)
    tops = np.log([s.budget for s in found.slices])
    shade = lambda b: map_(0.85 * (np.log(b) - tops.min()) / max(np.ptp(tops), 1e-9))
    for piece in found.slices:
        colour = shade(piece.budget)
        left.plot(runs.n[piece.rows], runs.loss[piece.rows], "o", ms=4, color=colour)
        x = np.linspace(*np.log([runs.n[piece.rows].min() / 1.15, runs.n[piece.rows].max() * 1.15]), 60)
        left.plot(np.exp(x), np.polyval(piece.coefficients, x), color=colour, lw=1, label=f"{piece.budget:.1e}",
                  ls="-" if piece.reason is None else ":")
        if piece.reason is None:
            left.plot(piece.n, piece.loss, "*", ms=10, color=colour, mec="black", mew=0.5)
            right.plot(piece.budget, piece.n, "*", ms=11, color=colour, mec="black", mew=0.5)
    left.set(xscale="log", xlabel="parameters", ylabel="loss", title="IsoFLOP parabolas (dotted: minimum not inside)")
    left.legend(title="FLOPs", fontsize=8, title_fontsize=8, ncols=2)
    low = min(s.budget for s in found.slices)
    c = np.geomspace(low / 1.5, max([runs.flops.max(), *budgets]) * 1.3, 60)
    if found.reason is None:
        n = np.stack([found.optimum(family.cost, b)[0] for b in c])
        between = np.stack([found.optimum(family.cost, b)[2] for b in c], -1)
        right.plot(c, n, color=COLOURS[1], label="parabolas")
        right.fill_between(c, *between, color=COLOURS[1], alpha=0.15, lw=0)
    if not family.refusal(settings.method):
        _optimum(right, family, settings, 0, c, COLOURS[0], label=f"law, {LABELS[settings.method]}")
    right.set(xscale="log", yscale="log", xlabel="training FLOPs", ylabel="parameters", title="Best size for a budget")
    right.axvspan(runs.flops.max(), c[-1], color="#f3f3f3", zorder=-2, lw=0)
    right.text(runs.flops.max(), 0.02, " beyond the data", transform=right.get_xaxis_transform(), color="#666",
               fontsize=8)
    if found.reason is None or not family.refusal(settings.method):
        right.legend(loc="upper left", fontsize=9)
    return figure


def exponents(family: Family) -> Figure:
    """alpha, beta and E by each method with 95% intervals; what is refused is written, not drawn."""
    figure, axes = _figure(3, height=2.4, left=1.6, between=0.3, bottom=0.35)
    for axis, (index, name) in zip(axes, ((3, "alpha"), (4, "beta"), (2, "E")), strict=True):
        for row, estimate in enumerate(family.estimates.values()):
            if name in estimate.refused:
                axis.text(0.5, row, "not stated", transform=axis.get_yaxis_transform(), ha="center", va="center",
                          color="#a33", fontsize=9)
                continue
            take = lambda law: np.exp(law[..., 2]) if index == 2 else law[..., index]
            value, (low, high) = take(estimate.fit.law), estimate.between(take)
            axis.plot([low, high], [row, row], lw=2.5, color=COLOURS[row], solid_capstyle="butt")
            axis.plot(value, row, "o", color=COLOURS[row])
            axis.annotate(f"{value:.3g}", (value, row), xytext=(0, 6), textcoords="offset points", ha="center",
                          fontsize=9)
        if all(name in estimate.refused for estimate in family.estimates.values()):
            axis.set_xticks([])
        axis.set_yticks(range(len(family.estimates)), [LABELS[m] for m in family.estimates])
        if name != "alpha":
            axis.tick_params(labelleft=False)
        axis.set(ylim=(len(family.estimates) - 0.4, -0.7), title=f"{name}, 95% interval")
        axis.grid(axis="y", visible=False)
    return figure


def convergence(family: Family) -> Figure:
    """The profile of the least-squares objective over (alpha, beta) with the draws, and where every start ended."""
    known = not family.refusal("variable_projection")
    figure, axes = _figure(1 + known, 11 if known else 6, between=0.9)
    if known:
        _profile(figure, axes[0], family)
    _ends(axes[-1], family)
    return figure


def _profile(figure, axis, family: Family) -> None:
    runs, estimate = family.runs, family.estimates["variable_projection"]
    points = solver.Points.of(runs.n, runs.d, runs.loss).some(POINTS // 10)
    centre = estimate.fit.law[3:]
    drawn = estimate.draws[:, 3:]
    low, high = np.quantile(drawn, [0.01, 0.99], axis=0)
    reach = np.maximum(1.6 * np.maximum(high - centre, centre - low), 0.02)
    ends = zip(np.maximum(centre - reach, 2e-3), np.minimum(centre + reach, solver.EXPONENTS[1]), strict=True)
    axes = [np.linspace(*pair, 60) for pair in ends]
    alphas, betas = np.meshgrid(*axes, indexing="ij")
    error = np.sqrt(parametric.profile(points, alphas.ravel(), betas.ravel())[1].reshape(60, 60))
    ratio = error / error.min()
    levels = np.array([1, 1.01, 1.03, 1.1, 1.3, 2, 4])
    filled = axis.contourf(axes[0], axes[1], ratio.T, levels=levels, cmap="Blues_r", extend="max",
                           norm=BoundaryNorm(levels, 256, extend="max"))
    axis.plot(*drawn[:400].T, ".", ms=2.5, color=COLOURS[1], alpha=0.5, label="draws")
    axis.plot(*centre, "+", ms=12, mew=2, color="black", label="fit")
    axis.set(xlim=axes[0][[0, -1]], ylim=axes[1][[0, -1]], xlabel="alpha", ylabel="beta",
             title="Least squares: best error at each (alpha, beta)")
    axis.legend(loc="upper left", fontsize=9, labelcolor="black", frameon=True, framealpha=0.8)
    bar = figure.colorbar(filled, ax=axis, pad=0.02, ticks=levels, spacing="uniform")
    bar.ax.set_yticklabels([f"{level:.2f}" for level in levels])
    bar.set_label("error / lowest error")


def _ends(axis, family: Family) -> None:
    for row, (method, one) in enumerate(family.estimates.items()):
        values = one.fit.objectives
        excess = np.maximum(values / max(values[0], 1e-300) - 1, 1e-16)
        axis.plot((np.arange(len(values)) + 1) / len(values), excess, "o-", ms=3, lw=1, color=COLOURS[row],
                   label=f"{LABELS[method]}: {one.fit.convergence.agreeing} of {one.fit.convergence.starts} agree,"
                         f" gradient {one.fit.convergence.gradient:.0e}")
    axis.axhline(1e-6, color="#888", lw=0.8, ls="--")
    axis.text(0.01, 1.4e-6, "agreement", transform=axis.get_yaxis_transform(), fontsize=8, color="#666")
    axis.set(yscale="log", ylim=(3e-17, max(10, axis.get_ylim()[1])), xlabel="share of starts",
              ylabel="objective above the lowest, relative", title="Where the starts ended")
    axis.legend(loc="upper left", fontsize=9)


def residuals(family: Family, settings: Settings) -> Figure:
    """Errors of the fitted law by data and size, and the held-out largest budget: predicted against measured."""
    runs = family.runs
    held = family.checks.get("held_out", {"runs": []})["runs"]
    figure, axes = _figure(2 if held else 1, height=3.8, between=1.3, right=0.25 if held else 0.5,
                           bottom=0.75)
    sizes, colours = _sizes(family)
    shown = _some(runs)
    errors = 100 * (predicting.loss(family, settings, shown.n, shown.d)[0] / shown.loss - 1)
    axes[0].scatter(shown.d, errors, c=colours.to_rgba(shown.n), s=18)
    axes[0].axhline(0, color="black", lw=0.8)
    axes[0].set(xscale="log", xlabel=runs.unit, ylabel="fitted above measured, %",
                title=f"Errors of the law, {LABELS[settings.method]}")
    _named_ticks(axes[0].xaxis, runs.d, _data)
    if len(sizes) > 1:
        _size_bar(figure, axes[0], sizes, colours)
    if held:
        at = np.arange(len(held))
        predicted, measured = (np.array([row[key] for row in held]) for key in ("predicted", "measured"))
        low, high = np.array([row["interval"] for row in held]).T
        axes[1].vlines(at, low, high, lw=6, color=COLOURS[0], alpha=0.3, label="predicted for a new run, 95%")
        axes[1].plot(at, predicted, "_", ms=12, mew=2, color=COLOURS[0])
        axes[1].plot(at, measured, "o", ms=5, color=COLOURS[1], label="measured")
        axes[1].set_xticks(at, [_count(row["params"]) for row in held], rotation=45 if len(held) > 6 else 0)
        axes[1].set(xlabel="parameters", ylabel="loss", title="Largest budget, predicted from all the others")
        axes[1].set_xlim(-0.6, len(held) - 0.4)
        bottom, top = axes[1].get_ylim()
        axes[1].set_ylim(bottom, top + 0.18 * (top - bottom))
        axes[1].legend(fontsize=9, loc="upper center", ncols=2)
    return figure


def sensitivities(family: Family, settings: Settings) -> Figure:
    """alpha and beta when sizes, ranges or single runs are left out, or delta changes, over the 95% interval."""
    checks, estimate = family.checks, family.estimates[settings.method]
    groups = [[(f"without {_sizes_left_out(row['params'])}", row) for row in checks["leave_one_size_out"]],
              [(row["range"], row) for row in checks["ranges"]],
              [(f"Huber delta {row['delta']:g}", row) for row in checks["deltas"]]]
    count = sum(map(len, groups)) + 1
    figure, axes = _figure(2, height=1.2 + 0.21 * (count + len(groups)), left=2.3, between=0.2, bottom=0.35)
    for axis, name, index in zip(axes, ("alpha", "beta"), (3, 4), strict=True):
        labels, place = [], 0.0
        if name not in estimate.refused:
            low, high = estimate.between(lambda law, index=index: law[..., index])
            axis.axvspan(low, high, color="#dfe9f3", lw=0, zorder=-2)
        axis.axvline(estimate.fit.law[index], color=COLOURS[0], lw=1)
        one = checks["leave_one_run_out"][name]
        axis.plot([one["low"], one["high"]], [place, place], lw=3, color="black", solid_capstyle="butt")
        labels.append((place, f"any one run left out (most: row {one['row']})" if name == "alpha" else ""))
        for colour, rows in zip(COLOURS[1:], groups, strict=False):
            place += 1.6
            for label, row in rows:
                if row[name] is None:
                    short = row["reason"] if len(row["reason"]) <= 60 else row["reason"][:57] + "..."
                    axis.text(0.02, place, f"none: {short}", transform=axis.get_yaxis_transform(), va="center",
                              fontsize=7, color="#a33")
                else:
                    axis.plot(row[name], place, "o", ms=4, color=colour)
                labels.append((place, label))
                place += 1
            place -= 1
        axis.set_yticks([p for p, _ in labels], [text for _, text in labels], fontsize=8)
        axis.set(ylim=(place + 0.8, -0.8), title=f"{name} (band: 95% interval of the whole fit)")
        axis.grid(axis="y", visible=False)
    axes[1].tick_params(labelleft=False)
    return figure


def _sizes_left_out(span: list[float]) -> str:
    return f"size {_count(span[0])}" if span[0] == span[1] else f"sizes {_count(span[0])} to {_count(span[1])}"


def _count(value: float) -> str:
    """A number of parameters as people say it: 23.4k, 3.13M, 8.06B."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _data(value: float) -> str:
    """An amount of data: 1,024 or 3.16M."""
    return f"{value:,.0f}" if value < 1e5 else _count(value)


def comparison(analysed: list[Family], settings: Settings, budgets) -> Figure:
    """Compute frontiers of all families, lowest loss and best size against FLOPs, with 95% intervals."""
    figure, (left, right) = _figure(2)
    for index, family in enumerate(analysed):
        colour = COLOURS[index % len(COLOURS)]
        runs = family.runs
        c = np.geomspace(runs.flops.min(), max([runs.flops.max(), *budgets]) * 1.3, 80)
        inside = c[c <= runs.flops.max()]
        left.plot(_some(runs).flops, _some(runs).loss, "o", ms=2.5, alpha=0.35, color=colour)
        for axis, part in ((left, 2), (right, 0)):
            _optimum(axis, family, settings, part, c, colour, lw=1.2, ls="--")
            axis.plot(inside, predicting.best(family, settings, inside)[0][part], color=colour, lw=1.6,
                      label=runs.family)
    left.set(xscale="log", yscale="log", xlabel="training FLOPs", ylabel="loss", title="Lowest loss for the FLOPs")
    right.set(xscale="log", yscale="log", xlabel="training FLOPs", ylabel="parameters",
              title="Best size for the FLOPs (dashed: beyond the data)")
    _plain_log_ticks(left)
    left.legend(fontsize=9)
    return figure
