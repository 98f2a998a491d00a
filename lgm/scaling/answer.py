"""The answer to what a fit is asked: for each budget the best family, its size and data, and the runner-up."""

import numpy as np

from lgm.scaling import bootstrap, predicting
from lgm.scaling.families import Family, Settings


def of(families: list[Family], settings: Settings, budgets, dataset: float | None = None) -> list[dict]:
    """One row a budget: the family of lowest predicted loss, what to train, and the runner-up.

    `runner_up.compute` is how many times the budget the runner-up needs to come to the best family's loss, with its 95%
    interval; None where it never does. `seen` is the budget over the largest FLOPs of that family's runs. `epochs` of
    the `dataset`, where its size is known. `tuned`: learning rate and batch size, where several were tried.
    `quality`: of one run at that loss, by column. Budgets for which no family states a loss have a `reason`.
    """
    able = [family for family in families if not family.refusal(settings.method)]
    rows = []
    for flops in budgets:
        stated = [(predicting.budget(family, settings, flops), family) for family in able]
        stated = sorted((pair for pair in stated if pair[0]["loss"] is not None), key=lambda pair: pair[0]["loss"])
        if not stated:
            reasons = [f"{f.runs.family}: {f.refusal(settings.method) or 'its loss is not known'}" for f in families]
            rows.append({"budget": flops, "family": None, "reason": "; ".join(reasons)})
            continue
        row, best = stated[0]
        unit = best.runs.unit
        rows.append({
            "budget": flops, "family": best.runs.family, "params": row["params"], "unit": unit, "data": row[unit],
            "loss": row["loss"], "intervals": {"data" if name == unit else name: value
                                               for name, value in row["intervals"].items()},
            "seen": row["beyond_data"]["flops"], "refused": row["refused"],
            "tuned": {trend.knob: {"value": at[0], "interval": at[1]} for trend in best.tuning
                      if row["params"] and row[unit] and (at := trend.at(row["params"], row[unit]))},
            "quality": _quality(best, settings, flops),
            "epochs": row[unit] / dataset if dataset and row[unit] else None,
            "runner_up": _runner_up(best, stated[1][1], settings, flops) if len(stated) > 1 else None, "reason": None,
        })
    return rows


def _quality(family: Family, settings: Settings, flops: float) -> dict:
    """By column, the quality of one run at the predicted loss."""
    value, drawn = predicting.best(family, settings, flops)
    rows = {quality.column: quality.at(float(value[2]), drawn[2], settings.seed) for quality in family.quality
            if quality.reason is None}
    return {name: {"value": at, "interval": interval} for name, (at, interval) in rows.items()}


def _runner_up(best: Family, second: Family, settings: Settings, flops: float) -> dict:
    (ours, drawn), (_, other) = (predicting.best(family, settings, flops) for family in (best, second))
    losses, _ = predicting.paired(drawn[2][np.random.default_rng(settings.seed).permutation(drawn.shape[1])], other[2],
                                  settings.seed)
    value, drawn = predicting.needed(second, settings, float(ours[2]), losses, flops)
    low, high = np.exp(bootstrap.interval(np.log(drawn), np.log(value)))
    return {"family": second.runs.family, "compute": predicting.below_never(value),
            "interval": [predicting.below_never(low), predicting.below_never(high)],
            "is_worse": float((drawn > 1).mean())}


def lines(rows: list[dict]) -> list[str]:
    """The rows in words, for a terminal."""
    said = []
    for row in rows:
        at = f"{row['budget']:.3g} FLOPs" + (
            f" ({row['pod_hours']:.3g} pod-hours{_cost(row)})" if "pod_hours" in row else "")
        if row["family"] is None:
            said.append(f"{at}: no answer: {row['reason']}")
            continue
        tell = lambda name, digits, row=row: "not told" if row[name] is None else (
            f"{row[name]:.{digits}g} [{row['intervals'][name][0]:.{digits}g}, {row['intervals'][name][1]:.{digits}g}]")
        seen = f", {_times(row['seen'])} times the largest run" if row["seen"] > 1.1 else ""
        epochs = f", {_times(row['epochs'])} epochs" if row["epochs"] else ""
        said.append(f"{at}: {row['family']}, N={tell('params', 3)}, {row['unit']}={tell('data', 3)}{epochs}, "
                    f"loss {tell('loss', 4)}{seen}")
        said += [f"    {name.replace('_', ' ')} {one['value']:.3g} [{one['interval'][0]:.2g}, {one['interval'][1]:.2g}]"
                 for name, one in (row["tuned"] | row["quality"]).items()]
        if row["runner_up"]:
            said.append(f"    {in_words(row['runner_up'])}")
    return said


def in_words(runner_up: dict) -> str:
    """How far behind the runner-up is."""
    name, (low, high) = runner_up["family"], runner_up["interval"]
    tied = low is not None and low < 1
    if runner_up["compute"] is None:
        least = "" if low is None else f" (at least {_times(low)} times the compute)"
        return f"{name} never comes to that loss{': not told apart' if tied else least}"
    most = "never" if high is None else _times(high)
    return (f"{name} needs {_times(runner_up['compute'])} [{_times(low)}, {most}] times the compute for it"
            + (": not told apart" if tied else ""))


def _times(factor: float) -> str:
    """2.1, 36 or 1,300."""
    return f"{factor:.2g}" if factor < 10 else f"{float(f'{factor:.2g}'):,.0f}"


def _cost(row: dict) -> str:
    """What a budget costs, where a price is known."""
    return f", {row['money']:,.0f} at the price given" if "money" in row else ""
