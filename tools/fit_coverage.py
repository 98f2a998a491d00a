"""How often the 95% intervals of `lgm fit` contain the truth, on simulated tables of runs.

    python tools/fit_coverage.py [--tables=200] [--draws=500] [--method=huber] [--only=ladders]

Every line is a plan of runs, its noise and a method; the columns are the rates for E, alpha, beta, the exponent a of
N_opt ~ C^a, the best size and the loss at ten times the largest budget, and the medians of the intervals' widths over
what the estimates scatter (1 is as narrow as can be). What is expected: 92 to 98% by 200 tables, whose own error is
1.5%. The laws are those of 2203.15556 and of its replication, 2404.10102.

The last lines are of ladders: four sizes at six amounts of data, and the loss of the next size at each amount predicted
by all of what `lgm fit` does. Once every row is a run of its own (1% between runs, 0.2% of a row), once a size's rows
are cooldowns of one trunk, which share that 1%. The columns are the share of predictions within 1% of the truth, the
median error, the rate at which the interval contains the truth, that of tables for which nothing was stated, and the
share of predictions within 1% of an unbiased estimator that errs as little as can be (Cramer and Rao's bound) and knows
the noise.
"""

import argparse
import math
import time

import numpy as np

from lgm.scaling import coverage, families, isoflop, laws, parametric, predicting
from lgm.scaling.table import Runs

LAWS = {"2203.15556": laws.theta(406.4, 410.7, 1.69, 0.34, 0.28),
        "2404.10102": laws.theta(482.01, 2085.43, 1.8172, 0.3478, 0.3658)}
COST = laws.Cost(6.0, 1.0, 1.0)
NAMES = ("E", "alpha", "beta", "a", "N_opt", "loss")


def normal(random, shape):
    return 0.01 * random.standard_normal(shape)


def with_outliers(random, shape):
    """6% of runs are 3 to 10% worse than they should be."""
    return normal(random, shape) + np.where(random.random(shape) < 0.06, random.uniform(0.03, 0.1, shape), 0)


def plans(law):
    iso = lambda budgets, sizes: coverage.isoflop_plan(law, COST, np.geomspace(6e18, 3e21, budgets),
                                                       np.geomspace(0.2, 5, sizes))
    n, d = coverage.grid_plan(np.geomspace(5e7, 1e10, 5), np.geomspace(1e9, 3e11, 4))
    return {"grid 6 x 5": (*coverage.grid_plan(np.geomspace(5e7, 1e10, 6), np.geomspace(1e9, 3e11, 5)), normal),
            "isoFLOP 5 x 6": (*iso(5, 6), normal),
            "2 seeds, outliers": (np.repeat(n, 2), np.repeat(d, 2), with_outliers),
            "3 budgets x 5": (*iso(3, 5), normal)}


def rates(arguments):
    print(f"{'law':11} {'plan':18} {'method':20}" + "".join(f"{name:>6}" for name in NAMES) + "   widths  seconds")
    for law_name, law in LAWS.items():
        for plan_name, (n, d, noise) in plans(law).items():
            for method in arguments.method or parametric.METHODS:
                began = time.perf_counter()
                errors = noise(np.random.default_rng(0), (arguments.tables, len(n)))
                found = coverage.measure(method, n, d, law, errors, 10 * float((6 * n * d).max()), COST,
                                         draws=arguments.draws)
                line = "".join(f"{100 * found[name].rate:6.1f}" for name in NAMES)
                widths = " ".join(f"{found[name].width:.2f}" for name in NAMES)
                print(f"{law_name:11} {plan_name:18} {method:20}{line}   {widths} {time.perf_counter() - began:8.1f}",
                      flush=True)


def parabolas(arguments):
    """The exponent a and the best size at ten times the largest budget by parabolas."""
    print("parabolas: rates for a and N_opt at ten times the largest budget, tables refused")
    for law_name, law in LAWS.items():
        n, d = coverage.isoflop_plan(law, COST, np.geomspace(6e18, 3e21, 5), np.geomspace(0.2, 5, 6))
        budget, inside, refused = 3e22, [], 0
        truth = laws.exponents(law, COST)["N"], laws.optimum(law, COST, budget)[0]
        for table in range(arguments.tables):
            runs = simulated(law, n, d, normal(np.random.default_rng(table), len(n)))
            found = isoflop.fit(runs, arguments.draws, table)
            refused += found.reason is not None
            if found.reason is None:
                _, _, (low, high), _ = found.optimum(COST, budget)
                a_low, a_high = np.quantile(found.draws[:, 1], [0.025, 0.975])
                inside.append([a_low <= truth[0] <= a_high, low <= truth[1] <= high])
        print(f"{law_name:11} isoFLOP 5 x 6: " + " ".join(f"{100 * rate:5.1f}" for rate in np.mean(inside, 0))
              + f"  {refused} of {arguments.tables} refused", flush=True)


def simulated(law, n, d, noise, run=None):
    rows = np.arange(len(n))
    return Runs("all", n, d, laws.loss(law, n, d) * np.exp(noise), 6 * n * d, rows if run is None else run, rows + 2,
                "tokens")


def ladders(arguments):
    print(f"{'law':11} {'ladder':18} {'method':20} {'next size':>9} {'within 1%':>9} {'median':>7} {'cover':>6} "
          f"{'silent':>10}  bound")
    n, d = coverage.grid_plan(np.geomspace(1.9e8, 1.3e9, 4), np.geomspace(4e9, 1.3e11, 6))
    for law_name, law in LAWS.items():
        for shared in (False, True):
            trunk = np.repeat(np.arange(4), 6) if shared else np.arange(24)
            for method in arguments.method or parametric.METHODS:
                settings = families.Settings(method, draws=arguments.draws)
                for times in (2.0, 3.0):
                    result = [ladder(law, n, d, trunk, settings, times, seed) for seed in range(arguments.tables)]
                    kept = np.array([row for row in result if row is not None])
                    error, inside = np.abs(kept[..., 0]), kept[..., 1]
                    print(f"{law_name:11} {'trunks' if shared else 'runs':18} {method:20} {times:8g}x "
                          f"{100 * (error < 0.01).mean():8.1f}% {100 * np.median(error):6.2f}% "
                          f"{100 * inside.mean():5.1f}% {len(result) - len(kept):3d} of {len(result)} "
                          f"{100 * bound(law, n, d, trunk, times):6.1f}%", flush=True)


def ladder(law, n, d, trunk, settings, times, seed):
    """[amounts, 2]: errors of the next size's losses and whether the interval holds them; None where one is silent."""
    random = np.random.default_rng(seed)
    noise = 0.01 * random.standard_normal(len(n))[trunk] + 0.002 * random.standard_normal(len(n))
    runs = simulated(law, n, d, noise, trunk)
    estimate = families.estimate(settings.method, runs, {}, settings)
    family = families.Family(runs, COST, {settings.method: estimate}, None, {}, None)
    rows = []
    for data in np.unique(d):
        found, truth = predicting.point(family, settings, times * n.max(), data), laws.loss(law, times * n.max(), data)
        if found["loss"] is None:
            return None
        low, high = found["intervals"]["loss"]
        rows.append([found["loss"] / truth - 1, low <= truth <= high])
    return rows


def bound(law, n, d, trunk, times):
    """The share of the next size's predictions within 1% where errors are the least possible, mean over amounts."""
    def slopes(n, d):
        steps = 1e-5 * np.eye(5)
        return np.stack([(np.log(laws.loss(law + step, n, d)) - np.log(laws.loss(law - step, n, d))) / 2e-5
                         for step in steps], -1)

    covariance = 1e-4 * (trunk[:, None] == trunk) + 4e-6 * np.eye(len(n))
    information = slopes(n, d).T @ np.linalg.solve(covariance, slopes(n, d))
    there = slopes(times * n.max(), np.unique(d))
    error = np.sqrt(np.einsum("ai,ij,aj->a", there, np.linalg.inv(information), there))
    return np.mean([math.erf(0.01 / one / math.sqrt(2)) for one in error])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=200)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--method", action="append", choices=parametric.METHODS)
    parser.add_argument("--only", choices=("plans", "parabolas", "ladders"))
    arguments = parser.parse_args()
    for name, part in (("plans", rates), ("parabolas", parabolas), ("ladders", ladders)):
        if arguments.only in (None, name):
            part(arguments)


if __name__ == "__main__":
    main()
