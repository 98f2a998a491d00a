"""What the data cannot tell: for each parameter of a law, one line of reason not to state it."""

from __future__ import annotations

import numpy as np

from lgm.scaling import bootstrap
from lgm.scaling.parametric import Fit
from lgm.scaling.solver import EXPONENTS, Solution
from lgm.scaling.table import Runs

RUNS = 8  # five unknowns and three degrees of freedom for their errors
VALUES = 3  # E, A and alpha need three sizes
FLAT = 1e-6  # highest over lowest loss, less 1: what a table's last digits may make
RANGE = 3.0  # largest over smallest
CORRELATION = 0.99  # of ln N and ln D
SPAN = 10.0  # highest over lowest end of an exponent's interval
LOST = 0.05  # of draws without an optimum that may be left out
SHARE = 0.025  # of draws on a bound: more, and the interval's end is the bound


def by_design(runs: Runs) -> dict[str, str]:
    """Reasons that are known before any fit: too few runs, too few or too close values of N or D, N and D in step."""
    count = len(np.unique(runs.run))
    if count < RUNS:
        reason = f"{count} training run{'s' * (count != 1)}; {RUNS} are needed for five unknowns and their errors"
        return dict.fromkeys(("A", "B", "E", "alpha", "beta"), reason)
    if runs.loss.max() < runs.loss.min() * (1 + FLAT):
        reason = f"the loss is {runs.loss.mean():.4g} in all runs: nothing moves it"
        return dict.fromkeys(("A", "B", "E", "alpha", "beta"), reason)
    refused = {}
    for exponent, factor, name, values in (("alpha", "A", "params", runs.n), ("beta", "B", runs.unit, runs.d)):
        # values within 1% are one size
        distinct = 1 + int((np.diff(np.sort(np.log(values))) > 0.01).sum())
        span = values.max() / values.min()
        if distinct < VALUES:
            reason = f"{name} takes {distinct} value{'s' * (distinct > 1)}; {exponent} needs {VALUES}"
        elif span < RANGE:
            reason = f"{name} spans a factor {span:.3g}; {exponent} needs {RANGE:g}"
        else:
            continue
        refused |= {exponent: reason, factor: reason}
        refused.setdefault("E", f"E cannot be told from the term of {name}: {reason}")
    if not refused:
        correlation = np.corrcoef(np.log(runs.n), np.log(runs.d))[0, 1]
        if abs(correlation) > CORRELATION:
            reason = f"params and {runs.unit} move in step (correlation {correlation:.3f}): alpha and beta trade places"
            refused = dict.fromkeys(("A", "B", "E", "alpha", "beta"), reason)
    return refused


def by_fit(runs: Runs, fit: Fit, drawn: Solution, known: dict[str, str]) -> dict[str, str]:
    """Reasons that the fit shows, with those `known` by design: no optimum, several, or an interval without an end."""
    if not fit.convergence.converged:
        return dict.fromkeys(("A", "B", "E", "alpha", "beta"), fit.convergence.reason)
    refused = dict(known)
    units = len(np.unique(runs.run))
    for index, (exponent, factor, name) in enumerate((("alpha", "A", "params"), ("beta", "B", runs.unit))):
        if exponent in known:
            continue
        low, high = bootstrap.interval(drawn.law[:, 3 + index], units)
        gone = drawn.at_bound[:, index].mean()
        if fit.convergence.spread[index] > 1e-2:
            reason = f"equally good fits have {exponent} apart by {fit.convergence.spread[index]:.2g}"
        elif gone > SHARE:
            reason = f"in {gone:.0%} of the bootstrap draws {name} has no effect on the loss: {exponent} is arbitrary"
        elif low <= EXPONENTS[0] * 1.01:
            reason = f"the 95% interval of {exponent}, 0 to {high:.2g}, contains 0"
        elif high >= EXPONENTS[1] * 0.99:
            reason = f"the 95% interval of {exponent}, from {low:.2g}, is unbounded above"
        elif high > SPAN * low:
            reason = f"the 95% interval of {exponent}, {low:.2g} to {high:.2g}, spans a factor above {SPAN:g}"
        else:
            continue
        refused |= {exponent: reason, factor: reason}
    lost = 1 - drawn.converged(1e-3).mean()
    if lost > LOST and not refused:  # along an exponent that is not identified there is no optimum to reach
        return dict.fromkeys(("A", "B", "E", "alpha", "beta"), f"{lost:.0%} of the bootstrap draws reach no optimum")
    floor = drawn.at_bound[:, 2].mean()
    if floor > SHARE and "E" not in known:
        refused["E"] = f"in {floor:.0%} of the bootstrap draws E is 0: only an upper end is known"
    return refused
