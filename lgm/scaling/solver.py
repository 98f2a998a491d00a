"""Many fits of L(N, D) at once: damped Newton steps over a batch of weighted Huber problems of five unknowns.

Each problem is: minimise sum_i w_i rho(r_i(theta)) / sum_i w_i, with rho Huber's function and r the error of the law,
either of its logarithm (Hoffmann et al., 2203.15556, equation 3: ln E + ... is a log-sum-exp) or relative. Weights make
bootstrap draws, points left out and sizes left out all the same problem; starts are problems with equal weights.

Why not one L-BFGS a problem: with five unknowns the exact Hessian is cheap, a batch of a thousand is a handful of
matrix products a step, and Newton's quadratic end makes the gradient zero to rounding, which proves the optimum.
"""

from __future__ import annotations

import dataclasses

import numpy as np

CHUNK = 1 << 16  # batch x points handled together: arrays stay in the cache
EXPONENTS = (1e-3, 5.0)  # search bounds of alpha and beta; an estimate on a bound is not an estimate
FLOOR = 18.0  # of ln A, ln B (at the centre) and ln E, below the lowest ln of the loss
GONE = np.array([3.0, 3.0, 3.0, 0.0, 0.0])  # this near the floor a term is e^-15 of the loss, and may stay there


@dataclasses.dataclass(frozen=True)
class Points:
    """Logarithms of N and D [n] and of the loss [n] or [batch, n], N and D centred so that the unknowns decouple."""

    x: np.ndarray
    y: np.ndarray
    log_loss: np.ndarray
    centre: tuple[float, float]

    @classmethod
    def of(cls, n: np.ndarray, d: np.ndarray, loss: np.ndarray) -> Points:
        x, y = np.log(n), np.log(d)
        centre = float(x.mean()), float(y.mean())
        return cls(x - centre[0], y - centre[1], np.log(loss), centre)

    def some(self, count: int) -> Points:
        """At most so many of the points, spread over sizes and data, in the same units."""
        if len(self.x) <= count:
            return self
        rows = np.lexsort((self.y, self.x))[np.linspace(0, len(self.x) - 1, count).astype(int)]
        return Points(self.x[rows], self.y[rows], self.log_loss[..., rows], self.centre)

    def inward(self, law: np.ndarray) -> np.ndarray:
        """A law in terms of the centred logarithms."""
        shift = np.stack([law[..., 3] * self.centre[0], law[..., 4] * self.centre[1]], -1)
        return np.concatenate([law[..., :2] - shift, law[..., 2:]], -1)

    def outward(self, law: np.ndarray) -> np.ndarray:
        """The inverse of `inward`."""
        shift = np.stack([law[..., 3] * self.centre[0], law[..., 4] * self.centre[1]], -1)
        return np.concatenate([law[..., :2] + shift, law[..., 2:]], -1)

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest centred law [5]."""
        low, high = self.log_loss.min(), self.log_loss.max()
        return (np.array([low - FLOOR, low - FLOOR, low - FLOOR, EXPONENTS[0], EXPONENTS[0]]),
                np.array([high + 2, high + 2, high, EXPONENTS[1], EXPONENTS[1]]))


@dataclasses.dataclass(frozen=True)
class Solution:
    """Of each problem in the batch.

    Attributes:
      law: [batch, 5]. objective: [batch], the weighted mean of Huber's function.
      gradient: [batch], the largest component of the projected gradient, each relative to the sum of the absolute terms
        that cancel in it: 1 where nothing cancels, 0 at an optimum.
      steps: [batch] Newton steps tried.
    """

    law: np.ndarray
    objective: np.ndarray
    gradient: np.ndarray
    steps: np.ndarray

    def converged(self, tolerance: float = 1e-6) -> np.ndarray:
        return self.gradient <= tolerance


def solve(points: Points, start: np.ndarray, weights: np.ndarray | None = None, delta: float = np.inf,
          relative: bool = False, max_steps: int = 200, tolerance: float = 1e-9) -> Solution:
    """Fit every problem of a batch from its start.

    Args:
      start: laws [batch, 5]. weights: [batch, n] or None for ones. delta: Huber's, inf for least squares.
      relative: errors of the loss relative to the measured one instead of errors of its logarithm.
      max_steps: bound on Newton steps; a problem that needs more keeps the gradient that says so.
    A delta far below the scatter makes a nearly polyhedral problem: it is approached by halving from the scatter down.
    """
    batch, n = len(start), len(points.x)
    if weights is None:
        weights = np.ones((1, n))
    weights = np.broadcast_to(weights / weights.sum(-1, keepdims=True), (batch, n))
    log_loss = np.broadcast_to(points.log_loss, (batch, n))
    some = lambda *part: _solve(points, *part, delta, relative, max_steps, tolerance)
    law, *rest = in_chunks(some, CHUNK // n, points.inward(start), log_loss, weights)
    return Solution(points.outward(law), *rest)


def in_chunks(act, size: int, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """What `act` returns of arrays [batch, ...], joined from calls with at most `size` of the batch, or one."""
    size = max(1, size)
    parts = [act(*(array[i:i + size] for array in arrays)) for i in range(0, len(arrays[0]), size)]
    return tuple(map(np.concatenate, zip(*parts, strict=True)))


def _solve(points, law, log_loss, weights, delta, relative, max_steps, tolerance):
    low, high = points.bounds()
    law = np.clip(law, low, high)
    steps = np.zeros(len(law), int)
    for level in _levels(points, law, log_loss, delta):
        final = level == delta
        budget = max_steps - steps if final else np.minimum(max_steps - steps, 6)
        law, used = _newton(points, law, log_loss, weights, level, relative, budget, tolerance if final else 1e-3)
        steps = steps + used
    objective, gradient, scale, _, _ = evaluate(points, law, log_loss, weights, delta, relative)
    frozen = _frozen(law, gradient, low, high)
    worst = np.where(frozen, 0.0, np.abs(gradient) / scale).max(-1)
    return law, objective, worst, steps


def _levels(points, law, log_loss, delta) -> list[float]:
    """Deltas from the scatter of the start down to the one asked for."""
    if not np.isfinite(delta) or delta == 0:
        return [delta]
    residual = np.abs(terms(points, law)[0] - log_loss)
    top = float(np.median(residual)) * 3
    return [*(delta * 4.0**k for k in range(int(np.ceil(np.log(max(top / delta, 1)) / np.log(4.0))), 0, -1)), delta]


def _newton(points, law, log_loss, weights, delta, relative, budget, tolerance):
    """Levenberg-Marquardt steps with the exact Hessian, projected on the bounds; the laws and the steps taken."""
    low, high = points.bounds()
    law, used = law.copy(), np.zeros(len(law), int)
    damping = np.full(len(law), 1e-3)
    here = evaluate(points, law, log_loss, weights, delta, relative)
    todo = np.arange(len(law))
    while True:
        value, gradient, scale, hessian, curvature = here
        frozen = _frozen(law[todo], gradient, low, high)
        small = np.where(frozen, 0.0, np.abs(gradient) / scale).max(-1) <= tolerance
        keep = ~small & (used[todo] < budget[todo]) & (damping[todo] < 1e12)
        todo, frozen = todo[keep], frozen[keep]
        value, gradient, scale, hessian, curvature = (a[keep] for a in here)
        if not len(todo):
            return law, used
        step = _step(gradient, hessian, curvature, damping[todo], frozen)
        trial = np.clip(law[todo] + step, low, high)
        there = evaluate(points, trial, log_loss[todo], weights[todo], delta, relative)
        downhill = ((trial - law[todo]) * gradient).sum(-1) < 0
        # near the end the decrease is below rounding: a step that keeps the value and shrinks the gradient counts
        level = np.abs(there[0] - value) <= 1e-13 * np.abs(value)
        flatter = np.abs(there[1] / there[2]).max(-1) < np.abs(gradient / scale).max(-1)
        better = ((there[0] < value) & downhill & ~level) | (level & flatter)
        law[todo] = np.where(better[:, None], trial, law[todo])
        used[todo] += 1
        damping[todo] = np.where(better, np.maximum(damping[todo] / 10, 1e-15), damping[todo] * 8)
        pick = lambda new, old: np.where(better.reshape((-1,) + (1,) * (new.ndim - 1)), new, old)
        here = tuple(map(pick, there, (value, gradient, scale, hessian, curvature)))


def _frozen(law, gradient, low, high):
    """Unknowns on a bound that the gradient pushes against."""
    return ((law <= low + GONE) & (gradient > 0)) | ((law >= high) & (gradient < 0))


def _step(gradient, hessian, curvature, damping, frozen):
    diagonal = np.einsum("bii->bi", curvature)
    floor = 1e-14 * diagonal.max(-1, keepdims=True) + 1e-300
    unit = 1 / np.sqrt(diagonal + floor)
    convex = np.linalg.eigvalsh(hessian * unit[:, :, None] * unit[:, None, :])[:, 0] > 0
    matrix = np.where(convex[:, None, None], hessian, curvature)
    matrix = matrix + np.einsum("bi,ij->bij", damping[:, None] * diagonal + floor, np.eye(5))
    either = frozen[:, :, None] | frozen[:, None, :]
    matrix = np.where(either, np.eye(5) * (diagonal.max(-1) + 1e-300)[:, None, None], matrix)
    return -np.linalg.solve(matrix, np.where(frozen, 0.0, gradient)[..., None])[..., 0]


def terms(points: Points, law: np.ndarray) -> tuple[np.ndarray, ...]:
    """For centred laws [batch, 5], ln of the law [batch, n] and the three terms' shares of it."""
    a, b, e, alpha, beta = (law[:, i, None] for i in range(5))
    u, v = a - alpha * points.x, b - beta * points.y
    top = np.maximum(np.maximum(u, v), e)
    first, second, third = np.exp(u - top), np.exp(v - top), np.exp(e - top)
    total = first + second + third
    return top + np.log(total), first / total, second / total, third / total


def tangent(points: Points, law: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ln of the law [n] and its Jacobian [n, 5] at a centred law [5]."""
    value, first, second, third = (part[0] for part in terms(points, law[None]))
    return value, np.stack([first, second, third, -points.x * first, -points.y * second], -1)


def scores(points: Points, law: np.ndarray, delta: float, relative: bool) -> tuple[np.ndarray, np.ndarray]:
    """Each point's part [n, 5] of the gradient of the sum over points, at a centred law [5], and the sum's Hessian."""
    value, jacobian = tangent(points, law)
    residual = value - points.log_loss
    factor = np.exp(np.minimum(residual, 50.0)) if relative else np.ones_like(residual)
    error = factor - 1 if relative else residual
    weights = np.full((1, len(residual)), 1 / len(residual))
    hessian = evaluate(points, law[None], points.log_loss[None], weights, delta, relative)[3][0] * len(residual)
    return (np.clip(error, -delta, delta) * factor)[:, None] * jacobian, hessian


def evaluate(points, law, log_loss, weights, delta, relative):
    """Objective [b], gradient [b, 5], the absolute terms in it, Hessian and reweighted Gauss-Newton matrix [b, 5, 5].

    At centred laws [b, 5]; log_loss and weights are [b, n], the weights of a problem summing to 1.
    """
    value, first, second, third = terms(points, law)
    residual = value - log_loss
    factor = np.exp(np.minimum(residual, 50.0)) if relative else np.ones_like(residual)
    if relative:
        residual = factor - 1
    size = np.abs(residual)
    inside = size <= delta
    psi = residual if np.isinf(delta) else np.clip(residual, -delta, delta)
    rho = np.where(inside, 0.5 * residual**2, psi * residual - 0.5 * psi**2)
    jacobian = np.stack([first, second, third, -points.x * first, -points.y * second], -1)
    slope = weights * psi * factor
    gradient = np.einsum("bn,bni->bi", slope, jacobian)
    # a term that cancels to rounding is zero: residuals of 1e-15 carry no sign
    absolute = np.einsum("bn,bni->bi", np.abs(slope) + 1e-9 * weights * factor, np.abs(jacobian)) + 1e-300
    # d2 ln L = sum_k share_k u_k u_k' - J J', with u_k the gradient of the k-th exponent; relative adds J J' again
    outer = weights * factor * (inside * factor - psi + (psi if relative else 0.0))
    hessian = (jacobian * outer[..., None]).transpose(0, 2, 1) @ jacobian
    moments = lambda share, z: [(slope * share * z**k).sum(-1) for k in range(3)]
    for (i, j), (zero, one, two) in (((0, 3), moments(first, points.x)), ((1, 4), moments(second, points.y))):
        hessian[:, i, i] += zero
        hessian[:, i, j] -= one
        hessian[:, j, i] -= one
        hessian[:, j, j] += two
    hessian[:, 2, 2] += (slope * third).sum(-1)
    pull = weights * factor**2 * np.where(inside, 1.0, delta / np.maximum(size, 1e-300) if np.isfinite(delta) else 1.0)
    curvature = (jacobian * pull[..., None]).transpose(0, 2, 1) @ jacobian
    return (weights * rho).sum(-1), gradient, absolute, hessian, curvature
