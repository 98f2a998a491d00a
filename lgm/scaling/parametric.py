"""L(N, D) = E + A / N^alpha + B / D^beta by three methods, each with the proof that it is at its optimum.

- `huber`: Huber's function of the error of ln L (Hoffmann et al., 2203.15556, equation 3), from a grid of starts.
- `least_absolute`: the sum of absolute errors of ln L, by successive linear programs.
- `variable_projection`: least squares of the relative error; for each (alpha, beta), E, A and B are a non-negative
  least squares of their own, which leaves two well-conditioned unknowns (Golub and Pereyra, 1973; 2603.22339).

An optimizer that stops early gives numbers that look like a fit (2404.10102 explains the first published ones so).
Therefore every fit carries its gradient, the number of starts that agree, and `converged`.
"""

import dataclasses
import itertools

import numpy as np

from lgm.scaling import projection, solver
from lgm.scaling.solver import Points

METHODS = ("huber", "least_absolute", "variable_projection")
HUBER_DELTA = 1e-3
SMOOTHING = 1e-4  # Huber's delta in place of an absolute value where many fits are made at once
TOLERANCE = 1e-6  # of the relative gradient
MAX_STEPS = 4000  # of Newton: where a term of the law vanishes, its logarithm walks down to the bound for a thousand
LINEAR_PROGRAMS = 400  # at most, each as dear as a hundred of Newton's steps
FOLLOWED = 16  # starts of 150 that are followed to the last digit
MANY = 2000  # rows: above, starts are tried on so many of them, and absolute errors are smoothed as in batches


@dataclasses.dataclass(frozen=True)
class Convergence:
    """Why a fit may be believed to be at its optimum, or not.

    Attributes:
      gradient: largest component of the objective's (sub)gradient relative to the absolute terms that cancel in it.
      starts: how many were tried; agreeing: how many ended within 1e-6 of the lowest objective.
      spread: largest differences of (alpha, beta) among the agreeing: many answers to one question where not about 0.
      steps: of the optimizer from the best start. limit: how many it was allowed.
      check: relative excess of the objective that another optimizer found over this one (negative: it found better),
        None where there is no other.
    """

    gradient: float
    starts: int
    agreeing: int
    spread: tuple[float, float]
    steps: int
    limit: int
    check: float | None

    @property
    def reason(self) -> str | None:
        """Why this is not an optimum; None where it is."""
        if not self.gradient <= TOLERANCE:
            when = f"stopped early, after {self.steps} steps" if self.steps >= self.limit else "stalled"
            return f"{when}: relative gradient {self.gradient:.1e}, above {TOLERANCE:g}"
        if self.starts > 1 and self.agreeing < 2:
            return f"only one of {self.starts} starts reached the lowest objective"
        if self.check is not None and self.check < -1e-6:
            return f"another optimizer found an objective lower by {-self.check:.1e} of its value"
        return None

    @property
    def converged(self) -> bool:
        return self.reason is None


@dataclasses.dataclass(frozen=True)
class Fit:
    """One method's law [5], the value of its objective (a sum over points) and its convergence."""

    method: str
    law: np.ndarray
    objective: float
    convergence: Convergence
    objectives: np.ndarray  # [starts] reached from each start, ascending


def fit(method: str, n: np.ndarray, d: np.ndarray, loss: np.ndarray, delta: float = HUBER_DELTA,
        max_steps: int = MAX_STEPS, near: np.ndarray | None = None) -> Fit:
    """Fit one method to parameters n, data d and losses [points]; `delta` is Huber's.

    near: the law [5] of a table that has most of these rows, for a few starts about it instead of a grid of them.
    """
    points = Points.of(n, d, loss)
    found = {"huber": _huber, "least_absolute": _least_absolute, "variable_projection": _variable_projection}
    return found[method](points, delta, max_steps, None if near is None else about(points, near))


def about(points: Points, law: np.ndarray) -> np.ndarray:
    """Laws [4, 5]: that one, and others a little away from it."""
    shifts = 0.1 * np.array([[0, 0, 0, 0, 0], [1, -1, 0, 0.3, -0.3], [-1, 1, 0, -0.3, 0.3], [1, 1, -0.3, 0.3, 0.3]])
    return points.outward(points.inward(law) + shifts)


def refit(method: str, points: Points, law: np.ndarray, weights: np.ndarray | None = None,
          delta: float = HUBER_DELTA) -> solver.Solution:
    """The same method for a batch of weights [batch, points] (or of losses), from laws near the answers [batch, 5].

    Least absolute deviations are smoothed within `SMOOTHING` of zero here, where many of them are wanted.
    """
    return solver.solve(points, law, weights, huber_delta(method, delta), method == "variable_projection", MAX_STEPS,
                        TOLERANCE)


def huber_delta(method: str, delta: float) -> float:
    """The delta of Huber's function that a method minimises in batches: infinite for least squares."""
    return {"huber": delta, "least_absolute": SMOOTHING, "variable_projection": np.inf}[method]


def starts(points: Points) -> np.ndarray:
    """A grid of laws [starts, 5]: E a part of the lowest loss, the typical rest shared between N's and D's terms."""
    exponents, floors, shares = (0.1, 0.25, 0.5, 0.9, 1.5), (0.3, 0.7, 0.95), (0.3, 0.7)
    low, middle = np.exp(points.log_loss.min()), np.exp(np.median(points.log_loss))
    grid = []
    for alpha, beta, floor, share in itertools.product(exponents, exponents, floors, shares):
        rest = middle - floor * low
        grid.append([np.log(share * rest), np.log((1 - share) * rest), np.log(floor * low), alpha, beta])
    return points.outward(np.array(grid))


def _huber(points: Points, delta: float, max_steps: int, near: np.ndarray | None) -> Fit:
    begin = _good_starts(points, delta, max_steps, FOLLOWED) if near is None else near
    found = solver.solve(points, begin, delta=delta, max_steps=max_steps)
    if _agreeing(found.objective).sum() < 2:  # of two ends nearly as low most starts may come to the higher
        again = solver.solve(points, about(points, found.law[found.objective.argmin()]), delta=delta,
                             max_steps=max_steps)
        found = solver.Solution(*(np.concatenate(pair) for pair in zip(
            dataclasses.astuple(found), dataclasses.astuple(again), strict=True)))
    best = int(found.objective.argmin())
    own = found.objective[best]
    check = _quasi_newton(points, found.law[best], delta, max_steps) if len(points.x) <= MANY else own
    return _fit("huber", points, found, best, max_steps, found.gradient[best], (check, own))


def _good_starts(points: Points, delta: float, max_steps: int, most: int) -> np.ndarray:
    """Where all starts lead to when errors as large as most are still squared: the lowest place and others above it.

    That the others come to the same end in the objective itself is the proof that there is one end.
    """
    every, some = starts(points), points.some(MANY // 4)
    least, _ = projection.fit(some.x, some.y, np.exp(some.log_loss), np.ones(len(some.x)), np.ones((1, len(some.x))),
                              np.full((1, 2), 0.4))
    typical = float(np.median(np.abs(solver.terms(some, least)[0][0] - some.log_loss)))
    found = solver.solve(some, every, delta=max(delta, SMOOTHING, typical), max_steps=min(max_steps, 100),
                         tolerance=1e-3)
    order = np.argsort(found.objective)
    return found.law[order[np.unique(np.geomspace(1, len(order), _count(points, most)).astype(int)) - 1]]


def _count(points: Points, most: int) -> int:
    """How many starts are followed to the end: fewer of a table of very many rows."""
    return int(np.clip(600_000 // len(points.x), 3, most))


def _fit(method, points, found, best, limit, gradient, check) -> Fit:
    objectives = np.sort(found.objective) * len(points.x)
    lowest = found.objective[best]
    near = _agreeing(found.objective)
    other, own = check
    excess = (other - own) / own if own > 1e-20 else 0.0
    convergence = Convergence(float(gradient), len(near), int(near.sum()), _spread(found.law[near]),
                              int(found.steps[best]), limit, float(excess))
    return Fit(method, found.law[best], float(lowest * len(points.x)), convergence, objectives)


def _agreeing(objectives: np.ndarray) -> np.ndarray:
    """Which of the ends are the lowest."""
    return objectives <= objectives.min() * (1 + 1e-6) + 1e-20


def _spread(law: np.ndarray) -> tuple[float, float]:
    return tuple(np.ptp(law[:, 3:], axis=0).tolist())


def _quasi_newton(points: Points, law: np.ndarray, delta: float, max_steps: int) -> float:
    """The lowest objective that L-BFGS-B reaches from two places a little away from `law`: another road to the end."""
    from scipy.optimize import minimize

    low, high = points.bounds()
    scale = None

    def value(inner):
        residual, jacobian = _linear(points, inner)
        psi = np.clip(residual, -delta, delta)
        return (psi * residual - 0.5 * psi**2).mean() / scale, psi @ jacobian / (len(psi) * scale)

    lowest = np.inf
    for shift in (-0.05, 0.05):
        start = np.clip(points.inward(law) + shift, low, high)
        scale = 1.0
        scale = value(start)[0] or 1.0
        end = minimize(value, start, jac=True, method="L-BFGS-B", bounds=list(zip(low, high, strict=True)),
                       options={"maxiter": min(max_steps, 300), "maxfun": 900, "ftol": 0, "gtol": 1e-12})
        lowest = min(lowest, end.fun * scale)
    return lowest


def _least_absolute(points: Points, delta: float, max_steps: int, near: np.ndarray | None) -> Fit:
    if len(points.x) > MANY:
        return dataclasses.replace(_huber(points, SMOOTHING, max_steps, near), method="least_absolute")
    begin = _good_starts(points, SMOOTHING, max_steps, FOLLOWED) if near is None else near
    smooth = solver.solve(points, begin, delta=SMOOTHING, max_steps=max_steps)
    order = np.argsort(smooth.objective)
    spread = order[np.linspace(0, len(order) - 1, 6).astype(int)]
    max_steps = min(max_steps, LINEAR_PROGRAMS)
    ends = [_linear_programs(points, smooth.law[index], max_steps) for index in spread]
    values = np.array([value for _, value, _ in ends])
    best = int(values.argmin())
    law, value, steps = ends[best]
    gradient = _subgradient(points, law)
    objectives = np.sort(values)
    near = values <= value * (1 + 1e-6) + 1e-12
    agreeing = np.stack([law for law, _, _ in ends])[near]
    convergence = Convergence(gradient, len(ends), len(agreeing), _spread(agreeing), steps, max_steps, None)
    return Fit("least_absolute", law, float(value), convergence, objectives)


def _linear_programs(points: Points, law: np.ndarray, max_steps: int) -> tuple[np.ndarray, float, int]:
    """Minimise sum |r|, r being errors of ln L, by linearising r in a box that grows with success.

    Returns the law, the value and the steps. At a solution five residuals are zero and the linear program returns a
    step of zero, which ends it.
    """
    from scipy.optimize import linprog
    from scipy.sparse import csr_array, eye_array, hstack, vstack

    low, high = points.bounds()
    inner, radius, count, steps = points.inward(law), 1e-3, len(points.x), 0
    residual, jacobian = _linear(points, inner)
    ones = eye_array(count, format="csr")
    for _ in range(max_steps):
        steps += 1
        value = np.abs(residual).sum()
        dense = csr_array(jacobian)
        above = vstack([hstack([dense, -ones]), hstack([-dense, -ones])], format="csr")
        box = np.stack([np.maximum(-radius, low - inner), np.minimum(radius, high - inner)], -1)
        answer = linprog(np.r_[np.zeros(5), np.ones(count)], A_ub=above, b_ub=np.r_[-residual, residual],
                         bounds=np.vstack([box, np.tile([0, np.inf], (count, 1))]), method="highs")
        if answer.status != 0 or value - answer.fun <= 1e-13 * value + 1e-300:
            break
        trial = inner + answer.x[:5]
        new_residual, new_jacobian = _linear(points, trial)
        gain = (value - np.abs(new_residual).sum()) / (value - answer.fun)
        if gain > 0:
            inner, residual, jacobian = trial, new_residual, new_jacobian
        radius = radius * 2 if gain > 0.75 else radius if gain > 0.25 else radius / 4
        if radius < 1e-14:
            break
    return points.outward(inner), float(np.abs(residual).sum()), steps


def _linear(points: Points, inner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Errors of ln L [n] and their Jacobian [n, 5] at a centred law."""
    value, jacobian = solver.tangent(points, inner)
    return value - points.log_loss, jacobian


def _subgradient(points: Points, law: np.ndarray) -> float:
    """Distance of zero from the subdifferential of sum |r|, relative to the absolute terms in it.

    Residuals of zero may carry any sign in [-1, 1]: the best ones are a bounded least squares.
    """
    from scipy.optimize import lsq_linear

    inner = points.inward(law)
    residual, jacobian = _linear(points, inner)
    scale = np.abs(jacobian).sum(0) + 1e-300
    zero = np.abs(residual) < 1e-9 * max(1.0, np.abs(residual).max()) + 1e-12
    fixed = (np.sign(residual) * ~zero) @ jacobian / scale
    low, high = points.bounds()
    free = ~((inner <= low + solver.GONE + 1e-9) | (inner >= high - 1e-9))
    if not zero.any():
        return float(np.abs(fixed[free]).max(initial=0.0))
    columns = (jacobian[zero] / scale).T[free]
    signs = lsq_linear(columns, -fixed[free], bounds=(-1, 1), tol=1e-15).x
    return float(np.abs(columns @ signs + fixed[free]).max(initial=0.0))


def _variable_projection(points: Points, delta: float, max_steps: int, near: np.ndarray | None) -> Fit:
    begin = _low_corners(points) if near is None else near[:, 3:]
    loss = np.exp(points.log_loss)
    ends, used = projection.fit(points.x, points.y, loss, np.ones(len(loss)), np.ones((len(begin), len(loss))),
                                begin, min(max_steps, projection.STEPS))
    # the last digits by Newton's method in all five unknowns, whose gradient is the proof
    laws_ = points.outward(ends)
    found = solver.solve(points, laws_, relative=True, max_steps=max(0, max_steps - used.max()))
    found = dataclasses.replace(found, steps=found.steps + used)
    best = int(found.objective.argmin())
    projected = float(solver.solve(points, laws_, relative=True, max_steps=0).objective.min())
    return _fit("variable_projection", points, found, best, max_steps, found.gradient[best],
                (projected, found.objective[best]))


def _low_corners(points: Points) -> np.ndarray:
    """(alpha, beta) to start from: the lowest place of a grid and others spread over the lowest hundredth."""
    grid = np.geomspace(0.02, 3.0, 48)
    alphas, betas = (g.ravel() for g in np.meshgrid(grid, grid, indexing="ij"))
    order = np.argsort(profile(points.some(MANY), alphas, betas)[1])
    chosen = order[np.unique(np.geomspace(1, len(order) // 100, _count(points, 8)).astype(int)) - 1]
    return np.stack([alphas[chosen], betas[chosen]], -1)


def profile(points: Points, alphas: np.ndarray, betas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At each (alpha, beta) the best non-negative (A, B, E), centred [g, 3], and mean squared relative error [g]."""
    inverse = np.exp(-points.log_loss)

    def best(alpha, beta):
        basis = np.stack([np.exp(-alpha * points.x), np.exp(-beta * points.y), np.ones((len(alpha), len(inverse)))],
                         1) * inverse
        law, value = projection.non_negative(basis @ basis.transpose(0, 2, 1) / len(inverse), basis.mean(-1))
        return law, np.maximum(value + 1, 0.0)

    return solver.in_chunks(best, projection.CHUNK // len(inverse), alphas[:, None], betas[:, None])
