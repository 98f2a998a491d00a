"""`lgm evaluate curves`: a protocol along one value after another, of several runs, as figures and one page."""

import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from lgm.data.images import ImageSet
from lgm.evaluate import figures
from lgm.evaluate.curves import HIGHER, Point, front, points, read_axis, shown
from lgm.evaluate.drawers import Drawer, rows_of
from lgm.evaluate.measuring import captions_of, check_metrics, evaluate
from lgm.evaluate.page import page
from lgm.evaluate.protocol import OF_RUNS, Evaluation, Protocol, digest, read_evaluation
from lgm.evaluate.references import Pictures, open_set
from lgm.files import place, write_atomically, write_json
from lgm.parsing import ConfigError, as_dict
from lgm.processes import member
from lgm.train.opening import open_parts
from lgm.verbs.measured import drawer_of, heldout_metrics, on_one_device, protocol_of
from lgm.verbs.shared import finished, first

SHOWN, SEEDS = 6, (0, 1, 2, 3)  # prompts whose pictures stand in the page, and seeds of a prompt


def run(arguments) -> int:
    """Make every point that is not there yet, then curves.json, figures and page.html; the same command goes on."""
    for flag, value in (("--from", arguments.folder), ("--pictures", arguments.pictures),
                        ("--statistics", arguments.statistics),
                        ("--split", arguments.split or None)):
        if value is not None:
            raise ConfigError(f"{flag} is not for curves, which are of runs, one after the other")
    for flag, value in (("--workdir=RUN", arguments.workdir), ("--vary=NAME=VALUES", arguments.vary),
                        ("--out=FOLDER", arguments.out)):
        if not value:
            raise ConfigError(f"curves need {flag}")
    protocol, out = protocol_of(arguments, None), place(arguments.out, "--out")
    axes = [read_axis(text) for text in arguments.vary]
    if not protocol.draws:
        raise ConfigError("curves are of drawn images; give --metric=frechet or another that is of them")
    check_metrics(protocol, dict.fromkeys(OF_RUNS))
    asked, runs = points(protocol, axes), names_of(arguments.workdir)
    rows, left_out, by_seed = [], [], {}
    for name, workdir in runs.items():
        found, unable, by_seed[name] = _of_run(name, workdir, protocol, asked, out)
        rows += found
        left_out += unable
    member.barrier("every point")
    if first():
        _write(out, protocol, rows, left_out, by_seed, next(iter(runs.values())))
    return finished()


def names_of(workdirs: Sequence[str]) -> dict[str, str]:
    """{what a run is called: its folder}: the last part of its path, or all of it where two are called so."""
    last = [Path(workdir).name for workdir in workdirs]
    named = {name if last.count(name) == 1 else re.sub(r"[^A-Za-z0-9.-]+", "-", workdir): workdir
             for name, workdir in zip(last, workdirs, strict=True)}  # fmt: skip
    if len(named) < len(workdirs):
        raise ConfigError("--workdir names a run twice; once will do")
    return named


def _of_run(name: str, workdir: str, protocol: Protocol, asked: Sequence[Point], out: Path
            ) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[int, dict[int, np.ndarray]]]:  # fmt: skip
    """(rows of curves.json, the points that it cannot make, pictures by seed and number of the protocol itself) of a
    run. Raises ConfigError, one line, for one that can make none."""
    system, frozen, start = open_parts(workdir, on_one_device())
    drawers: dict[str, tuple[Drawer, Any]] = {}
    known: dict = {}
    rows, left_out = [], []
    for number, point in enumerate(asked, 1):
        # points of two axes that are one protocol are one evaluation
        path = out / "evaluations" / f"{name}_{digest(as_dict(point.protocol))[:12]}.json"
        try:
            drawer, params = drawer_of(workdir, system, frozen, start, point.protocol, drawers)
        except ValueError as error:  # other runs may have that checkpoint, or be drawn in so many steps
            if number == len(asked) and not rows:
                raise
            left_out.append({"run": name, "axis": point.axis.name, "value": point.value, "why": str(error)})
            if first():
                print(f"{name}  {number}/{len(asked)}  {point.axis.name}={shown(point.value)} is left out: {error}",
                      file=sys.stderr, flush=True)
            continue
        result = _there(path, point.protocol, drawer)
        if result is None:
            keep = _keeper(out / "pictures" / path.stem, protocol.seeds[0], _chosen(protocol, system))
            result = evaluate(point.protocol, drawer, system.config.data, heldout_metrics(system, params, frozen), keep,
                              known)
            if first():
                result.write(path)
        if first():
            values = ", ".join(f"{metric} {value:.4g}" for metric, value in _plain(result).items())
            print(f"{name}  {number}/{len(asked)}  {point.axis.name}={shown(point.value)}  {values}", file=sys.stderr,
                  flush=True)
        rows.append({"run": name, "line": ", ".join(filter(None, (name, point.axis.label))), "axis": point.axis.name,
                     "value": point.value, "evaluations": result.drawn["evaluations"], "metrics": result.metrics,
                     "images": result.drawn["images"], "hash": result.hash, "file": path.stem})  # fmt: skip
    try:
        drawer, _ = drawer_of(workdir, system, frozen, start, protocol, drawers)
    except ValueError:
        return rows, left_out, {}
    return rows, left_out, _seeds(drawer, protocol, system) if first() else {}


def _there(path: Path, protocol: Protocol, drawer: Drawer) -> Evaluation | None:
    """An evaluation that was made before, of the same protocol and the same weights, drawn alike."""
    if not path.is_file():
        return None
    found = read_evaluation(path)
    same = as_dict(found.protocol) == as_dict(protocol) and found.found.weights == drawer.weights
    return found if same and digest(found.found.drawing) == digest(drawer.drawing) else None


def _chosen(protocol: Protocol, system) -> list[int]:
    """The numbers of the images that are shown."""
    captions, count = captions_of(protocol, system.config.data)
    return np.unique(np.linspace(0, count - 1, SHOWN).round().astype(int)).tolist()


def _keeper(folder: Path, seed: int, chosen: Sequence[int]):
    """Writes the chosen images of a seed, in whatever process they are drawn."""

    def keep(of: int, number: int, image: np.ndarray) -> None:
        if of == seed and number in chosen:
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            write_atomically(folder / f"{number:06d}.png", buffer.getvalue())

    return keep


def _seeds(drawer: Drawer, protocol: Protocol, system) -> dict[int, dict[int, np.ndarray]]:
    """{seed: {number: picture}} of the chosen numbers, drawn by the protocol."""
    captions, count = captions_of(protocol, system.config.data)
    chosen = _chosen(protocol, system)
    rows, found = rows_of(len(captions), count), {}
    device = jax.local_devices()[0]
    for seed in SEEDS:
        numbers = np.array([chosen[i % len(chosen)] for i in range(max(protocol.batch, len(chosen)))])
        images = drawer.draw(device, numbers, [captions[rows[number]] for number in numbers], seed)
        found[seed] = dict(zip(chosen, images, strict=False))
    return found


def _plain(result: Evaluation) -> dict[str, float]:
    return {name: value for name, value in result.metrics.items() if name in _named(result.metrics)}


def _named(metrics: dict[str, Any]) -> list[str]:
    """The metrics that are curves of their own: not errors and parts of others."""
    return [name for name, value in metrics.items() if isinstance(value, float)
            and not re.search(r"_(error|deviation|bias)$|^heldout_loss_|_snr|^v_loss_", name)]  # fmt: skip


def _write(out: Path, protocol: Protocol, rows: list[dict[str, Any]], left_out: list[dict[str, Any]], by_seed,
           workdir: str) -> None:
    metrics = _named(rows[0]["metrics"])
    best = front(rows, metrics[0])
    made = dict.fromkeys(row["axis"] for row in rows)
    drawn = {name: figures.curves(rows, name, metrics) for name in made}
    if best:
        drawn["front"] = figures.pareto(rows, metrics[0])
    write_json(out / "curves.json", {"protocol": as_dict(protocol), "metric": metrics[0], "higher_is_better":
                                     bool(HIGHER.fullmatch(metrics[0])), "points": rows, "left_out": left_out,
                                     "front": [rows[i]["file"] for i in best]})  # fmt: skip
    for name, content in drawn.items():
        write_atomically(out / f"{name}.png", content)
    prompts, real = _shown(protocol, workdir)
    pictures = {row["file"]: _read(out / "pictures" / row["file"]) for row in rows}
    title = protocol.name or f"Curves of {', '.join(by_seed)}"
    text = page(title, rows, metrics, drawn, pictures, real, prompts, by_seed, as_dict(protocol), left_out)
    write_atomically(out / "page.html", text.encode())
    print(f"{len(rows)} points of {len(by_seed)} runs; see {out / 'page.html'}")


def _shown(protocol: Protocol, workdir: str) -> tuple[dict[int, str], dict[int, np.ndarray]]:
    """(prompts, real pictures) by the numbers that are shown; prompts that are texts have no real pictures."""
    system, _, _ = open_parts(workdir, on_one_device())
    captions, count = captions_of(protocol, system.config.data)
    chosen, rows = _chosen(protocol, system), rows_of(len(captions), count)
    prompts = {number: captions[rows[number]] for number in chosen}
    if protocol.prompts.texts:
        return prompts, {}
    asked = protocol.prompts if protocol.prompts.source is not None else protocol.reference
    images: ImageSet = open_set(asked.source, asked.where, None, system.config.data)
    pictures = Pictures(images, tuple(protocol.size or system.config.data.size), protocol.resize)
    return prompts, {number: pictures.read(np.array([rows[number]]))[0] for number in chosen}


def _read(folder: Path) -> dict[int, np.ndarray]:
    if not folder.is_dir():
        return {}
    return {int(path.stem): np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.glob("*.png"))}
