"""What in a table and its fits does not go together: lines to read before any number is believed.

An optimizer that converged proves that a law is the best of its form, not that the form is right. These are the signs
that it is not, or that the table is not what it was taken for.
"""

import numpy as np

from lgm.scaling import laws, solver
from lgm.scaling.families import Family, Settings
from lgm.scaling.solver import Points
from lgm.scaling.table import Runs

APART = 1.5  # best sizes by two ways that are further apart than this are two answers
TIMES = 3.0  # errors this many times the noise are no noise
CHANCE = 1e-4  # that an F test says so without cause
SCATTER = 1.2  # FLOPs off by such a factor (a standard deviation) are not those of N and D
EPOCHS = 4.0  # passes over the data up to which they are worth nearly what new data is (2305.16264)


def of(family: Family, settings: Settings, predictions: list[dict], dataset: float | None = None) -> list[str]:
    """Lines about one family, the gravest first; none where nothing contradicts.

    predictions: rows of `predicting.budget`. dataset: how many images (or tokens) there are, where it is known.
    """
    if family.reason:
        return []
    if family.form is not None and family.form.plain is not None:
        return [_form(family), *_costs(family)]
    fit = family.estimates[settings.method].fit
    if not fit.convergence.converged:
        return [f"the optimizer did not come to an end: {fit.convergence.reason}"]
    found = [*_floor(family, settings), *_beaten(family, settings), *_held_out(family), *_split(family.runs, fit.law),
             *_bend(family.runs, fit.law), *_noise(family.runs, fit.law), *_costs(family),
             *_methods(family, predictions), *_parabolas(family, settings)]
    return found + _epochs(family.runs.unit, predictions, dataset)


def _form(family: Family) -> str:
    form = family.form
    return (f"E + A/N^alpha + B/D^beta is not the law of these runs: {form.form.words}. The form {form.form.name!r} "
            f"errs by {100 * form.held_out:.2g}% on the largest budgets, held out, where the plain one errs by "
            f"{100 * form.plain:.2g}%; all that is predicted is by it")


def _errors(runs: Runs, law: np.ndarray) -> np.ndarray:
    return np.log(runs.loss) - np.log(laws.loss(law, runs.n, runs.d))


def _floor(family: Family, settings: Settings) -> list[str]:
    runs, floor = family.runs, float(np.exp(family.estimates[settings.method].fit.law[2]))
    lowest = int(runs.loss.argmin())
    if floor <= runs.loss[lowest]:
        return []
    return [f"the law's E, {floor:.4g}, lies above a measured loss: {runs.loss[lowest]:.4g} in row {runs.row[lowest]}"]


def _beaten(family: Family, settings: Settings) -> list[str]:
    """Runs that are better than the law's best for their compute, by more than its errors and their noise allow."""
    runs = family.runs
    if family.refusal(settings.method):
        return []
    law = family.estimates[settings.method].fit.law
    best = laws.optimum(law, family.cost, runs.flops)[2]
    scatter = float(np.median(np.abs(_errors(runs, law))) * 1.4826)
    ahead = np.log(best / runs.loss)
    most = int(ahead.argmax())
    # the largest of many errors: three standard deviations of one are no wonder among hundreds
    if ahead[most] <= max(TIMES, np.sqrt(2 * np.log(len(runs))) + 1) * scatter or ahead[most] < 1e-3:
        return []
    return [f"row {runs.row[most]} measured {runs.loss[most]:.4g} with {runs.flops[most]:.3g} FLOPs, for which the law "
            f"says that nothing is better than {best[most]:.4g}"]


def _held_out(family: Family) -> list[str]:
    held = family.checks.get("held_out")
    if not held or held["reason"] or held["inside"] >= 0.75 * held["of"]:
        return []
    return [f"held out, {held['what']} is not predicted: {held['inside']} of {held['of']} in their 95% intervals, the "
            f"worst off by {100 * held['worst']:+.2g}%"]


def _split(runs: Runs, law: np.ndarray) -> list[str]:
    """Columns that were not read, by whose values the errors differ."""
    errors, lines = _errors(runs, law), []
    for name, values in runs.unread.items():
        _, group = np.unique(values, return_inverse=True)
        count = np.bincount(group)
        mean = np.bincount(group, errors) / count
        few = len(np.unique(runs.run))
        # what follows size or data cannot be told from them
        if len(count) < 2 or few - len(count) - 5 < 3 or _follows(group, runs.n) or _follows(group, runs.d):
            continue
        explained = float((count * (mean - errors.mean()) ** 2).sum())
        rest = float(((errors - mean[group]) ** 2).sum())
        if _unlikely(explained, len(count) - 1, rest, few - len(count) - 5, len(runs)) and explained > rest / 2:
            low, high = np.unique(values)[[mean.argmin(), mean.argmax()]]
            lines.append(f"column {name!r} is not read and splits the data: {high} lies {100 * np.ptp(mean):.2g}% "
                         f"above {low} at the same size and data; --family-column={name} fits them apart")
    return lines


def _follows(group: np.ndarray, values: np.ndarray) -> bool:
    """Whether every value has one group."""
    _, place = np.unique(values, return_inverse=True)
    return len(np.unique(np.stack([place, group]), axis=1).T) == place.max() + 1


def _bend(runs: Runs, law: np.ndarray) -> list[str]:
    """Errors that bend with size, data or both: the law's form is not that of the data."""
    points = Points.of(runs.n, runs.d, runs.loss)
    errors = _errors(runs, law)
    few = len(np.unique(runs.run))
    if few < 12:
        return []
    base = solver.tangent(points, points.inward(law))[1]
    lines = []
    bends = (("size", points.x**2), (runs.unit, points.y**2), (f"size and {runs.unit}", points.x * points.y))
    for name, column in bends:
        left, without = (errors - m @ np.linalg.lstsq(m, errors, rcond=None)[0]
                         for m in (np.c_[base, column], base))
        gain, rest = float(without @ without - left @ left), float(left @ left)
        if _unlikely(gain, 1, rest, few - 6, len(runs)) and gain > rest / 3:
            lines.append(f"the law's errors bend with {name}: a term for it takes {gain / (gain + rest):.0%} of their "
                         "squares away. A break, a saturation or an interaction is not in E + A/N^alpha + B/D^beta; "
                         "beyond the data it grows")
    return lines[:1]


def _unlikely(explained: float, more: int, rest: float, free: int, rows: int) -> bool:
    """Whether an F test finds so much explained by chance in one of ten thousand tables; free: of independent runs."""
    from scipy.special import fdtrc

    if free < 1 or rest <= 1e-20 * rows:
        return explained > 1e-12 * rows
    return fdtrc(more, free, explained / more / (rest / free)) < CHANCE


def _noise(runs: Runs, law: np.ndarray) -> list[str]:
    """Errors of the law against differences between runs of one size and amount of data."""
    _, place = np.unique(np.stack([runs.n, runs.d]), axis=1, return_inverse=True)
    place = place.reshape(-1)
    count = np.bincount(place)
    free = int((count - 1).sum())
    if free < 3:
        return []
    logs = np.log(runs.loss)
    mean = np.bincount(place, logs) / count
    seeds = float(np.sqrt(((logs - mean[place]) ** 2).sum() / free))
    away = float(np.sqrt((_errors(runs, law) ** 2).sum() / max(len(runs) - 5, 1)))
    if away <= TIMES * seeds:
        return []
    return [f"the law misses by {100 * away:.2g}% where runs of one size and data differ by {100 * seeds:.2g}%: what "
            "it misses is no noise"]


def _costs(family: Family) -> list[str]:
    if family.cost is None or family.cost.scatter <= SCATTER:
        return []
    ratio = family.runs.flops / family.cost.flops(family.runs.n, family.runs.d)
    worst = int(np.abs(np.log(ratio)).argmax())
    return [f"FLOPs do not follow from {family.cost.k:.3g} N^{family.cost.p:.3g} D: they scatter by a factor "
            f"{family.cost.scatter:.3g}, row {family.runs.row[worst]} by {ratio[worst]:.3g}; budgets mean little"]


def _methods(family: Family, predictions: list[dict]) -> list[str]:
    lines = []
    for row in predictions[:1]:
        sizes = row["methods"].get("params", {})
        if sizes and row["params"] is not None and max(sizes.values()) > APART * min(sizes.values()):
            said = ", ".join(f"{name} {value:.3g}" for name, value in sizes.items())
            lines.append(f"methods are apart: the best size at {row['budget']:.3g} FLOPs is {said}")
    return lines


def _parabolas(family: Family, settings: Settings) -> list[str]:
    found = family.isoflop
    if found is None or found.reason or family.refusal(settings.method):
        return []
    law = family.estimates[settings.method].fit.law
    worst = max(found.slices, key=lambda s: s.budget if s.reason is None else 0.0)
    one, _, between, _ = found.optimum(family.cost, worst.budget)
    quantity = lambda law: laws.optimum(law, family.cost, worst.budget)[0]
    other, (low, high) = float(quantity(law)), family.estimates[settings.method].between(quantity)
    apart = max(one / other, other / one)
    if apart <= APART or (between[1] >= low and high >= between[0] and apart < APART**2):
        return []
    return [f"law and parabolas are apart by a factor {apart:.2g}: at {worst.budget:.3g} FLOPs the best size is "
            f"{other:.3g} by the law, {one:.3g} by the parabolas"]


def _epochs(unit: str, predictions: list[dict], dataset: float | None) -> list[str]:
    if not dataset:
        return []
    rows = [row for row in predictions if row.get(unit) and row[unit] > EPOCHS * dataset]
    if not rows:
        return []
    row = rows[-1]
    return [f"{row[unit]:.3g} {unit} at {row['budget']:.3g} FLOPs are {row[unit] / dataset:,.0f} epochs of the "
            f"{dataset:.3g} there are: the law knows new data only, and beyond about {EPOCHS:g} epochs repeated data "
            "is worth less"]

