"""One page of pictures of the loss and sampler library: paths, densities, weightings, and what every solver makes.

    python tools/gallery.py --out=runs/gallery

writes gallery.png and gallery.html, which carries its pictures within. The data are a ring of eight Gaussians in the
plane, whose denoiser is known exactly, so what is seen is the process's and the solver's doing and no network's; but
for the reflowed models, which are small networks trained here (126 s of CPU in all).
"""

from __future__ import annotations

import argparse
import base64
import functools
import html
import io
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import scipy.stats

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from PIL import Image  # noqa: E402

from lgm import (  # noqa: E402
    gaussian,  # noqa: E402
    losses,
    sampling,
)
from lgm.evaluate import toy  # noqa: E402
from lgm.evaluate.mixture import Mixture, energy_distance, ring  # noqa: E402
from lgm.evaluate.straightness import straightness  # noqa: E402
from lgm.losses import densities  # noqa: E402

RING = ring()
PROCESSES = {
    "DDPM, scaled linear": gaussian.ddpm(),
    "zero terminal SNR": gaussian.ddpm(zero_terminal_snr=True),
    "squared cosine": gaussian.ddpm("squared_cosine"),
    "continuous VP": gaussian.continuous_vp(),
    "EDM": gaussian.edm(sigma_data=1.14),  # the ring's deviation
    "trigonometric": gaussian.trigonometric(),
    "rectified flow": gaussian.rectified_flow(),
}
INK, BLUE, RED, GREY = "#1b1f24", "#2f6db3", "#c8443a", "#9aa3ad"
SHADES = ["#2f6db3", "#c8443a", "#3b8f5c", "#8a5fb0", "#d08a2e", "#4aa3a8", "#7a7f86", "#b0507f", "#5b6b2f", "#1b1f24"]
STYLE = {
    "font.size": 9, "axes.edgecolor": GREY, "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK,
    "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 9.5,
    "axes.titlelocation": "left", "legend.frameon": False, "figure.dpi": 110,
}  # fmt: skip


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _trace(solver, process, predict, x_T, times, key):
    return sampling.trace(solver, process, "x", predict, x_T, times, key)


@functools.cache
def exact(process):
    return RING.predictor(process, "x")


def walk(solver, process, x_T, times, predict=None):
    """[steps + 1, N, 2]: all states of samples from x_T, with the exact denoiser unless `predict` is given."""
    times = jnp.asarray(times)
    _, states = _trace(solver, process, predict or exact(process), x_T, times, jax.random.key(3))
    return np.concatenate([np.asarray(x_T)[None], np.asarray(states)])


def start(process, times, count, seed=1):
    return gaussian.pure_noise(process, jax.random.normal(jax.random.key(seed), (count, 2)), times[0])


PAIR = Mixture(np.float32([[-1.2], [0.9]]), np.float32([0.25, 0.35]), np.float32([0.5, 0.5]))


def paths():
    """Paths of pairs (data, noise), and of the ODE, under each process, over the density at every t."""
    names = ("DDPM, scaled linear", "continuous VP", "EDM", "trigonometric", "rectified flow")
    figure, axes = plt.subplots(2, len(names), figsize=(11, 4.9), sharey=True, layout="constrained")
    noise = jnp.asarray(scipy.stats.norm.ppf(np.linspace(0.02, 0.98, 25)), jnp.float32)[:, None]
    data = np.random.default_rng(0).permutation(np.asarray(PAIR.sample(jax.random.key(2), 25)))
    for column, name in zip(axes.T, names, strict=True):
        process = PROCESSES[name]
        times = sampling.times(process, 240)
        # of variance exploding, what its network is given; the others as they are
        unit = np.asarray(gaussian.input_scale(process, jnp.asarray(times)))[:, None] if name == "EDM" else 1.0
        a, b = (np.asarray(c(jnp.asarray(times)))[:, None] for c in (process.a, process.b))
        pairs = (a * data[:, 0] + b * np.asarray(noise)[:, 0]) * unit
        states = walk(sampling.solver("heun"), process, gaussian.pure_noise(process, noise, times[0]), times,
                      PAIR.predictor(process, "x"))[:, :, 0] * unit  # fmt: skip
        x = np.linspace(-2.6, 2.6, 300)
        background = _density(process, times, unit, x)
        for axis, drawn, label in zip(column, (pairs, states), (f"{name}\npairs", "ODE"), strict=True):
            axis.imshow(background, aspect="auto", origin="lower", cmap="Blues", vmin=0, vmax=1.6,
                        extent=(times[0], 0.0, x[0], x[-1]))  # fmt: skip
            axis.plot(times, drawn, color=INK, lw=0.6, alpha=0.75)
            axis.set(title=f"{label}: bend {_bend(drawn, times):.2f}", xlim=(times[0], 0.0), ylim=(x[0], x[-1]))
            axis.set_xticks([times[0], 0.5, 0.0], ["1" if times[0] == 1 else "", "0.5", "0"])
        column[1].set_xlabel("t")
    for axis in axes[:, 0]:
        axis.set_ylabel("x")
    return figure


def _bend(drawn, times):
    """The mean squared difference of a path's slope from its chord's."""
    chord, slopes = drawn[-1] - drawn[0], np.diff(drawn, axis=0) / -np.diff(times)[:, None] * times[0]
    return abs(np.mean((slopes[:-1] - chord) ** 2))


def _density(process, times, unit, x):
    """[len(x), len(times)]: the square root of the density of what is drawn, for the eye."""
    a, b = (np.asarray(c(jnp.asarray(times)), np.float64) for c in (process.a, process.b))
    unit = np.broadcast_to(np.ravel(unit), times.shape)
    parts = [weight * scipy.stats.norm.pdf(x[:, None], unit * a * mean, unit * np.sqrt((a * std) ** 2 + b**2))
             for mean, std, weight in zip(PAIR.means[:, 0], PAIR.stds, PAIR.weights, strict=True)]  # fmt: skip
    return np.sqrt(sum(parts))


def schedules():
    """How much signal and noise each process has, and its log signal-to-noise ratio, over t."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.0), layout="constrained")
    t = jnp.linspace(0.0, 1.0, 401)
    for colour, (name, process) in zip(SHADES, PROCESSES.items(), strict=False):
        dash = {"trigonometric": (4, 3)}.get(name, ())  # lies on the squared cosine
        a, b = np.asarray(process.a(t)), np.asarray(process.b(t))
        norm = np.sqrt(a**2 + b**2)
        axes[0].plot(t, a / norm, color=colour, dashes=dash, label=name)
        axes[1].plot(t, b / norm, color=colour, dashes=dash)
        axes[2].plot(t[1:-1], process.log_snr(t[1:-1]), color=colour, dashes=dash)
    axes[0].set(title="signal  a / sqrt(a² + b²)", xlabel="t")
    axes[1].set(title="noise  b / sqrt(a² + b²)", xlabel="t")
    axes[2].set(title="log SNR", xlabel="t", ylim=(-15, 15))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    return figure


def drawn_times():
    """Densities of t: the pdf as a line, 200,000 draws as a histogram."""
    cases = {
        "uniform": {}, "logit_normal": {}, "logit_normal, shift 3": {"shift": 3.0}, "mode": {}, "cosmap": {},
        "edm_log_normal": {}, "log_tangent": {}, "discrete (25 steps)": {"steps": 25},
    }  # fmt: skip
    figure, axes = plt.subplots(2, 4, figsize=(11, 4.0), sharex=True, layout="constrained")
    t = jnp.linspace(1e-3, 1 - 1e-3, 600)
    for axis, (label, options) in zip(axes.flat, cases.items(), strict=True):
        name = label.split(",")[0].split(" ")[0]
        draws = losses.density(name, **options)(jax.random.key(0), (200_000,))
        axis.hist(np.asarray(draws), bins=np.linspace(0, 1, 61), density=True, color=BLUE, alpha=0.25)
        if name in densities.PDFS:
            axis.plot(t, losses.pdf(name, **options)(t), color=BLUE, lw=1.3)
        axis.set(title=label, ylim=(0, None), yticks=[])
    for axis in axes[-1]:
        axis.set_xlabel("t")
    return figure


def weights():
    """Each weighting as it counts the eps-error, over log SNR, on a VP process and on a rectified flow."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.4), sharex=True, sharey=True, layout="constrained")
    for axis, name in zip(axes, ("continuous VP", "rectified flow"), strict=True):
        process, ratio = PROCESSES[name], np.linspace(-8, 8, 241)
        t = process.time_at_log_snr(ratio)
        for colour, kind in zip(SHADES, losses.WEIGHTINGS, strict=True):
            value = np.asarray(losses.weighting(kind)(process, "eps", t))
            middle = value[len(value) // 2]
            dash = {"snr": (5, 4), "edm": (4, 2), "sigmoid": (4, 2)}.get(kind, ())  # where curves meet
            width = 3.2 if kind == "constant" else 1.4
            axis.semilogy(ratio, value / middle, color=colour, label=kind, lw=width, dashes=dash)
        axis.set(title=f"{name}: weight of the eps-error, 1 at log SNR 0", xlabel="log SNR", ylim=(1e-4, 1e4))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    return figure


def _cloud(axis, x, title, colour=BLUE):
    axis.scatter(*np.asarray(x).T, s=1.2, color=colour, alpha=0.45, linewidths=0, rasterized=True)
    axis.set(title=title, aspect="equal", xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), xticks=[], yticks=[])
    for side in axis.spines.values():
        side.set_visible(False)


def _quality(x):
    """Energy distance to fresh data, in thousandths; what is below 0 is the draws' own noise."""
    return 1e3 * float(_distance(jnp.asarray(x), RING.sample(jax.random.key(9), 2000)))


_distance = jax.jit(energy_distance)


def transported():
    """Noise on its way to the data under every process, by DPM-Solver++ 2M in 40 steps."""
    shares = (1.0, 0.6, 0.3, 0.1, 0.0)
    figure, axes = plt.subplots(len(PROCESSES), len(shares), figsize=(8.2, 11.4), layout="constrained")
    for row, (name, process) in zip(axes, PROCESSES.items(), strict=True):
        times = sampling.times(process, 40)
        states = walk(sampling.solver("dpmpp_2m"), process, start(process, times, 2000), times)
        for axis, share in zip(row, shares, strict=True):
            number = round((1 - share) * 40)
            t = jnp.float32(times[number])
            x = states[number] * float(gaussian.input_scale(process, t) if share else 1.0)
            _cloud(axis, x, f"t = {float(t):.2f}" if share < 1 else f"{name}\nt = {float(t):.2f}",
                   RED if share == 0 else BLUE)  # fmt: skip
    return figure


def solvers():
    """The ring as every solver draws it, in few steps and in many, with its distance to the data."""
    names, counts = [name for name in sampling.SOLVERS if not sampling.solver(name).jumps], (5, 10, 40)
    grids = {"flow": gaussian.rectified_flow(), "diffusion": gaussian.ddpm()}
    figure, axes = plt.subplots(len(names), 6, figsize=(8.6, 1.5 * len(names)), layout="constrained")
    for row, name in zip(axes, names, strict=True):
        for column, (label, process) in enumerate(grids.items()):
            for place, steps in enumerate(counts):
                times = sampling.times(process, steps, "even" if label == "flow" else "trailing")
                x = walk(sampling.solver(name), process, start(process, times, 2000), times)[-1]
                axis = row[3 * column + place]
                _cloud(axis, x, f"{steps} steps: {max(_quality(x), 0.0):.1f}", BLUE if column == 0 else "#3b8f5c")
        row[0].set_ylabel(name, rotation=90, fontsize=9.5)
    for column, label in ((0, "rectified flow"), (3, "DDPM, scaled linear")):
        axes[0, column].set_title(f"{label}\n{axes[0, column].get_title(loc='left')}")
    return figure


TURNS = 1.1 * np.arange(1, 7)
SPIRAL = Mixture(TURNS[:, None] / 2.2 * np.stack([np.cos(TURNS), np.sin(TURNS)], -1), np.full(6, 0.1),
                 np.full(6, 1 / 6))  # fmt: skip


def reflowed(rounds=2, pairs=8192, steps=3000, batch=256):
    """Paths and one-step samples of the exact flow and of the networks of each round of reflow."""
    flow, even, constant = gaussian.rectified_flow(), losses.density("uniform"), losses.weighting("constant")
    objective = losses.denoising(flow, "flow", even, constant)  # on pairs
    heun, euler = sampling.solver("heun"), sampling.solver("euler")
    draw = lambda model, eps, times, solver: sampling.trace(solver, flow, "flow", model, eps, times)[1]
    models = [SPIRAL.predictor(flow, "flow")]
    for number in range(rounds):
        eps = jax.random.normal(jax.random.key(10 + number), (pairs, 2))
        x = jax.jit(lambda e, m=models[-1]: draw(m, e, np.linspace(1, 0, 65), heun)[-1])(eps)

        def loss(params, averaged, key, x=x, eps=eps):
            rows, t_B = jax.random.randint(key, (batch,), 0, pairs), even(jax.random.fold_in(key, 1), (batch,))
            return objective.given(lambda x_t, t, cond: toy.apply(params, x_t, t), x[rows], None, t_B, eps[rows])[0]

        params = toy.fit(loss, toy.init(jax.random.key(number)), steps, jax.random.key(20 + number))
        models.append(functools.partial(toy.apply, params))
    figure, axes = plt.subplots(2, rounds + 1, figsize=(8.6, 5.4), sharex=True, sharey=True, layout="constrained")
    few, many = (jax.random.normal(jax.random.key(s), (n, 2)) for s, n in ((5, 40), (6, 2000)))
    for number, (column, model) in enumerate(zip(axes.T, models, strict=True)):
        states = np.asarray(jax.jit(lambda e, m=model: draw(m, e, np.linspace(1, 0, 65), heun))(few))
        states = np.concatenate([np.asarray(few)[None], states])
        bent = float(jax.jit(lambda e, m=model: straightness(flow, "flow", m, e))(many[:500]))
        name = "rectified flow" if number == 0 else f"after round {number} of reflow"
        _cloud(column[0], states[-1], f"{name}\nbend of the paths {bent:.4f}", RED)
        column[0].plot(states[:, :, 0], states[:, :, 1], color=BLUE, lw=0.8, zorder=0)
        column[0].scatter(*states[-1].T, s=9, color=RED, zorder=3)
        one, ends = (np.asarray(jax.jit(lambda e, t, m=model: draw(m, e, t, euler)[-1])(many, jnp.asarray(grid)))
                     for grid in ([1.0, 0.0], np.linspace(1, 0, 129)))  # fmt: skip
        apart = np.sqrt(np.mean(np.sum((one - ends) ** 2, -1)))
        _cloud(column[1], one, f"one Euler step, {apart:.2f} off", RED)
        for axis in column:
            axis.set(xlim=(-2.4, 3.2), ylim=(-2.4, 2.0))
    return figure


PICTURES = [
    ("Curved against straight", paths,
     "From noise (left) to a mixture of two Gaussians on the line (right), over the density at each t. Upper row: what "
     "a network is trained on, the path x_t = a x + b eps of single pairs, which is a straight line under a rectified "
     "flow alone. Lower row: what is sampled, the ODE's paths. They cannot cross, so they turn where pairs would; "
     "reflow, below, straightens them. Bend: the mean squared difference of a path's slope from its chord's."),
    ("Processes", schedules, "Signal, noise and log signal-to-noise ratio. A table (DDPM) ends in noise with a little "
     "signal left, which rescaling to zero terminal SNR takes away."),
    ("Densities of t", drawn_times, "Where a network is trained: probability density as a line, draws as bars."),
    ("Weightings", weights, "The same errors count differently. On this scale, per eps-error over log SNR, a weighting "
     "stated on x or eps is one curve for every process; constant is the network's own error, here eps, and flow "
     "and sd3 are stated over t."),
    ("Noise becomes data", transported, "Two thousand samples under each process at five times of 40 steps, "
     "scaled to even size on the way; red: the data they reach."),
    ("Solvers", solvers, "Every solver from the same noise, by name. The number is the energy distance to the data "
     "in thousandths: 0 for samples of the data themselves, give or take 1."),
    ("Reflow", reflowed, "Training on the pairs that the model before has joined straightens the paths, so that one "
     "Euler step is a sample; the data are six Gaussians on a spiral. Upper row: paths of 40 samples and the mean "
     "squared bend of all; lower row: two thousand samples of one step (of the first, all at the data's mean), and how "
     "far (rms) they land from where their own paths end."),
]  # fmt: skip

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>lgm: losses and samplers in pictures</title>
<meta name="viewport" content="width=device-width">
<style>body{{font:16px/1.5 system-ui,sans-serif;color:#1b1f24;max-width:1000px;margin:2rem auto;padding:0 1rem}}
h1{{font-size:1.6rem}}h2{{font-size:1.15rem;margin:2.2rem 0 .2rem}}p{{margin:.2rem 0 .6rem;color:#3d444d}}
img{{width:100%;height:auto}}figure{{margin:0}}</style>
<h1>Losses and samplers in pictures</h1>
<p>The data are a ring of eight Gaussians in the plane, whose denoiser is known exactly.</p>
{body}</html>
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True, help="the folder to write gallery.png and gallery.html to")
    parser.add_argument("--only", help="draw pictures whose title has this word")
    arguments = parser.parse_args()
    chosen = [p for p in PICTURES if not arguments.only or arguments.only.lower() in p[0].lower()]
    if not chosen:
        parser.error(f"--only={arguments.only}: there are {', '.join(title for title, *_ in PICTURES)}")
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    sections, sheets = [], []
    for title, make, text in chosen:
        with plt.rc_context(STYLE):
            figure = make()
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=160)
            figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
            sheet = io.BytesIO()
            figure.savefig(sheet, format="png", dpi=120)
            plt.close(figure)
        encoded = base64.b64encode(buffer.getvalue()).decode()
        sections.append(f"<h2>{html.escape(title)}</h2><p>{html.escape(text)}</p>"
                        f'<figure><img alt="{html.escape(title)}" src="data:image/png;base64,{encoded}"></figure>')
        sheets.append(Image.open(sheet).convert("RGB"))
        print(f"{title}: drawn", flush=True)
    _page(sheets).save(out / "gallery.png", optimize=True)
    (out / "gallery.html").write_text(PAGE.format(body="\n".join(sections)))
    print(f"{out}/gallery.png and {out}/gallery.html")


def _page(sheets: list[Image.Image], gap: int = 24) -> Image.Image:
    """All pictures below each other, each at the left of the widest's width."""
    width, height = max(s.width for s in sheets), sum(s.height + gap for s in sheets)
    page, top = Image.new("RGB", (width + 2 * gap, height + gap), "white"), gap
    for sheet in sheets:
        page.paste(sheet, (gap, top))
        top += sheet.height + gap
    return page


if __name__ == "__main__":
    main()
