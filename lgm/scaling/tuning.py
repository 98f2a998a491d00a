"""The best learning rate and batch size, and how they move with size and data.

At every size and amount of data at which three or more values were tried, a parabola of the loss in ln of the value
has its minimum; a line through the minima in ln N and ln D is the trend (Kaplan et al. 2020, 2001.08361, section 5;
DeepSeek-AI 2024, 2401.02954, section 3.1; Bjorck et al. 2024, 2409.19913). Intervals are of tables with the noise that
the parabolas leave, each taken the same way.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from lgm.scaling import bootstrap
from lgm.scaling.table import Tried

TRIED = 3  # a parabola has three coefficients
STILL = 1e-3  # of the loss: noise where the tables show none, as where three points a parabola leave no freedom
WIDE = 100.0  # highest over lowest end of an interval that is not worth stating


@dataclasses.dataclass(frozen=True)
class Trend:
    """ln of the best value = coefficients [terms] . (1, ln N, ln D), of which only those of `terms` are there.

    places: a row for each size and amount: n, d, best (None where there is no minimum inside what was tried), lowest
    and highest tried. draws: [draws, terms]. reason: why there is no trend; None where there is one.
    """

    knob: str
    places: tuple[dict, ...]
    terms: tuple[str, ...]
    coefficients: np.ndarray
    draws: np.ndarray
    reason: str | None

    def at(self, n: float, d: float) -> tuple[float, list[float]] | None:
        """The best value at a size and amount of data and its interval; None where it is not worth stating."""
        if self.reason:
            return None
        columns = _columns(self.terms, np.array([n]), np.array([d]))[0]
        value = float(np.exp(columns @ self.coefficients))
        low, high = np.exp(bootstrap.interval(self.draws @ columns, np.log(value)))
        return (value, [float(low), float(high)]) if high < WIDE * low else None


def fit(tried: Tried, knob: str, draws: int = 1000, seed: int = 0) -> Trend | None:
    """The trend of a knob; None where no size has several values of it."""
    groups = _groups(tried, tried.knobs[knob])
    if not groups:
        return None
    parabolas = [_Parabola.of(*group) for group in groups]
    freedom = sum(p.freedom for p in parabolas)
    noise = np.sqrt(sum(p.squares for p in parabolas) / freedom) if freedom else STILL
    places = tuple({"params": p.n, "data": p.d, "best": float(np.exp(p.best)) if p.inside else None,
                    "low": float(np.exp(p.x.min())), "high": float(np.exp(p.x.max()))} for p in parabolas)
    good = [p for p in parabolas if p.inside]
    nothing = Trend(knob, places, (), np.zeros(0), np.zeros((0, 0)),
                    f"{len(good)} of {len(parabolas)} sizes and amounts have a minimum inside what was tried")
    n, d = (np.array([getattr(p, name) for p in good]) for name in ("n", "d"))
    terms = ("1", *(name for name, values in (("N", n), ("D", d)) if len(good) and np.ptp(np.log(values)) > np.log(2)))
    if len(terms) == 3 and abs(np.corrcoef(np.log(n), np.log(d))[0, 1]) > 0.95:
        terms = terms[:2]  # size and data grow in step: one line is told of the two
    if len(good) < len(terms) + 1 or len(terms) < 2:
        return nothing
    matrix = np.linalg.pinv(_columns(terms, n, d))
    random = np.random.default_rng(seed)
    best = np.array([p.best for p in good])
    drawn = np.stack([p.drawn(noise * random.standard_normal((draws, len(p.x)))) for p in good], -1)
    return Trend(knob, places, terms, matrix @ best, drawn @ matrix.T, None)


def summary(trend: Trend) -> dict:
    """What fit.json holds of a trend."""
    exponents = {}
    for i, name in enumerate(trend.terms[1:], 1):
        value = float(trend.coefficients[i])
        exponents[name] = {"value": value, "interval": bootstrap.interval(trend.draws[:, i], value).tolist()}
    return {"knob": trend.knob, "reason": trend.reason, "exponents": exponents, "places": list(trend.places)}


@dataclasses.dataclass(frozen=True)
class _Parabola:
    """Relative losses [values] in x = ln of the value, and their minimum."""

    n: float
    d: float
    x: np.ndarray
    matrix: np.ndarray
    loss: np.ndarray
    best: float
    inside: bool
    squares: float
    freedom: int

    @classmethod
    def of(cls, n: float, d: float, values: np.ndarray, loss: np.ndarray) -> _Parabola:
        x = np.log(values)
        loss = loss / loss.min()
        matrix = np.linalg.pinv(np.vander(x - x.mean(), 3))
        two, one, zero = matrix @ loss
        best = x.mean() - one / (2 * two) if two > 0 else np.nan
        left = loss - np.polyval((two, one, zero), x - x.mean())
        return cls(n, d, x, matrix, loss, best, bool(x.min() <= best <= x.max()), float(left @ left), len(x) - 3)

    def drawn(self, errors: np.ndarray) -> np.ndarray:
        """Minima [draws] of the losses with errors [draws, values], at most one span beyond what was tried."""
        two, one, _ = self.matrix @ (self.loss + errors).T
        away = np.where(two > 0, -one / (2 * np.where(two > 0, two, 1.0)), -np.sign(one) * np.inf)
        span = np.ptp(self.x)
        return self.x.mean() + np.clip(np.nan_to_num(away, posinf=span, neginf=-span), -span, span)


def _columns(terms: tuple[str, ...], n: np.ndarray, d: np.ndarray) -> np.ndarray:
    return np.stack([{"1": np.ones(len(n)), "N": np.log(n), "D": np.log(d)}[term] for term in terms], -1)


def _groups(tried: Tried, values: np.ndarray) -> list[tuple[float, float, np.ndarray, np.ndarray]]:
    """(N, D, values, mean losses) of each size and amount with enough values whose other knobs are at their best."""
    kept = np.isfinite(tried.loss) & np.isfinite(values)
    for other in tried.knobs.values():
        if other is not values:
            kept &= _at_best(tried, other, kept)
    found = []
    for n, d in sorted({(n, d) for n, d in zip(tried.n[kept], tried.d[kept], strict=True)}):
        here = kept & (tried.n == n) & (tried.d == d)
        distinct = np.unique(values[here])
        if len(distinct) >= TRIED:
            means = np.array([tried.loss[here & (values == value)].mean() for value in distinct])
            # far from the minimum a loss is no parabola: those within a tenth of the lowest are, or the three lowest
            near = means <= max(1.1 * means.min(), np.sort(means)[TRIED - 1])
            found.append((float(n), float(d), distinct[near], means[near]))
    return found


def _at_best(tried: Tried, other: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Rows whose other knob has, at their size and amount, the value of the lowest loss."""
    result = np.zeros(len(other), bool)
    for n, d in {(n, d) for n, d in zip(tried.n[kept], tried.d[kept], strict=True)}:
        here = np.flatnonzero(kept & (tried.n == n) & (tried.d == d))
        best = other[here[tried.loss[here].argmin()]]
        result[here] = (other[here] == best) | ~np.isfinite(other[here]) & ~np.isfinite(best)
    return result
