"""`lgm fit`: from a CSV of runs to fit.json, figures and one report, written together or not at all."""

import collections
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from lgm import __version__
from lgm.files import place, read_json, write_atomically
from lgm.scaling import (
    answer,
    contradictions,
    design,
    families,
    identify,
    laws,
    predicting,
    quality,
    shared,
    table,
    tuning,
)
from lgm.scaling.bootstrap import interval
from lgm.scaling.compute import Machine
from lgm.scaling.families import Estimate, Family, Settings
from lgm.scaling.table import Limits

LIMITS, SETTINGS = Limits(), Settings()


def planned_pod(path: str | Path) -> Machine:
    """The pod of a plan that `lgm plan --json=PATH` wrote, or of the best of several. Raises ValueError, one line."""
    from lgm.parallel.chips import CHIPS  # imports JAX, which a fit has no use for

    plan = read_json(place(path, "--plan"), f"--plan={path} is not what `lgm plan --json=PATH` writes")
    try:
        plan = plan.get("best", plan)
        chip, chips, mfu, fits = CHIPS[plan["chip"]], plan["chips"], plan["mfu"], plan["fits"]
    except (KeyError, AttributeError, TypeError):
        raise ValueError(f"--plan={path} is not what `lgm plan --json=PATH` writes") from None
    if not fits:
        raise ValueError(f"--plan={path} is of a run that does not fit its chips; give one that does")
    return Machine(chips, chip.flops, mfu)


def run(data: str | Path, out: str | Path, *, loss: str = "loss", tokens_per_image: float | None = None,
        family: str | None = None, rows: str = "all", limits: Limits = LIMITS, settings: Settings = SETTINGS,
        budgets: tuple[float, ...] = (), pod: Machine | None = None, pod_hours: tuple[float, ...] = (),
        price: float | None = None, money: tuple[float, ...] = (),
        points: tuple[tuple[float, float], ...] = (), dataset: float | None = None, sweep: str | None = None,
        spend: float | None = None, qualities: tuple[str, ...] = (), together: tuple[str, ...] = (),
        frozen: bool = False) -> dict:
    """Fit every family of a CSV and write fit.json, figures/*.png and report.html into `out`; returns fit.json's dict.

    `loss` names the column that is fitted, `qualities` columns that are told as powers of it, `family` those that
    tell families apart; rows, frozen: as of `table.read`. points: (N, D) whose loss is predicted. dataset: how many
    images or tokens there are. spend: FLOPs of the next runs that are proposed, by default those of the largest run;
    sweep: the plan whose table this is, of whose ladders they are, and which with them is written as next.json.
    Budgets are FLOPs; pod_hours, and money at a price of a chip-hour, become budgets by the pod's peak and MFU.
    Without either, three budgets are chosen: the largest in the table, ten and a hundred times it. Raises
    ValueError in one line for bad input, before anything is written.
    """
    if (pod_hours or money) and pod is None:
        raise ValueError(f"--{'pod-hours' if pod_hours else 'money'} needs --plan, or --chips, --chip-peak and --mfu, "
                         "to know the FLOPs of an hour")
    if money and price is None:
        raise ValueError("--money needs --price, what an hour of one chip costs")
    given = (("budget", budgets), ("pod-hours", pod_hours), ("money", money),
             ("price", () if price is None else (price,)), ("predict", [v for pair in points for v in pair]),
             ("dataset", () if dataset is None else (dataset,)))
    for name, values in given:
        for value in values:
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"--{name}={value} must be a positive number")
    out = place(out, "--out")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out={out} is a file; give a folder")
    read = table.read(data, tokens_per_image, limits, loss, family, rows, qualities, frozen)
    if not any(len(runs) for runs in read.families):
        reasons = sorted({reason for runs in read.families for _, reason in runs.dropped})
        raise ValueError(f"{data}: all {read.rows} rows are dropped: {'; '.join(reasons)}")
    analysed = [families.analyse(runs, settings, dataset) for runs in read.families]
    apart = None
    if together:
        analysed, apart = shared.share(analysed, together, settings)
    hours = (*pod_hours, *(amount / (price * pod.chips) for amount in money))
    budgets = (*budgets, *map(pod.flops, hours)) if hours else tuple(budgets)
    if not budgets:
        largest = [float(f.runs.flops.max()) for f in analysed if f.runs.flops is not None and len(f.runs)]
        budgets = tuple(max(largest) * factor for factor in (1, 10, 100)) if largest else ()
    result = summary(read, analysed, settings, budgets, pod, points, dataset, price)
    plan = _read_plan(sweep) if sweep else None
    result["shared"] = {"terms": list(together), "reason": apart} if together else None
    result["next"] = _next(result, analysed, settings, spend, plan)
    from lgm.scaling import figures, report

    drawn = figures.draw(analysed, settings, budgets)
    page = report.page(result, drawn)
    write_atomically(out / "fit.json", (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
    if plan and result["next"]:
        write_atomically(out / "next.json", (json.dumps(planned_next(plan, result["next"]), indent=1) + "\n").encode())
    for name, png in drawn.items():
        write_atomically(out / "figures" / f"{name}.png", png)
    write_atomically(out / "report.html", page.encode())
    return result


def _read_plan(spec: str) -> dict:
    """The values of a sweep's file, which is checked. Raises ConfigError, one line."""
    from lgm.config.reading import read_config_file
    from lgm.scaling import sweep

    sweep.load(spec)
    return json.loads(json.dumps(read_config_file(spec)))


def _next(result: dict, analysed: list[Family], settings: Settings, spend: float | None, plan: dict | None
          ) -> dict | None:  # fmt: skip
    """The runs that would sharpen the last answer most (`design.propose`); None where there is no answer."""
    answered = [row for row in result["answers"] if row["family"]]
    if not answered:
        return None
    row = answered[-1]
    family = {one.runs.family: one for one in analysed}[row["family"]]
    spend = spend or float(family.runs.flops.max())
    if plan is None:
        candidates = design.grid(family, spend)
    else:
        from lgm.scaling import sweeping

        candidates = sweeping.candidates(plan, family, spend)
    return design.propose(family, settings, row["budget"], candidates, spend)


def planned_next(plan: dict, proposed: dict) -> dict:
    """A sweep's plan with the proposed runs, to be run in the same folder: what is finished stays."""
    keys = ("architecture", "objective", "size", "images")
    return plan | {"also": [*plan.get("also", ()), *({key: row[key] for key in keys} for row in proposed["runs"])]}


def summary(read: table.Table, analysed: list[Family], settings: Settings, budgets, pod: Machine | None, points=(),
            dataset: float | None = None, price: float | None = None) -> dict:
    """What fit.json holds: JSON's own types only, None for what is not known or not stated.

        answers         a row a budget: the best family, what to train, its loss, and the runner-up (`answer.of`)
        contradictions  by family: what does not go together, the gravest first (`contradictions.of`)
        data            the table's file, its SHA-256, rows and the column that is the loss
        settings, pod   what was asked for; lgm: the version that answered
        families        by name:
            points          rows used and dropped, with reasons; sizes; ranges; notes of what was derived
            reason, unidentified  why nothing was fitted; why the plan tells no exponent
            cost            k, p and scatter of FLOPs = k N^p D
            form, forms     the law of another form that predicts, None for the plain one; by form what it errs on the
                            largest budgets, held out, and its scatter, or the reason why it was not tried
            methods         by method: A, B, E, alpha, beta with `intervals` and the reasons of those `refused`;
                            `frontier`, exponents in compute; `noise` of a run and a row; `scatter`; `convergence`
            tuning          of learning rate and batch size, where several were tried: the best of each size and amount
                            (`places`), the trend's exponents in N and D, or the reason why there is none
            quality         of columns asked for: the power of the loss that each is, or the reason why it is not told
            isoflop         parabolas by budget, the exponents of N and D, predictions
            predictions     by budget: params, images or tokens and loss, `intervals`, every method's values, `refused`
            points_asked    the same of given params and data
            held_out, leave_one_size_out, leave_one_run_out, ranges, deltas: what was left out, and what became of it
        shared          the terms that all families were asked to share, and why they do not
        next            the runs that would sharpen the last answer most, and what they leave of its interval
        comparisons     by pair of families: exponents, losses, and compute for the same loss
    """
    pairs = [(a, b) for i, a in enumerate(analysed) for b in analysed[i + 1:]]
    fitted = {f.runs.family: _family(f, settings, budgets, pod, points) for f in analysed}
    answers = [row | _hours(pod, row["budget"], price) for row in answer.of(analysed, settings, budgets, dataset)]
    return _plain({
        "answers": answers,
        "contradictions": {f.runs.family: contradictions.of(f, settings, fitted[f.runs.family]["predictions"], dataset)
                           for f in analysed},
        "lgm": __version__,
        "data": {"file": Path(read.path).name, "sha256": read.sha256, "rows": read.rows, "loss": read.loss},
        "settings": dataclasses.asdict(settings),
        "pod": dataclasses.asdict(pod) if pod else None,
        "families": fitted,
        "comparisons": [predicting.compare(a, b, settings, list(budgets)) for a, b in pairs],
    })


def _hours(pod: Machine | None, budget: float, price: float | None = None) -> dict:
    if pod is None:
        return {}
    hours = pod.hours(budget) * pod.chips
    return {"pod_hours": pod.hours(budget), "chip_hours": hours} | ({"money": hours * price} if price else {})


def _family(family: Family, settings: Settings, budgets, pod: Machine | None, points) -> dict:
    runs = family.runs
    span = lambda values: [float(values.min()), float(values.max())] if len(values) else None
    predictions = [predicting.budget(family, settings, budget) | _hours(pod, budget) for budget in budgets]
    return {
        "points": {
            "used": len(runs), "runs": len(np.unique(runs.run)), "unit": runs.unit,
            "sizes": identify.distinct(runs.n) if len(runs) else 0,
            "params": span(runs.n), runs.unit: span(runs.d), "loss": span(runs.loss),
            "flops": span(runs.flops) if runs.flops is not None else None,
            "dropped": [{"row": row, "reason": reason} for row, reason in runs.dropped], "notes": list(runs.notes),
        },
        "reason": family.reason,
        "cost": dataclasses.asdict(family.cost) if family.cost else None,
        "form": family.form and {
            "name": family.form.form.name, "words": family.form.form.words, "held_out": family.form.held_out,
            "plain": family.form.plain,
            "unknowns": dict(zip(family.form.form.unknowns, family.form.theta, strict=True)),
        },
        "forms": family.forms,
        "methods": {name: _method(estimate, family) for name, estimate in family.estimates.items()},
        "unidentified": family.unidentified,
        "tuning": [tuning.summary(trend) for trend in family.tuning],
        "quality": [quality.summary(one) for one in family.quality],
        "isoflop": _isoflop(family, budgets),
        **family.checks,
        "predictions": predictions,
        "points_asked": [predicting.point(family, settings, n, d) for n, d in points],
    }


def _method(estimate: Estimate, family: Family) -> dict:
    fit, refused = estimate.fit, estimate.refused
    values = laws.parameters(fit.law)
    between = {name: estimate.between(lambda law, name=name: laws.parameters(law)[name]) for name in values}
    errors = np.log(family.runs.loss) - np.log(laws.loss(fit.law, family.runs.n, family.runs.d))
    run, row = estimate.drawn.noise.sizes()
    result = {name: None if name in refused else float(value) for name, value in values.items()}
    return result | {
        "objective": fit.objective,
        "converged": fit.convergence.converged,
        "intervals": {name: None if name in refused else between[name].tolist() for name in values},
        "refused": refused,
        "points_used": len(family.runs), "points_dropped": len(family.runs.dropped),
        "drop_reasons": dict(collections.Counter(reason for _, reason in family.runs.dropped)),
        "scatter": float(np.sqrt((errors**2).sum() / max(len(errors) - 5, 1))),
        "noise": {"run": run, "row": row},
        "convergence": dataclasses.asdict(fit.convergence) | {"reason": fit.convergence.reason},
        "frontier": predicting.frontier(family, fit.method),
    }


def _isoflop(family: Family, budgets) -> dict | None:
    found = family.isoflop
    if found is None:
        return None
    slices = [{"budget": s.budget, "points": len(s.rows), "params": s.n if s.reason is None else None,
               "loss": s.loss if s.reason is None else None, "reason": s.reason} for s in found.slices]
    result: dict[str, Any] = {"slices": slices, "reason": found.reason, "lost": found.lost,
              "N": None, "D": None, "predictions": []}
    if found.reason is None:
        p, slope, drawn = family.cost.p, found.line[1], found.draws[:, 1]
        for name, value, draws in (("N", slope, drawn), ("D", 1 - p * slope, 1 - p * drawn)):
            result[name] = {"value": float(value), "interval": interval(draws, value).tolist()}
        for budget in budgets:
            n, d, between_n, between_d = found.optimum(family.cost, budget)
            result["predictions"].append({
                "budget": budget, "params": float(n), family.runs.unit: float(d),
                "intervals": {"params": between_n.tolist(), family.runs.unit: between_d.tolist()},
            })
    return result


def _plain(value):
    """JSON types with None for numbers that are not finite."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, np.bool_):
        return bool(value)
    return value


def headline(result: dict) -> list[str]:
    """Lines for a terminal: the answer, what contradicts it, then each family's law and its predictions."""
    method, lines = result["settings"]["method"], answer.lines(result["answers"])
    for name, found in result["contradictions"].items():
        lines += [f"! {name}: {line}" for line in found]
    if result.get("shared"):
        one, why = " and ".join(result["shared"]["terms"]), result["shared"]["reason"]
        lines.append(f"! {why}; each family has its own" if why else f"one {one} for all families, told by all runs")
    if result.get("next"):
        lines += design.lines(result["next"], result["families"][result["next"]["family"]]["points"]["unit"])
    for name, family in result["families"].items():
        points = family["points"]
        lines.append(f"{name}: {points['used']} points used, {len(points['dropped'])} dropped, {points['sizes']} sizes")
        reasons = collections.Counter(row["reason"] for row in points["dropped"])
        lines += [f"  {count} dropped: {reason}" for reason, count in reasons.items()]
        lines += [f"  note: {note}" for note in points["notes"]]
        if family["reason"]:
            lines.append(f"  not fitted: {family['reason']}")
            continue
        for label, fitted in family["methods"].items():
            stopped = fitted["convergence"]["reason"]
            state = f"NOT CONVERGED ({stopped})" if stopped else "optimizer converged"
            shown = [f"{p}={fitted[p]:.4g} [{fitted['intervals'][p][0]:.3g}, {fitted['intervals'][p][1]:.3g}]"
                     for p in ("E", "alpha", "beta") if fitted[p] is not None]
            lines.append(f"  {label}: {', '.join(shown) or 'nothing stated'}; {state}")
            if label == method:
                refused = fitted["refused"].items()
                lines += [f"    {p} is not stated: {reason}" for p, reason in refused if p not in "AB"]
        if points["flops"] is None:
            lines.append("  no predictions: FLOPs are unknown: give a column flops, or --tokens-per-image")
        for row in family["predictions"]:
            at = f"  {row['budget']:.3g} FLOPs"
            if "pod_hours" in row:
                at += f" ({row['pod_hours']:.3g} pod-hours)"
            if row["reason"]:
                lines.append(f"{at}: no prediction: {row['reason']}")
            else:
                said = lambda name, digits, row=row: "not stated" if row[name] is None else (
                    f"{row[name]:.{digits}g} [{row['intervals'][name][0]:.{digits}g}, "
                    f"{row['intervals'][name][1]:.{digits}g}]")
                unit = points["unit"]
                lines.append(f"{at}: N={said('params', 3)}, {unit}={said(unit, 3)}, loss {said('loss', 4)}")
        for row in family["points_asked"]:
            at = f"  N={row['params']:.3g}, {points['unit']}={row[points['unit']]:.3g}: "
            if row["reason"]:
                lines.append(f"{at}no prediction: {row['reason']}")
            else:
                (low, high), (least, most) = (row["intervals"][name] for name in ("loss", "loss_of_one_run"))
                lines.append(f"{at}loss {row['loss']:.4g} [{low:.4g}, {high:.4g}], of one run {least:.4g} to "
                             f"{most:.4g}")
        held = family.get("held_out")
        if held and not held["reason"]:
            lines.append(f"  {held['what']}, predicted from the rest: {held['inside']} of {held['of']} in their "
                         f"intervals, the worst off by {100 * held['worst']:+.2g}%")
    return lines

