"""One family's fits by all methods, their draws and their checks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from lgm.scaling import bootstrap, forms, identify, isoflop, laws, parametric, quality, sensitivity, tuning
from lgm.scaling.bootstrap import Draws
from lgm.scaling.laws import Cost
from lgm.scaling.parametric import Fit
from lgm.scaling.table import Runs

CHECKED = 6000  # rows that what is left out is left out of: every second, third, ... of a longer table


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to fit.

    Attributes:
      method: of METHODS, the one that predicts, is left out from, and is compared. delta: Huber's.
      draws: simulated tables. seed: of the draws. max_steps: of each optimizer. hold_out: (column, value), rows above
        which are predicted from the rest; None for the largest budget.
      max_params: that a recommended model may have.
    """

    method: str = "huber"
    delta: float = parametric.HUBER_DELTA
    draws: int = 1000
    seed: int = 0
    max_steps: int = parametric.MAX_STEPS
    hold_out: tuple[str, float] | None = None
    max_params: float = np.inf

    def __post_init__(self):
        if self.method not in parametric.METHODS:
            raise ValueError(f"--method={self.method!r} is not one of {', '.join(parametric.METHODS)}")
        if not (np.isfinite(self.delta) and self.delta > 0):
            raise ValueError(f"--delta={self.delta} must be a positive number; the usual one is 1e-3")
        if self.draws < 100:
            raise ValueError(f"--draws={self.draws} is too few for a 95% interval; give 100 or more")
        if not self.max_params > 0:
            raise ValueError(f"--max-params={self.max_params} must be positive")
        if self.max_steps < 1:
            raise ValueError(f"--max-steps={self.max_steps} must be positive")


@dataclasses.dataclass(frozen=True)
class Estimate:
    """One method's fit, the laws of tables like the one fitted, and which parameters it may not state, and why."""

    fit: Fit
    drawn: Draws
    refused: dict[str, str]

    @property
    def draws(self) -> np.ndarray:
        return self.drawn.law

    def between(self, quantity: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """[2, ...]: the 95% interval of a quantity of laws [..., 5]."""
        return bootstrap.interval(quantity(self.draws), quantity(self.fit.law))


@dataclasses.dataclass(frozen=True)
class Family:
    """A family's runs, cost and estimates; `reason` says why nothing was fitted, `unidentified` why the plan itself
    tells no exponents. form: the law of another form that predicts, None for the plain one; forms: what each came
    to. tuning: trends of what was tuned. quality: what the loss comes to."""

    runs: Runs
    cost: Cost | None
    estimates: dict[str, Estimate]
    isoflop: isoflop.Isoflop | None
    checks: dict
    reason: str | None
    unidentified: str | None = None
    form: forms.Fitted | None = None
    forms: list[dict] = dataclasses.field(default_factory=list)
    tuning: tuple[tuning.Trend, ...] = ()
    quality: tuple[quality.Quality, ...] = ()

    def refusal(self, method: str) -> str | None:
        """Why no best N and D for a budget are stated by a method; None where they are."""
        if self.reason:
            return self.reason
        if self.cost is None:
            return "FLOPs are unknown: give a column 'flops', or --tokens-per-image"
        return None if self.form else self.unidentified or self.estimates[method].fit.convergence.reason


def analyse(runs: Runs, settings: Settings, dataset: float | None = None) -> Family:
    """All fits of one family and, for the chosen method, its leave-outs, held-out budget and sensitivities.

    dataset: how much data there is, for rows that do not say themselves and for what is predicted.
    """
    if dataset is not None and runs.unique is None:
        runs = dataclasses.replace(runs, unique=np.full(len(runs), float(dataset)))
    cost = laws.fit_cost(runs.n, runs.d, runs.flops) if runs.flops is not None and len(runs) else None
    reason = identify.unfittable(runs)
    trends = tuple(trend for knob in (runs.tried.knobs if runs.tried else ())
                   if (trend := tuning.fit(runs.tried, knob, settings.draws, settings.seed)))
    if reason:
        return Family(runs, cost, {}, None, {}, reason, tuning=trends)
    refused = identify.by_design(runs)
    estimates = {method: estimate(method, runs, refused, settings) for method in parametric.METHODS}
    chosen, huber = estimates[settings.method], estimates["huber"]
    checks = {"held_out": sensitivity.held_out(runs, chosen.fit, settings.delta, settings.draws, settings.seed,
                                               settings.hold_out)}
    if not refused and chosen.fit.convergence.converged:
        some = runs.take(np.arange(len(runs)) % -(-len(runs) // CHECKED) == 0)
        checks |= {
            "leave_one_size_out": sensitivity.leave_sizes_out(some, chosen.fit, settings.delta),
            "leave_one_run_out": sensitivity.leave_points_out(some, chosen.fit, settings.delta),
            "ranges": sensitivity.ranges(some, chosen.fit, settings.delta),
            "deltas": sensitivity.deltas(some, huber.fit),
        }
    unidentified = refused.get("alpha") or refused.get("beta")
    above = forms.top(runs) if settings.hold_out is None else sensitivity.largest(runs, settings.hold_out)[0]
    form, tried = forms.choose(runs, chosen.fit.law, above, dataset, settings.seed)
    parabolas = isoflop.fit(runs, settings.draws, settings.seed)
    return Family(runs, cost, estimates, parabolas, checks, None, unidentified, form, tried,
                  trends, tuple(quality.fit(runs, name, settings.draws, settings.seed) for name in runs.quality))


def estimate(method: str, runs: Runs, refused: dict[str, str], settings: Settings) -> Estimate:
    """One method's fit, its draws, and what is refused beside what is `refused` by design."""
    fit = parametric.fit(method, runs.n, runs.d, runs.loss, settings.delta, settings.max_steps)
    identified = not ("alpha" in refused or "beta" in refused)
    drawn = bootstrap.draw(runs, fit.law, parametric.huber_delta(method, settings.delta), settings.draws, settings.seed,
                           identified)
    return Estimate(fit, drawn, identify.by_fit(runs, fit, drawn, refused))
