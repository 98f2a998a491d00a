"""Thousands of least-squares fits of the law at once: two unknowns a fit, the other three being solved for.

For given (alpha, beta) the law is linear in A, B and E, none of them negative: those are a least squares of their own
(Golub and Pereyra, 1973), so that a fit is a search in the plane, and a term that vanishes is an answer, not a walk
towards minus infinity. All that a step needs of the points is one Gram matrix of six columns, so that the cost of a
step is two exponentials a point. Steps are Levenberg and Marquardt's with the Jacobian of the projected residual.
"""

import itertools

import numpy as np

from lgm.scaling.solver import EXPONENTS, FLOOR, in_chunks

CHUNK = 1 << 18  # fits x points handled together
STEPS = 100  # a fit takes four or five; one along a valley more
DOWN = 1e-10  # of the objective: a step that promises less is the last


def fit(x: np.ndarray, y: np.ndarray, scale: np.ndarray, weights: np.ndarray, targets: np.ndarray,
        exponents: np.ndarray, max_steps: int = STEPS) -> tuple[np.ndarray, np.ndarray]:
    """Minimise sum_i w_i ((law_i / scale_i) - target_i)^2 for every row of targets.

    Args:
      x, y: logarithms of N and D [points], centred. scale: [points], about the law itself. weights: [points].
      targets: [fits, points], about 1. exponents: (alpha, beta) to start from [fits, 2].
    Returns centred laws [fits, 5], in which a term that vanished is e^-18 of the lowest scale, and steps [fits].
    """
    some = lambda targets, exponents: _fit(x, y, scale, weights, targets, exponents, max_steps)
    return in_chunks(some, CHUNK // len(x), targets, exponents)


def _fit(x, y, scale, weights, targets, exponents, max_steps):
    root = np.sqrt(weights)
    one, targets = root / scale, targets * root
    low, high = np.log(EXPONENTS)
    z = np.clip(np.log(exponents), low, high)
    best = np.zeros((len(z), 3))
    here = _evaluate(x, y, one, targets, z)
    best[:] = here[0]
    todo, damping, steps = np.arange(len(z)), np.full(len(z), 1e-3), np.zeros(len(z), int)
    for _ in range(max_steps):
        steps[todo] += 1
        coefficients, value, gradient, hessian = here
        at = z[todo]
        diagonal = np.einsum("bii->bi", hessian)
        frozen = ((at <= low) & (gradient > 0)) | ((at >= high) & (gradient < 0)) | (diagonal <= 0)
        step = np.clip(_step(gradient, hessian, diagonal, damping[todo], frozen), -1, 1)
        trial = np.clip(at + step, low, high)
        there = _evaluate(x, y, one, targets[todo], trial)
        better = there[1] <= value
        pick = lambda new, old, better=better: np.where(better.reshape((-1,) + (1,) * (new.ndim - 1)), new, old)
        here = tuple(map(pick, there, here))
        z[todo], best[todo] = pick(trial, at), here[0]
        damping[todo] = np.where(better, np.maximum(damping[todo] / 10, 1e-12), damping[todo] * 10)
        promised = -(gradient * (trial - at)).sum(-1)
        done = (promised <= DOWN * value) & better | (damping[todo] > 1e8) | frozen.all(-1)
        todo, here = todo[~done], tuple(part[~done] for part in here)
        if not len(todo):
            break
    floor = np.exp(-FLOOR) * scale.min()
    return np.concatenate([np.log(np.maximum(best, floor)), np.exp(z)], -1), steps


def _evaluate(x, y, one, targets, z):
    """(A, B, E) [b, 3], objective [b], its gradient [b, 2] and Gauss-Newton matrix [b, 2, 2] in ln alpha, ln beta."""
    alpha, beta = np.exp(z[:, :1]), np.exp(z[:, 1:])
    first, second = np.exp(-alpha * x) * one, np.exp(-beta * y) * one
    columns = np.stack([first, second, np.broadcast_to(one, first.shape), -alpha * x * first, -beta * y * second,
                        targets], 1)
    gram = columns @ columns.transpose(0, 2, 1)
    inner = gram[:, :3, :3]
    coefficients, value = non_negative(inner, gram[:, :3, 5])
    slopes = coefficients[:, :2, None] * gram[:, 3:5]
    gradient = np.einsum("bij,bj->bi", slopes[..., :3], coefficients) - slopes[..., 5]
    kept = coefficients > 0
    shared = slopes[..., :3] * kept[:, None]
    inner = np.where(kept[:, :, None] & kept[:, None, :], inner, 0.0)
    inner = inner + np.eye(3) * np.where(kept, 1e-13 * np.einsum("bii->bi", inner), 1.0)[:, None]
    across = slopes[..., 3:5] * coefficients[:, None, :2]
    return coefficients, value + gram[:, 5, 5], gradient, across - shared @ np.linalg.solve(
        inner, shared.transpose(0, 2, 1))


def non_negative(gram: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The non-negative c [b, 3] that minimise c' gram c - 2 c' right, and the minima [b].

    Three unknowns have seven sets of positive ones: all are solved and the best feasible one taken.
    """
    best, value = np.zeros_like(right), np.zeros(len(right))
    for size in (3, 2, 1):
        for kept in map(list, itertools.combinations(range(3), size)):
            part = gram[:, kept][:, :, kept]
            part = part + np.eye(size) * (1e-14 * np.einsum("bii->b", part)[:, None, None] + 1e-300)
            solved = np.linalg.solve(part, right[:, kept, None])[..., 0]
            reached = -(solved * right[:, kept]).sum(-1)
            better = (solved >= 0).all(-1) & (reached < value)
            value = np.where(better, reached, value)
            best[better] = 0.0
            best[np.ix_(better, kept)] = solved[better]
    return best, value


def _step(gradient, hessian, diagonal, damping, frozen):
    matrix = hessian + np.eye(2) * (damping[:, None] * diagonal + 1e-300)[:, None]
    unit = np.eye(2) * (np.abs(diagonal).max(-1) + 1e-300)[:, None, None]
    matrix = np.where(frozen[:, :, None] | frozen[:, None, :], unit, matrix)
    return -np.linalg.solve(matrix, np.where(frozen, 0.0, gradient)[..., None])[..., 0]
