"""The law L(N, D) = E + A / N^alpha + B / D^beta, what compute costs, and the best N and D for a budget.

A law is an array theta [..., 5] of (ln A, ln B, ln E, alpha, beta), so that a thousand bootstrap draws are one array.
N are parameters, D is data in images or tokens, C training FLOPs. The form and its minimum under a budget are those of
Hoffmann et al. (2203.15556), equations 2 to 4, here for a cost C = k N^p D: convolutions and attention make the FLOPs
an image no exact multiple of the parameters, and p measures it.
"""

import dataclasses

import numpy as np

PARAMETERS = ("A", "B", "E", "alpha", "beta")


def theta(A: float, B: float, E: float, alpha: float, beta: float) -> np.ndarray:
    """A law from its parameters."""
    return np.array([np.log(A), np.log(B), np.log(E), alpha, beta])


def parameters(law: np.ndarray) -> dict[str, np.ndarray]:
    """A, B, E, alpha, beta of law [..., 5]."""
    return dict(zip(PARAMETERS, (*np.exp(np.moveaxis(law[..., :3], -1, 0)), law[..., 3], law[..., 4]), strict=True))


def loss(law: np.ndarray, n, d) -> np.ndarray:
    """L(N, D); law [..., 5] broadcasts against n and d."""
    a, b, e, alpha, beta = np.moveaxis(law, -1, 0)
    return np.exp(e) + np.exp(a - alpha * np.log(n)) + np.exp(b - beta * np.log(d))


@dataclasses.dataclass(frozen=True)
class Cost:
    """Training FLOPs C = k N^p D, and by what factor the measured ones scatter about it."""

    k: float
    p: float
    scatter: float

    def flops(self, n, d):
        return self.k * n**self.p * d


def fit_cost(n: np.ndarray, d: np.ndarray, flops: np.ndarray) -> Cost:
    """k and p by least squares of ln(C / D) on ln N; p = 1 where there is one size only."""
    x, y = np.log(n), np.log(flops / d)
    p = 1.0
    if np.ptp(x) > 1e-6:
        p = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
        p = 1.0 if abs(p - 1) < 1e-9 else p  # exact multiples stay exact
    residual = y - p * x
    return Cost(float(np.exp(residual.mean())), p, float(np.exp(residual.std())))


def optimum(law: np.ndarray, cost: Cost, budget, most: float = np.inf) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, D, L) of lowest loss among those that cost `budget` FLOPs; law [..., 5] broadcasts against budget.

    most: parameters that N may not exceed: the best N where the minimum, of which there is one, lies above.

    With D = (C / k) N^-p the derivative of the loss is zero at N^(alpha + p beta) = alpha A / (p beta B) (C / k)^beta.
    """
    a, b, _, alpha, beta = np.moveaxis(law, -1, 0)
    scale = np.log(budget) - np.log(cost.k)
    log_n = (np.log(alpha) + a - np.log(cost.p * beta) - b + beta * scale) / (alpha + cost.p * beta)
    log_n = np.minimum(log_n, np.log(most))
    n, d = np.exp(log_n), np.exp(scale - cost.p * log_n)
    return n, d, loss(law, n, d)


def exponents(law: np.ndarray, cost: Cost) -> dict[str, np.ndarray]:
    """Of the frontier: N_opt ~ C^N, D_opt ~ C^D, L_opt - E ~ C^-loss."""
    alpha, beta = law[..., 3], law[..., 4]
    total = alpha + cost.p * beta
    return {"N": beta / total, "D": alpha / total, "loss": alpha * beta / total}
