"""One self-contained HTML page about a fit: the answer, what contradicts it, then numbers, figures and checks."""

import base64
import math
from html import escape

from lgm.scaling import answer
from lgm.scaling.figures import LABELS, slugs_of

CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { margin-top: 2.4rem; border-bottom: 1px solid #ddd; }
h3 { margin: 1.6rem 0 .4rem; font-size: 1.05rem; }
table { border-collapse: collapse; margin: .5rem 0; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #e6e6e6; text-align: right; vertical-align: top; }
td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { background: #f6f6f6; font-weight: 600; }
td.text { text-align: left; } .between { color: #666; font-size: 12.5px; white-space: nowrap; }
.refused { color: #a33333; white-space: normal; } .good { color: #1c7a3c; }
.bad { color: #fff; background: #b02a2a; padding: 0 .4em; }
figure { margin: 1rem 0; } figure img { width: 100%; } figcaption, .note { color: #555; font-size: 13.5px; }
.scroll { overflow-x: auto; }
.wrap { white-space: normal; display: inline-block; min-width: 14em; text-align: left; }
.panel { background: #fdf3e3; border-left: 4px solid #d08a1c; padding: .4rem 1rem; margin: 1rem 0; }
.panel ul { margin: .3rem 0; padding-left: 1.2rem; }
"""

CAPTIONS = {
    "loss": "Points are runs, lines the fitted law. The frontier is the lowest loss that any split of the FLOPs "
            "between parameters and data can reach.",
    "isoflop": "Left: a parabola through the sizes at each budget, its minimum a star. Right: the best size against "
               "the budget, from the parabolas and from the law.",
    "exponents": "What each method says, with 95% intervals.",
    "convergence": "Left: how much worse the best least-squares fit gets when alpha and beta are held elsewhere; a "
                   "long valley means that the data cannot tell them apart. Right: objectives reached from all starts.",
    "residuals": "Left: errors of the law at every run; a pattern in them means the law's form is wrong. Right: the "
                 "largest budget, predicted from the others only.",
    "comparison": "Lowest loss and best size for the FLOPs; bands are 95% intervals, dashes lie beyond the data.",
    "sensitivity": "Exponents when a part of the data is left out or Huber's delta changes.",
}


def page(result: dict, figures: dict[str, bytes]) -> str:
    """HTML of fit.json's dict with the figures (PNG bytes by name) inside."""
    settings, data = result["settings"], result["data"]
    slugs = slugs_of(list(result["families"]))
    body = [
        "<h1>Scaling fit</h1>",
        f"<p class=note>{escape(data['file'])}, {data['rows']} rows, SHA-256 {data['sha256'][:16]}, column "
        f"<b>{escape(data['loss'])}</b>. L(N, D) = E + "
        f"A/N<sup>α</sup> + B/D<sup>β</sup>. Predictions and checks by the method <b>{LABELS[settings['method']]}</b>; "
        f"95% intervals from {settings['draws']} simulated tables with the noise of this one.</p>",
    ]
    body[1:1] = [_answers(result), _contradictions(result), _next(result)]
    body += ["<h2>Can it be trusted?</h2>", _verdicts(result)]
    if result["comparisons"]:
        rows = "".join(_comparison(row) for row in result["comparisons"])
        body += ["<h2>Families compared</h2>", _figure("comparison", figures, CAPTIONS["comparison"]),
                 f"<details><summary>Every pair of families</summary>{rows}</details>"]
    for name, family in result["families"].items():
        body += [f"<h2>{escape(name)}</h2>", *_family(family, slugs[name], figures)]
    return (f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
            f"<title>Scaling fit: {escape(data['file'])}</title><style>{CSS}</style>{''.join(body)}</html>\n")


def _answers(result: dict) -> str:
    """What to train for each budget, and how far behind the runner-up is."""
    if not result["answers"]:
        return f"<p>{_refused('No budget: FLOPs are unknown. Give a column flops, or --tokens-per-image')}</p>"
    rows, pods = [], any("pod_hours" in row for row in result["answers"])
    for row in result["answers"]:
        head = [_n(row["budget"]), *([_n(row["pod_hours"])] if pods else [])]
        if row["family"] is None:
            rows.append([*head, _refused(row["reason"]), *[""] * 5])
            continue
        stated = lambda name, digits=3, row=row: _refused("not stated") if row[name] is None else _with(
            row[name], row["intervals"][name], digits)
        epochs = f"<br><span class=between>{row['epochs']:.2g} epochs</span>" if row["epochs"] else ""
        behind = escape(answer.in_words(row["runner_up"])) if row["runner_up"] else "–"
        rows.append([*head, f"<b>{escape(row['family'])}</b>", stated("params"),
                     f"{stated('data')} {row['unit']}{epochs}{_beside(row)}", stated("loss", 4),
                     f"{_n(row['seen'], 2)}×", f"<span class=wrap>{behind}</span>"])
    head = ["FLOPs", *(["pod-hours"] if pods else []), "train", "parameters", "on", "for a loss of",
            "of the largest run's FLOPs", "runner-up"]
    return _table(head, rows)


def _beside(row: dict) -> str:
    """Under what is to be trained: the rate to train at, and what its loss comes to."""
    return "".join(f"<br><span class=between>{escape(name.replace('_', ' '))} {_n(part['value'])}<br>"
                   f"({_n(part['interval'][0], 2)} to {_n(part['interval'][1], 2)})</span>"
                   for name, part in (row["tuned"] | row["quality"]).items())


def _next(result: dict) -> str:
    """The runs that would sharpen the last answer most."""
    proposed = result.get("next")
    if not proposed or not proposed["runs"]:
        return ""
    unit = result["families"][proposed["family"]]["points"]["unit"]
    rows = [[_n(row["params"]), _n(row[unit]), _n(row["flops"], 2), f"{row['left']:.0%}"] for row in proposed["runs"]]
    return (f"<p class=note>Next runs, to know the loss of {escape(proposed['family'])} at {_n(proposed['budget'])} "
            "FLOPs better, one after the other:</p>"
            + _table(["parameters", unit, "FLOPs", "left of its interval"], rows))


def _contradictions(result: dict) -> str:
    """What does not go together, of all families; nothing where nothing is found."""
    found = [(name, line) for name, lines in result["contradictions"].items() for line in lines]
    if not found:
        return "<p class=note>Nothing in table and fits was found to contradict this.</p>"
    items = "".join(f"<li><b>{escape(name)}</b>: {escape(line)}.</li>" for name, line in found)
    return f"<div class=panel><b>What does not go together</b><ul>{items}</ul></div>"


def _verdicts(result: dict) -> str:
    rows = []
    for name, family in result["families"].items():
        if family["reason"]:
            rows.append([escape(name), "", "", "", _refused(f"not fitted: {family['reason']}")])
            continue
        fitted = family["methods"][result["settings"]["method"]]
        held = family.get("held_out")
        if held is None or held["reason"]:
            trust = _refused("not held out: " + held["reason"]) if held else "–"
        else:
            worst, mark = abs(held["worst"]), "bad" if held["inside"] < 0.75 * held["of"] else "good"
            trust = (f"within {100 * worst:.2g}%; <span class={mark}>{held['inside']} of {held['of']}</span> in their "
                     "intervals")
        rows.append([escape(name), _stated(fitted, "alpha"), _stated(fitted, "beta"), _converged(fitted), trust])
    return _table(["family", "α", "β", "optimizer", "held out, predicted from the rest"], rows)


def _comparison(row: dict) -> str:
    first, second = map(escape, row["families"])
    title = f"<h3>{first} against {second}</h3>"
    if row["reason"]:
        return title + f"<p>{_refused('not compared: ' + row['reason'])}</p>"
    exponents = [[f"{'α' if name == 'alpha' else 'β'}, first − second", _with(part["difference"], part["interval"]),
                  "differ" if part["differs"] else "no difference shown"] for name, part in row["exponents"].items()]
    budgets = [[_n(b["budget"]), _n(b["losses"][0], 4), _n(b["losses"][1], 4), _with(b["difference"], b["interval"]),
                f"{b['first_is_lower']:.0%}"] for b in row["budgets"]]
    return title + _table(["exponent", "difference", "at 95%"], exponents) + _table(
        ["FLOPs", f"loss, {first}", f"loss, {second}", "difference", f"draws with {first} lower"], budgets)


def _family(family: dict, slug: str, figures: dict[str, bytes]) -> list[str]:
    points = family["points"]
    unit = points["unit"]
    span = lambda pair: "–" if pair is None else f"{_n(pair[0])} to {_n(pair[1])}"
    sizes = f"{points['sizes']} size{'s' * (points['sizes'] > 1)}"
    parts = [f"<p>{points['used']} points of {points['runs']} training runs used, {len(points['dropped'])} dropped. "
             f"{sizes}, parameters {span(points['params'])}; {unit} {span(points[unit])}; FLOPs "
             f"{span(points['flops'])}; loss {span(points['loss'])}. {escape('; '.join(points['notes']))}</p>"]
    if points["dropped"]:
        rows = [[str(row["row"]), escape(row["reason"])] for row in points["dropped"]]
        parts.append(f"<details><summary>Dropped rows</summary>{_table(['row', 'reason'], rows, text=1)}</details>")
    if family["reason"]:
        return [*parts, f"<p>{_refused('Not fitted: ' + family['reason'])}</p>"]
    if family["cost"]:
        cost = family["cost"]
        parts.append(f"<p class=note>Cost: FLOPs = {_n(cost['k'])} N<sup>{_n(cost['p'])}</sup> D; those in the table "
                     f"scatter about it by a factor {cost['scatter']:.3f} (one standard deviation).</p>")
    draw = lambda name: _figure(f"{slug}_{name}", figures, CAPTIONS[name])
    parts += [draw("loss"), "<h3>The law by three methods</h3>", _methods(family), draw("exponents")]
    refused: dict[str, list[str]] = {}
    for method, fitted in family["methods"].items():
        for reason in dict.fromkeys(fitted["refused"].values()):
            refused.setdefault(reason, []).append(LABELS[method])
    whose = lambda methods: "" if len(methods) == len(family["methods"]) else f"{', '.join(methods)}: "
    if refused:
        parts.append("<ul>" + "".join(f"<li>{whose(methods)}{_refused(reason)}</li>"
                                      for reason, methods in refused.items()) + "</ul>")
    parts += ["<h3>Best size and data for a budget</h3>", _predictions(family), draw("isoflop"), _slices(family)]
    parts += ["<h3>Is it the best law of this form, and is the form right?</h3>", _convergence(family),
              draw("convergence"), _forms(family)]
    parts += [_tuning(family), _quality(family), "<h3>Does it predict?</h3>", draw("residuals"), _held_out(family),
              _leave_one_size_out(family)]
    if f"{slug}_sensitivity" in figures:
        parts += ["<h3>Does it depend on what was fitted?</h3>", draw("sensitivity")]
    return parts


def _methods(family: dict) -> str:
    names = ("E", "A", "B", "alpha", "beta")
    rows = []
    for method, fitted in family["methods"].items():
        rows.append([LABELS[method], *(_stated(fitted, name) for name in names), f"{100 * fitted['scatter']:.2g}%",
                     _n(fitted["objective"], 4), _converged(fitted)])
    stated = lambda part: _refused(part["reason"]) if part["value"] is None else _with(part["value"], part["interval"])
    cells = lambda part, *names: [stated(part[name]) for name in names]
    frontier = [[LABELS[method], *cells(fitted["frontier"], "N", "D", "loss")]
                for method, fitted in family["methods"].items() if fitted["frontier"]]
    found = family["isoflop"]
    if found and found["N"]:
        frontier.append(["isoFLOP parabolas", *cells(found, "N", "D"), "–"])
    text = _table(["method", "E", "A", "B", "α", "β", "scatter", "objective", "optimizer"], rows)
    if frontier:
        head = ["", "a of N<sub>opt</sub> ~ C<sup>a</sup>", "b of D<sub>opt</sub> ~ C<sup>b</sup>",
                "c of L − E ~ C<sup>−c</sup>"]
        text += "<p class=note>Along the frontier:</p>" + _table(head, frontier)
    return text


def _tuning(family: dict) -> str:
    """The best learning rate and batch size where several were tried, and their trend."""
    text = ""
    for trend in family["tuning"]:
        name, unit = trend["knob"].replace("_", " "), family["points"]["unit"]
        rows = [[_n(place["params"]), _n(place["data"]), f"{_n(place['low'])} to {_n(place['high'])}",
                 _n(place["best"]) if place["best"] else _refused("none inside")] for place in trend["places"]]
        moves = ", ".join(f"{symbol}<sup>{part['value']:.2g}</sup> {_between(part['interval'], 2)}"
                          for symbol, part in trend["exponents"].items())
        line = _refused("no trend: " + trend["reason"]) if trend["reason"] else f"it goes as {moves}"
        text += (f"<h3>Best {name}</h3><p>By a parabola in its logarithm at each size and amount; {line}.</p>"
                 + _table(["parameters", unit, "tried", f"best {name}"], rows))
    return text


def _quality(family: dict) -> str:
    """What the loss comes to in other columns."""
    rows = [[escape(one["column"]), one["runs"], _refused(one["reason"]) if one["reason"] else
             f"L<sup>{one['power']['value']:.2g}</sup> {_between(one['power']['interval'], 2)}",
             f"{one['explained']:.0%}", "" if one["reason"] else f"{100 * one['scatter']:.2g}%"]
            for one in family["quality"]]
    return "<h3>What the loss comes to</h3>" + _table(
        ["column", "rows", "goes as", "of its variance told", "scatter of one run"], rows) if rows else ""


def _forms(family: dict) -> str:
    """What other forms of law came to."""
    percent = lambda value: f"{100 * value:.2g}%"
    taken = family["form"] and family["form"]["name"]
    rows = [[f"<b>{row['form']}</b>" if row["form"] == taken else row["form"],
             *([_refused(row["reason"]), ""] if row["reason"] else [percent(row["held_out"]), percent(row["scatter"])])]
            for row in family["forms"]]
    if not rows:
        return ""
    note = "predictions are by the one in bold" if family["form"] else "none is better than the plain one by enough"
    return (f"<p class=note>Other forms, fitted without the largest budgets and tried on them; {note}:</p>"
            + _table(["form", "error on what was held out", "scatter about all rows"], rows))


def _predictions(family: dict) -> str:
    unit, rows = family["points"]["unit"], []
    pods = any("pod_hours" in row for row in family["predictions"])
    if not family["predictions"] and not family["points_asked"]:
        return f"<p>{_refused('FLOPs are unknown: give a column flops, or --tokens-per-image')}</p>"
    for row in family["predictions"]:
        cells = [_n(row["budget"]), *([_n(row["pod_hours"])] if pods else [])]
        if row["reason"]:
            rows.append([*cells, _refused("none: " + row["reason"]), "", "", "", ""])
            continue
        stated = lambda name, digits=3, row=row: _refused(row["refused"][name]) if row[name] is None else _with(
            row[name], row["intervals"][name], digits)
        one = row["intervals"].get("loss_of_one_run")
        rows.append([*cells, stated("params"), stated(unit), stated("loss", 4), _between(one, 4) if one else "",
                     f"{_n(row['beyond_data']['flops'], 2)}×"])
    head = ["FLOPs", *(["pod-hours"] if pods else []), "parameters", unit, "loss", "one run's loss, 95%",
            "of the largest run's FLOPs"]
    text = _table(head, rows)
    asked = [[_n(row["params"]), _n(row[unit]), _refused(row["reason"]) if row["reason"] else
              _with(row["loss"], row["intervals"]["loss"], 4), "" if row["reason"] else
              _between(row["intervals"]["loss_of_one_run"], 4)] for row in family["points_asked"]]
    if asked:
        text += _table(["parameters", unit, "loss", "one run's loss, 95%"], asked)
    rows = [[_n(row["budget"]), *(_with(row[name], row["intervals"][name]) for name in ("params", unit))]
            for row in (family["isoflop"] or {}).get("predictions", [])]
    if rows:
        text += "<p class=note>By the parabolas alone:</p>" + _table(["FLOPs", "parameters", unit], rows)
    return text


def _slices(family: dict) -> str:
    found = family["isoflop"]
    if not found:
        return ""
    if found["reason"]:
        return f"<p>IsoFLOP parabolas: {_refused(found['reason'])}</p>"
    left_out = [f"{_n(s['budget'])} FLOPs: {escape(s['reason'])}" for s in found["slices"] if s["reason"]]
    return f"<p class=note>Budgets left out: {'; '.join(left_out)}.</p>" if left_out else ""


def _convergence(family: dict) -> str:
    rows = []
    for method, fitted in family["methods"].items():
        proof = fitted["convergence"]
        check = "–" if proof["check"] is None else f"{proof['check']:.0e}"
        rows.append([LABELS[method], f"{proof['gradient']:.1e}", f"{proof['agreeing']} of {proof['starts']}",
                     f"{max(proof['spread']):.1e}", f"{proof['steps']} of {proof['limit']}", check,
                     _converged(fitted)])
    head = ["method", "relative gradient", "starts agreeing", "their exponents apart by", "steps",
            "another optimizer's excess", "optimizer"]
    return _table(head, rows)


def _held_out(family: dict) -> str:
    held = family.get("held_out")
    if held is None:
        return ""
    if held["reason"]:
        return f"<p>{_refused(held['reason'])}</p>"
    unit = family["points"]["unit"]
    rows = [[_n(row["params"]), _n(row[unit]), _n(row["measured"], 4), _with(row["predicted"], row["interval"], 4),
             f"{100 * row['error']:+.2f}%", "inside" if row["inside"] else _refused("outside")] for row in held["runs"]]
    title = (f"<p class=note>{held['fitted']} points of the other training runs predict {escape(held['what'])}, "
             f"{_n(held['budget'])} {escape(held['unit'])}:</p>")
    return title + _table(["parameters", unit, "measured", "predicted for a new run", "error", "95%"], rows)


def _leave_one_size_out(family: dict) -> str:
    size = lambda pair: _n(pair[0]) if pair[0] == pair[1] else f"{_n(pair[0])} to {_n(pair[1])}"
    rows = [[size(row["params"]), _n(row["alpha"]), _n(row["beta"]), f"{100 * row['error']:+.2f}%"]
            for row in family.get("leave_one_size_out", [])]
    if not rows:
        return ""
    return "<p class=note>Each size predicted from the others:</p>" + _table(
        ["size left out", "α without it", "β without it", "its losses, predicted − measured"], rows)


def _stated(fitted: dict, name: str) -> str:
    return _refused("not stated") if fitted[name] is None else _with(fitted[name], fitted["intervals"][name])


def _converged(fitted: dict) -> str:
    if fitted["converged"]:
        return "<span class=good>converged</span>"
    return f"<span class=bad>no</span> {_refused(fitted['convergence']['reason'])}"


def _figure(name: str, figures: dict[str, bytes], caption: str) -> str:
    if name not in figures:
        return ""
    source = base64.b64encode(figures[name]).decode()
    return (f"<figure><img alt='{escape(caption, quote=True)}' src='data:image/png;base64,{source}'>"
            f"<figcaption>{caption}</figcaption></figure>")


def _table(head: list[str], rows: list[list[str]], text: int | None = None) -> str:
    cell = lambda index, value: f"<td{' class=text' if index == text else ''}>{value}</td>"
    lines = "".join("<tr>" + "".join(cell(i, v) for i, v in enumerate(row)) + "</tr>" for row in rows)
    return f"<div class=scroll><table><tr>{''.join(f'<th>{h}</th>' for h in head)}</tr>{lines}</table></div>"


def _refused(reason: str) -> str:
    return f"<span class=refused>{escape(reason)}</span>"


def _with(value: float, between: list[float], digits: int = 3) -> str:
    return f"{_n(value, digits)}<br>{_between(between, digits)}"


def _between(between: list[float], digits: int = 3) -> str:
    return f"<span class=between>{_n(between[0], digits)} to {_n(between[1], digits)}</span>"


def _n(value: float | None, digits: int = 3) -> str:
    """A number with some significant digits, in powers of ten where long."""
    if value is None:
        return "–"
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.{max(digits - 1, 1)}e}".split("e")
        return f"{mantissa}×10<sup>{int(exponent)}</sup>".replace("-", "−")
    decimals = digits - 1 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{max(decimals, 0)}f}".replace("-", "−")
