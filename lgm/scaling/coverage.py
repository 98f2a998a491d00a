"""What a plan of runs would tell: simulate it under a known law and noise, fit, and count how often intervals hold."""

import dataclasses

import numpy as np

from lgm.scaling import bootstrap, laws, parametric
from lgm.scaling.laws import Cost
from lgm.scaling.solver import Points
from lgm.scaling.table import Runs


@dataclasses.dataclass(frozen=True)
class Coverage:
    """Of one quantity: its truth, the rate at which 95% intervals contain it, and their median ends.

    width: the median over 3.92 standard deviations of the estimates, by their quantiles: 1 where it is what it must be.
    """

    truth: float
    rate: float
    low: float
    high: float
    width: float


def measure(method: str, n: np.ndarray, d: np.ndarray, law: np.ndarray, noise: np.ndarray, budget: float,
            cost: Cost, draws: int = 400) -> dict[str, Coverage]:
    """Fit many simulated tables of the runs (n, d), and compare each interval with the truth.

    Args:
      noise: errors of ln L [tables, runs]. budget: FLOPs at which the best N and its loss are predicted too.
      draws: of each table.
    Returns coverage of E, alpha, beta, `a` (of N_opt ~ C^a), `N_opt` and `loss` at the budget, and the share of tables
    whose fit converged under `converged`.
    """
    exact = Points.of(n, d, laws.loss(law, n, d))
    start = parametric.starts(exact)[60]  # one of the grid, far from any law worth simulating
    tables = dataclasses.replace(exact, log_loss=exact.log_loss + noise)
    fit = parametric.refit(method, tables, np.repeat(start[None], len(noise), 0))
    rows, delta = np.arange(len(n)), parametric.huber_delta(method, parametric.HUBER_DELTA)
    ends, of = [], lambda law: np.stack(list(_quantities(law, cost, budget).values()), -1)
    for i in range(len(noise)):
        runs = Runs("", n, d, np.exp(tables.log_loss[i]), None, rows, rows, "tokens")
        drawn = bootstrap.draw(runs, fit.law[i], delta, draws, i).law
        ends.append(bootstrap.interval(of(drawn), of(fit.law[i])))
    ends, result = np.stack(ends, -1), {}
    low, high = np.quantile(of(fit.law), [0.025, 0.975], axis=0)
    scatter = dict(zip(_quantities(law, cost, budget), high - low, strict=True))
    for place, (name, truth) in enumerate(_quantities(law, cost, budget).items()):
        low, high = ends[:, place]
        result[name] = Coverage(float(truth), float(((low <= truth) & (truth <= high)).mean()),
                                float(np.median(low)), float(np.median(high)),
                                float(np.median(high - low) / scatter[name]))
    share = float(fit.converged().mean())
    return result | {"converged": Coverage(1.0, share, share, share, 1.0)}


def _quantities(law: np.ndarray, cost: Cost, budget: float) -> dict[str, np.ndarray]:
    values = laws.parameters(law)
    best_n, _, loss = laws.optimum(law, cost, budget)
    return {name: values[name] for name in ("E", "alpha", "beta")} | {
        "a": laws.exponents(law, cost)["N"], "N_opt": best_n, "loss": loss}


def isoflop_plan(law: np.ndarray, cost: Cost, budgets: np.ndarray,
                 factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """N and D of an isoFLOP plan: at each budget the law's best size times each factor."""
    best = laws.optimum(law, cost, np.asarray(budgets)[:, None])[0]
    n = best * factors
    return n.ravel(), (np.asarray(budgets)[:, None] / (cost.k * n**cost.p)).ravel()


def grid_plan(sizes: np.ndarray, data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """N and D of a plan that cools every size down at every amount of data."""
    n, d = np.meshgrid(sizes, data, indexing="ij")
    return n.ravel(), d.ravel()
