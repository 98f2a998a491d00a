"""What the data cannot tell: for each parameter of a law, one line of reason not to state it."""

import numpy as np

from lgm.scaling.bootstrap import Draws, interval
from lgm.scaling.parametric import Fit
from lgm.scaling.solver import EXPONENTS
from lgm.scaling.table import Runs

RUNS = 8  # five unknowns and three degrees of freedom for their errors
VALUES = 3  # E, A and alpha need three sizes
FLAT = 1e-6  # highest over lowest loss, less 1: what a table's last digits may make
RANGE = 3.0  # largest over smallest
CORRELATION = 0.99  # of ln N and ln D
SPAN = 10.0  # highest over lowest end of an exponent's interval
SAME = 0.01  # of ln N: values within it are one
SHARE = 0.025  # of draws on a bound: more, and the interval's end is the bound


def distinct(values: np.ndarray, most: int | None = None) -> int:
    """How many values there are, those within 1% of a band's lowest being one; counted up to `most`."""
    logs = np.sort(np.log(values))
    count = place = 0
    while place < len(logs) and (most is None or count < most):
        place = int(np.searchsorted(logs, logs[place] + SAME, "right"))
        count += 1
    return count


def unfittable(runs: Runs) -> str | None:
    """Why no law at all can be fitted; None where one can."""
    count = len(np.unique(runs.run))
    if len(runs) < RUNS:
        of = f"{len(runs)} rows of {count}" if count < len(runs) else f"{count}"
        return f"{of} training run{'s' * (count != 1)}; {RUNS} are needed for five unknowns and their errors"
    if runs.loss.max() < runs.loss.min() * (1 + FLAT):
        return f"the loss is {runs.loss.mean():.4g} in all runs: nothing moves it"
    reasons = [_too_close(*row) for row in _axes(runs)]
    return reasons[0] if all(reasons) else None


def by_design(runs: Runs) -> dict[str, str]:
    """Reasons that are known before any fit: too few runs, too few or too close values of N or D, N and D in step."""
    reason = unfittable(runs)
    if reason:
        return dict.fromkeys(("A", "B", "E", "alpha", "beta"), reason)
    refused = {}
    for exponent, factor, (_, name, values) in zip(("alpha", "beta"), "AB", _axes(runs), strict=True):
        reason = _too_close(exponent, name, values)
        if reason:
            refused |= {exponent: reason, factor: reason}
            refused.setdefault("E", f"E cannot be told from the term of {name}: {reason}")
    if not refused:
        correlation = np.corrcoef(np.log(runs.n), np.log(runs.d))[0, 1]
        if abs(correlation) > CORRELATION:
            reason = f"params and {runs.unit} move in step (correlation {correlation:.3f}): alpha and beta trade places"
            refused = dict.fromkeys(("A", "B", "E", "alpha", "beta"), reason)
    return refused


def _axes(runs: Runs):
    return ("alpha", "params", runs.n), ("beta", runs.unit, runs.d)


def _too_close(exponent: str, name: str, values: np.ndarray) -> str | None:
    found, span = distinct(values, VALUES), values.max() / values.min()
    if found < VALUES:
        return f"{name} takes {found} value{'s' * (found > 1)}; {exponent} needs {VALUES}"
    if span < RANGE:
        return f"{name} spans a factor {span:.3g}; {exponent} needs {RANGE:g}"
    return None


def by_fit(runs: Runs, fit: Fit, drawn: Draws, known: dict[str, str]) -> dict[str, str]:
    """Reasons that the fit shows, with those `known` by design: no optimum, several, or an interval without an end.

    Each parameter has its own: what one draw says of an exponent is no reason to be silent about another, or about what
    the law predicts, which may be well known where no single parameter is.
    """
    if not fit.convergence.converged:
        return dict.fromkeys(("A", "B", "E", "alpha", "beta"), fit.convergence.reason)
    refused = dict(known)
    for index, (exponent, factor, name) in enumerate((("alpha", "A", "params"), ("beta", "B", runs.unit))):
        if exponent in known:
            continue
        low, high = interval(drawn.law[:, 3 + index], fit.law[3 + index])
        gone = drawn.at_bound[:, index].mean()
        if fit.convergence.spread[index] > 1e-2:
            reason = f"equally good fits have {exponent} apart by {fit.convergence.spread[index]:.2g}"
        elif gone > SHARE:
            reason = f"in {gone:.0%} of the draws {name} has no effect on the loss: {exponent} is arbitrary"
        elif low <= EXPONENTS[0] * 1.01:
            reason = f"the 95% interval of {exponent}, 0 to {high:.2g}, contains 0"
        elif high >= EXPONENTS[1] * 0.99:
            reason = f"the 95% interval of {exponent}, from {low:.2g}, is unbounded above"
        elif high > SPAN * low:
            reason = f"the 95% interval of {exponent}, {low:.2g} to {high:.2g}, spans a factor above {SPAN:g}"
        else:
            continue
        refused |= {exponent: reason, factor: reason}
    floor = drawn.at_bound[:, 2].mean()
    if floor > SHARE and "E" not in known:
        high = np.exp(interval(drawn.law[:, 2], fit.law[2])[1])
        refused["E"] = f"in {floor:.0%} of the draws E is 0: it is known to lie below {high:.4g}, not where"
    return refused
