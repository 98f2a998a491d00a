"""One self-contained HTML page about curves: figures, pictures beside the numbers, every figure's protocol."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from lgm.evaluate.curves import AXES, HIGHER, better, front, shown

CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 1180px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; margin: .5rem 0; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #e6e6e6; text-align: right; vertical-align: middle; }
th:first-child, td:first-child { text-align: left; } th { background: #f6f6f6; font-weight: 600; }
td.picture { text-align: center; padding: .15rem .2rem; } td.picture img { image-rendering: auto; display: block; }
td.prompt, td.why { white-space: normal; text-align: left; font-size: 13px; } td.prompt { max-width: 11em; }
.best { font-weight: 700; color: #1c7a3c; } .small, figcaption { color: #555; font-size: 13px; }
.scroll { overflow-x: auto; } figure { margin: 1rem 0; } figure img { max-width: 100%; }
details pre { background: #f6f6f6; padding: .6rem; overflow-x: auto; font-size: 12px; }
"""


def page(title: str, rows: Sequence[dict[str, Any]], metrics: Sequence[str], figures: Mapping[str, bytes],
         pictures: Mapping[str, Mapping[int, np.ndarray]], real: Mapping[int, np.ndarray], prompts: Mapping[int, str],
         by_seed: Mapping[str, Mapping[int, Mapping[int, np.ndarray]]], protocol: dict[str, Any],
         left_out: Sequence[dict[str, Any]] = ()) -> str:
    """HTML.

    rows: of `curves.json`, each with run, line, axis, value, evaluations, metrics, hash and file. figures: PNG by an
    axis's name or "front". pictures: of each row's file, and the `real` ones, by an image's number; prompts: theirs.
    by_seed: {run: {seed: pictures}} of the protocol itself. left_out: points, with run, axis and value, that could not
    be made, and why.
    """
    body = [f"<h1>{escape(title)}</h1>", f"<p class=small>{_counted(rows)} Every figure is of a protocol that is "
            "stored with it; its hash stands beside it, and <code>lgm evaluate --protocol=FILE</code> repeats it.</p>"]
    if "front" in figures:
        body += [f"<h2>Best for what an image costs: {escape(metrics[0].replace('_', ' '))}</h2>",
                 _figure(figures["front"], "Ringed: no other point is as good for as few evaluations."),
                 _front(rows, metrics[0])]
    for axis in dict.fromkeys(row["axis"] for row in rows):
        mine = [row for row in rows if row["axis"] == axis]
        body += [f"<h2>{escape(_heading(axis))}</h2>", _figure(figures[axis], ""), _numbers(mine, metrics),
                 _side_by_side(mine, pictures, real, prompts)]
    if by_seed:
        body += ["<h2>By prompt and seed</h2>", _seeds(by_seed, real, prompts)]
    if left_out:
        cells = [[escape(one["run"]), escape(f"{one['axis']} {shown(one['value'])}"), escape(one["why"])]
                 for one in left_out]
        body += ["<h2>Left out</h2>", _table(["run", "point", "why"], cells, ["", "", "why"])]
    body += ["<h2>Protocol</h2>", f"<details><summary>What all points have but for what is varied</summary><pre>"
             f"{escape(json.dumps(protocol, indent=2))}</pre></details>"]
    return (f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
            f"<title>{escape(title)}</title><style>{CSS}</style>{''.join(body)}</html>\n")


def _heading(axis: str) -> str:
    return {"steps": "Few steps and many", "images": "Over training"}.get(axis, AXES[axis][1].capitalize())


def _counted(rows: Sequence[dict[str, Any]]) -> str:
    runs = len({row["run"] for row in rows})
    counts = sorted({row["images"] for row in rows})
    of = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    return f"{len(rows)} points of {runs} run{'s' * (runs > 1)}, {of} images each."


def _front(rows: Sequence[dict[str, Any]], metric: str) -> str:
    cells = [[str(rows[i]["evaluations"]), escape(rows[i]["line"]), escape(_point(rows[i])),
              _n(rows[i]["metrics"][metric])] for i in front(rows, metric)]
    return _table(["evaluations an image", "run", "point", escape(metric.replace("_", " "))], cells)


def _point(row: dict[str, Any]) -> str:
    return f"{row['axis'].replace('_', ' ')} {shown(row['value'])}"


def _numbers(rows: Sequence[dict[str, Any]], metrics: Sequence[str]) -> str:
    best = {}
    for metric in metrics:
        for row in rows:
            value = row["metrics"].get(metric)
            if value is not None and (metric not in best or better(metric, value, best[metric])):
                best[metric] = value

    def cell(row: dict[str, Any], metric: str) -> str:
        if (value := row["metrics"].get(metric)) is None:
            return "–"
        error = row["metrics"].get(f"{metric}_error")
        text = _n(value) + (f" ± {_n(error, 2)}" if error else "")
        return f"<span class=best>{text}</span>" if value == best[metric] else text

    cells = [[escape(row["line"]), escape(shown(row["value"])), str(row["evaluations"] or "–"),
              *(cell(row, metric) for metric in metrics), f"<code>{row['hash'][:8]}</code>"] for row in rows]
    heads = [f"{metric.replace('_', ' ')} {'↑' if HIGHER.fullmatch(metric) else '↓'}" for metric in metrics]
    name = rows[0]["axis"].replace("_", " ")
    return _table(["run", name, "evaluations", *heads, "hash"], cells)


def _side_by_side(rows: Sequence[dict[str, Any]], pictures, real: Mapping[int, np.ndarray],
                  prompts: Mapping[int, str]) -> str:
    """For every prompt a block: runs below each other, the axis's values beside each other, the real image first."""
    values = list(dict.fromkeys(shown(row["value"]) for row in rows))
    lines = list(dict.fromkeys(row["line"] for row in rows))
    at = {(row["line"], shown(row["value"])): row for row in rows}
    cells = []
    for number, prompt in prompts.items():
        for place, line in enumerate(lines):
            drawn = [_picture(pictures.get(at[line, value]["file"], {}).get(number)) if (line, value) in at else ""
                     for value in values]
            first = [escape(prompt), _picture(real.get(number))] if place == 0 else ["", ""]
            cells.append([*first, escape(line), *drawn])
    kinds = ["prompt", "picture", "", *["picture"] * len(values)]
    return _table(["", "real" if real else "", "", *map(escape, values)], cells, kinds)


def _seeds(by_seed, real: Mapping[int, np.ndarray], prompts: Mapping[int, str]) -> str:
    seeds = list(dict.fromkeys(seed for found in by_seed.values() for seed in found))
    cells = []
    for number, prompt in prompts.items():
        for place, (run, found) in enumerate(by_seed.items()):
            first = [escape(prompt), _picture(real.get(number))] if place == 0 else ["", ""]
            cells.append([*first, escape(run), *(_picture(found.get(seed, {}).get(number)) for seed in seeds)])
    kinds = ["prompt", "picture", "", *["picture"] * len(seeds)]
    return _table(["", "real" if real else "", "", *(f"seed {seed}" for seed in seeds)], cells, kinds)


def _picture(image: np.ndarray | None, side: int = 72) -> str:
    if image is None:
        return ""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    width = max(1, round(side * image.shape[1] / image.shape[0]))
    return f"<img width={width} height={side} alt='' src='{_data(buffer.getvalue())}'>"


def _figure(content: bytes, caption: str) -> str:
    return f"<figure><img alt='' src='{_data(content)}'><figcaption>{escape(caption)}</figcaption></figure>"


def _data(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], kinds: Sequence[str] = ()) -> str:
    kind = lambda i: f" class={kinds[i]}" if i < len(kinds) and kinds[i] else ""
    lines = "".join("<tr>" + "".join(f"<td{kind(i)}>{cell}</td>" for i, cell in enumerate(row)) + "</tr>"
                    for row in rows)
    return f"<div class=scroll><table><tr>{''.join(f'<th>{h}</th>' for h in head)}</tr>{lines}</table></div>"


def _n(value: float, digits: int = 4) -> str:
    return f"{value:.{digits}g}".replace("-", "−")
