"""Sweeps that fill their own plan: each budget is spent about where the results so far put its lowest loss.

Budgets are taken in turn, the smallest first. The first is centred on the plan's guess k C^a, the next on where the
first's parabola had its minimum, and from the third on where the line through the minima leads. A budget whose minimum
lies at an edge of its sizes, which reach a factor `reach` to either side, gets further ones there. What to train next
is a function of the results that there are, so that a sweep that was stopped goes on.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lgm.parsing import ConfigError
from lgm.scaling.sweep import Run, Sweep, expand, whole

SIZES = 5  # about the expected optimum of each budget
SIDE = 2  # sizes that a minimum must have on either side
MORE = 3  # further sizes of a budget, at most
SLOPES = (0.2, 0.9)  # of ln N in ln C between which a line through two noisy minima is believed

Loss = Callable[[str, str, int, int], float | None]  # (architecture, objective, size, images) -> of a finished run


class Spent(NamedTuple):
    """One budget of one family: the sizes to spend it on, ln of where its lowest loss is, None where it is not known,
    and whether there will be no more."""

    sizes: list[int]
    best: float | None
    done: bool


def check(plan: Sweep) -> None:
    """Raise ConfigError, one line, for a plan that cannot be filled so."""
    if not (plan.budgets and plan.guess):
        raise ConfigError("--adaptive spends budgets about a first guess: give config.budgets and config.guess=(k, a), "
                          "the parameters k C^a that you expect to be best at C FLOPs")
    for name, architecture in plan.architectures.items():
        if len(architecture.sizes) < SIZES:
            raise ConfigError(f"config.architectures.{name}.sizes are {len(architecture.sizes)}; --adaptive chooses "
                              f"{SIZES} of them for each budget: give more")


def shapes(plan: Sweep) -> dict[tuple[str, str], dict[int, Run]]:
    """Of every family, a run of every size, for its parameters and FLOPs."""
    batch = plan.base.get("batch_size", 1)
    entries = tuple(dict(architecture=name, objective=objective, size=size, images=batch * 1024)
                    for name, objective in itertools.product(plan.architectures, plan.objectives)
                    for size in plan.architectures[name].sizes)
    found: dict[tuple[str, str], dict[int, Run]] = {}
    for run in expand(dataclasses.replace(plan, budgets=(), images=(), also=entries)):
        found.setdefault((run.architecture, run.objective), {})[run.size] = run
    return found


def entries(plan: Sweep, known: Mapping[tuple[str, str], Mapping[int, Run]], loss: Loss
            ) -> tuple[list[dict[str, Any]], bool]:  # fmt: skip
    """(all runs there should be by now, as entries of `also`; whether the plan is filled)."""
    wanted, filled = list(plan.also), True
    for (name, objective), sizes in known.items():
        minima: list[tuple[float, float]] = []
        for budget in sorted(plan.budgets):
            images = lambda size, budget=budget, sizes=sizes: whole(budget / sizes[size].shape.flops,
                                                                    sizes[size].configs[0].batch_size)
            able = [size for size in sizes if plan.min_images <= images(size) <= (plan.max_images or math.inf)]
            at = lambda size, images=images, name=name, objective=objective: loss(name, objective, size, images(size))
            spent = _spend({size: math.log(sizes[size].shape.params) for size in able},
                           math.log(_centre(plan, minima, budget)), plan.reach, at)
            wanted += [dict(architecture=name, objective=objective, size=size, images=images(size))
                       for size in spent.sizes]
            if not spent.done:
                filled = False
                break
            if spent.best is not None:
                minima.append((budget, math.exp(spent.best)))
    return wanted, filled


def _centre(plan: Sweep, minima: Sequence[tuple[float, float]], budget: float) -> float:
    """Parameters about which a budget is spent."""
    k, a = plan.guess
    if not minima:
        return k * budget**a
    x, y = np.log(minima).T
    slope = a
    if len(minima) > 1:
        slope = float(np.clip(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum(), *SLOPES))
    return math.exp(y.mean() + slope * (math.log(budget) - x.mean()))


def _spend(logs: Mapping[int, float], centre: float, reach: float, loss: Callable[[int], float | None]) -> Spent:
    """The sizes of one budget, within a factor `reach` of the centre, with those that its results so far ask for."""
    step = 2 * math.log(reach) / (SIZES - 1)
    chosen: list[int] = []
    for target in sorted(centre + step * (np.arange(SIZES) - SIZES // 2), key=lambda at: abs(at - centre)):
        rest = [size for size in logs if size not in chosen]
        chosen += [min(rest, key=lambda size: abs(logs[size] - target))] if rest else []
    while True:
        chosen = sorted(chosen, key=logs.get)
        losses = {size: loss(size) for size in chosen}
        if any(value is None for value in losses.values()):
            return Spent(chosen, None, False)
        good = [size for size in chosen if math.isfinite(losses[size])]
        if len(good) < 3:
            return Spent(chosen, None, True)
        best = _lowest(np.array([logs[size] for size in good]), np.array([losses[size] for size in good]))
        lower, upper = (sum(sign * (logs[size] - best) > 0 for size in good) for sign in (-1, 1))
        first, last = logs[good[0]], logs[good[-1]]
        beyond = {}
        if lower < SIDE:
            beyond = {size: abs(at - (first - step)) for size, at in logs.items() if at < first}
        elif upper < SIDE:
            beyond = {size: abs(at - (last + step)) for size, at in logs.items() if at > last}
        if not beyond or len(chosen) >= SIZES + MORE:
            return Spent(chosen, best, True)
        chosen.append(min(beyond, key=beyond.get))


def _lowest(x: np.ndarray, losses: np.ndarray) -> float:
    """Where a parabola through the lowest loss and two neighbours on either side has its minimum, within the sizes."""
    place = int(losses.argmin())
    near = slice(max(place - SIDE, 0), place + SIDE + 1)
    two, one, _ = np.polyfit(x[near] - x[place], losses[near], 2) if len(x[near]) > 2 else (0.0, 0.0, 0.0)
    best = x[place] - one / (2 * two) if two > 0 else x[place]
    return float(np.clip(best, x.min(), x.max()))
