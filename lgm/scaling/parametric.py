"""L(N, D) = E + A / N^alpha + B / D^beta by three methods, each with the proof that it is at its optimum.

- `huber`: Huber's function of the error of ln L (Hoffmann et al., 2203.15556, equation 3), from a grid of starts.
- `least_absolute`: the sum of absolute errors of ln L, by successive linear programs.
- `variable_projection`: least squares of the relative error; for each (alpha, beta), E, A and B are a non-negative
  least squares of their own, which leaves two well-conditioned unknowns (Golub and Pereyra, 1973; 2603.22339).

An optimizer that stops early gives numbers that look like a fit (2404.10102 explains the first published ones so).
Therefore every fit carries its gradient, the number of starts that agree, and `converged`.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from lgm.scaling import solver
from lgm.scaling.solver import Points

METHODS = ("huber", "least_absolute", "variable_projection")
HUBER_DELTA = 1e-3
SMOOTHING = 1e-4  # Huber's delta in place of an absolute value where many fits are made at once
TOLERANCE = 1e-6  # of the relative gradient
MAX_STEPS = 4000  # of Newton: where a term of the law vanishes, its logarithm walks down to the bound for a thousand
LINEAR_PROGRAMS = 400  # at most, each as dear as a hundred of Newton's steps


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
        max_steps: int = MAX_STEPS) -> Fit:
    """Fit one method to parameters n, data d and losses [points]; `delta` is Huber's."""
    points = Points.of(n, d, loss)
    found = {"huber": _huber, "least_absolute": _least_absolute, "variable_projection": _variable_projection}
    return found[method](points, delta, max_steps)


def refit(method: str, points: Points, law: np.ndarray, weights: np.ndarray | None = None,
          delta: float = HUBER_DELTA) -> solver.Solution:
    """The same method for a batch of weights [batch, points] (or of losses), from laws near the answers [batch, 5].

    Least absolute deviations are smoothed within `SMOOTHING` of zero here, where thousands of them are wanted.
    """
    if method == "variable_projection":
        return solver.solve(points, law, weights, relative=True, tolerance=TOLERANCE)
    return solver.solve(points, law, weights, delta=delta if method == "huber" else SMOOTHING, tolerance=TOLERANCE)


def certify(law: np.ndarray, n: np.ndarray, d: np.ndarray, loss: np.ndarray, delta: float = HUBER_DELTA) -> float:
    """The relative gradient of the Huber objective at any law [5]: 0 at an optimum, towards 1 away from it."""
    return float(solver.solve(Points.of(n, d, loss), law[None], delta=delta, max_steps=0).gradient[0])


def starts(points: Points) -> np.ndarray:
    """A grid of laws [starts, 5]: E a part of the lowest loss, the typical rest shared between N's and D's terms."""
    exponents, floors, shares = (0.1, 0.25, 0.5, 0.9, 1.5), (0.3, 0.7, 0.95), (0.3, 0.7)
    low, middle = np.exp(points.log_loss.min()), np.exp(np.median(points.log_loss))
    grid = []
    for alpha, beta, floor, share in itertools.product(exponents, exponents, floors, shares):
        rest = middle - floor * low
        grid.append([np.log(share * rest), np.log((1 - share) * rest), np.log(floor * low), alpha, beta])
    return points.outward(np.array(grid))


def _huber(points: Points, delta: float, max_steps: int) -> Fit:
    found = solver.solve(points, starts(points), delta=delta, max_steps=max_steps)
    best = int(found.objective.argmin())
    check = _quasi_newton(points, found.law[best], delta, max_steps)
    return _fit("huber", points, found, best, max_steps, found.gradient[best], (check, found.objective[best]))


def _fit(method, points, found, best, limit, gradient, check) -> Fit:
    objectives = np.sort(found.objective) * len(points.x)
    lowest = found.objective[best]
    near = found.objective <= lowest * (1 + 1e-6) + 1e-20
    other, own = check
    excess = (other - own) / own if own > 1e-20 else 0.0
    convergence = Convergence(float(gradient), len(near), int(near.sum()), _spread(found.law[near]),
                              int(found.steps[best]), limit, float(excess))
    return Fit(method, found.law[best], float(lowest * len(points.x)), convergence, objectives)


def _spread(law: np.ndarray) -> tuple[float, float]:
    return tuple(np.ptp(law[:, 3:], axis=0).tolist())


def _quasi_newton(points: Points, law: np.ndarray, delta: float, max_steps: int) -> float:
    """The lowest objective that L-BFGS-B reaches from two places a little away from `law`: another road to the end."""
    from scipy.optimize import minimize

    low, high = points.bounds()
    weights, scale = np.full((1, len(points.x)), 1 / len(points.x)), None

    def value(inner):
        objective, gradient, *_ = solver.evaluate(points, inner[None], points.log_loss[None], weights, delta, False)
        return objective[0] / scale, gradient[0] / scale

    lowest = np.inf
    for shift in (-0.05, 0.05):
        start = np.clip(points.inward(law) + shift, low, high)
        scale = 1.0
        scale = value(start)[0] or 1.0
        end = minimize(value, start, jac=True, method="L-BFGS-B", bounds=list(zip(low, high, strict=True)),
                       options={"maxiter": max_steps, "maxfun": 2 * max_steps, "ftol": 0, "gtol": 1e-12})
        lowest = min(lowest, end.fun * scale)
    return lowest


def _least_absolute(points: Points, delta: float, max_steps: int) -> Fit:
    smooth = solver.solve(points, starts(points), delta=SMOOTHING, max_steps=max_steps)
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
    inner, radius, count, steps = points.inward(law), 0.1, len(points.x), 0
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
    value, first, second, third = (a[0] for a in solver.terms(points, inner[None]))
    return value - points.log_loss, np.stack([first, second, third, -points.x * first, -points.y * second], -1)


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


def _variable_projection(points: Points, delta: float, max_steps: int) -> Fit:
    from scipy.optimize import minimize

    grid = np.geomspace(0.02, 3.0, 48)
    alphas, betas = (g.ravel() for g in np.meshgrid(grid, grid, indexing="ij"))
    heights = profile(points, alphas, betas)[1].reshape(48, 48)
    corners = _lowest(heights)
    ends = []
    for i, j in corners:
        end = minimize(lambda z: _profile_and_slope(points, z), np.log([grid[i], grid[j]]), jac=True, method="L-BFGS-B",
                       bounds=[tuple(np.log(solver.EXPONENTS))] * 2,
                       options={"maxiter": max_steps, "ftol": 0, "gtol": 1e-13})
        alpha, beta = np.exp(end.x)
        ends.append((end.fun, alpha, beta, end.nit))
    laws_ = np.stack([_law(points, alpha, beta) for _, alpha, beta, _ in ends])
    # the last digits by Newton's method in all five unknowns, whose gradient is the proof
    spare = max(0, max_steps - max(end[3] for end in ends))
    found = solver.solve(points, laws_, relative=True, max_steps=spare)
    found = dataclasses.replace(found, steps=found.steps + np.array([end[3] for end in ends]))
    best = int(found.objective.argmin())
    projected = float(np.min([end[0] for end in ends])) / 2
    return _fit("variable_projection", points, found, best, max_steps, found.gradient[best],
                (projected, found.objective[best]))


def _lowest(heights: np.ndarray, count: int = 8) -> list[tuple[int, int]]:
    """Where to start from: the lowest cell of the grid and others spread over the lowest hundredth."""
    order = np.argsort(heights, axis=None)
    chosen = order[np.unique(np.geomspace(1, max(len(order) // 100, count), count).astype(int)) - 1]
    return [tuple(int(v) for v in np.unravel_index(index, heights.shape)) for index in chosen]


def profile(points: Points, alphas: np.ndarray, betas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Best non-negative (A, B, E), in centred units [g, 3], and mean squared relative error [g] at each (alpha, beta).

    Three unknowns have seven sets of positive ones: all are solved and the best feasible one taken.
    """
    loss = np.exp(points.log_loss)
    basis = np.stack([np.exp(-alphas[:, None] * points.x), np.exp(-betas[:, None] * points.y),
                      np.ones((len(alphas), len(points.x)))], 1) / loss
    gram = basis @ basis.transpose(0, 2, 1) / len(loss)
    target = basis.mean(-1)
    best, value = np.zeros((len(alphas), 3)), np.ones(len(alphas))
    for size in (1, 2, 3):
        for kept in map(list, itertools.combinations(range(3), size)):
            part = gram[np.ix_(range(len(alphas)), kept, kept)]
            ridge = 1e-14 * np.einsum("gii->g", part)[:, None, None] * np.eye(size)
            solved = np.linalg.solve(part + ridge, target[:, kept, None])[..., 0]
            error = ((np.einsum("gk,gkn->gn", solved, basis[:, kept]) - 1) ** 2).mean(-1)
            better = (solved >= 0).all(-1) & (error < value)
            value = np.where(better, error, value)
            best[better] = 0.0
            best[np.ix_(better, kept)] = solved[better]
    return best, value


def _profile_and_slope(points: Points, z: np.ndarray) -> tuple[float, np.ndarray]:
    """The profile at exp(z) and its slope: by the envelope theorem that of the objective at the best (A, B, E)."""
    alpha, beta = np.exp(z)
    (coefficients,), (value,) = profile(points, np.array([alpha]), np.array([beta]))
    loss = np.exp(points.log_loss)
    first = coefficients[0] * np.exp(-alpha * points.x) / loss
    second = coefficients[1] * np.exp(-beta * points.y) / loss
    error = first + second + coefficients[2] / loss - 1
    slope = np.array([-(2 * error * first * points.x).mean() * alpha, -(2 * error * second * points.y).mean() * beta])
    return value, slope


def _law(points: Points, alpha: float, beta: float) -> np.ndarray:
    (coefficients,), _ = profile(points, np.array([alpha]), np.array([beta]))
    low, high = points.bounds()
    inner = np.r_[np.log(np.maximum(coefficients, 1e-300)), alpha, beta]
    return points.outward(np.clip(inner, low, high))


