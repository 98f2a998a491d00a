"""Laws beyond E + A/N^alpha + B/D^beta, taken where they predict what was held out better than the plain one does.

    repeated      D beyond the U there are counts as U + U R (1 - exp(-(D/U - 1)/R))
                  (Muennighoff et al., 2305.16264, eq. 5)
    broken        above a size M, A/N^alpha falls by another power: times (1 + (N/M)^4)^(-c/4)
                  (Caballero et al., 2210.14891, eq. 1)
    coupled       E + (A/N^(alpha/beta) + B/D)^beta: size and data bound each other
                  (Kaplan et al., 2001.08361, eq. 1.5)
    one exponent  alpha = beta, as where runs are trained past the best size
                  (Gadre et al., 2403.08540, eq. 4)

A form is one function of unknowns that are all free numbers. It is fitted by least squares of ln L, from several
starts; its draws are fits to tables simulated with the noise that its residuals show, as the plain law's are.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from lgm.scaling import cells, noise
from lgm.scaling.laws import Cost
from lgm.scaling.table import Runs

BETTER = 0.7  # of the plain law's error on what was held out: less than this, and a form of no more unknowns is taken
# one of more unknowns: less than so much of that error, where an F test finds all rows' gain by chance less often
TAKEN = ((1.0, 1e-5), (0.85, 1e-4), (BETTER, 1e-3))
DRAWS = 300
STEPS = 60
SIZES = 160  # at which a budget's best is looked for, before a parabola through the three lowest
SPAN = 1e4  # how far beyond the sizes of the table a budget's best is looked for
SHARP = 4.0  # of a break: within a factor of about 2 of M
FREE = 4  # degrees of freedom that a fit must leave
LIMIT = 40.0  # of a logarithm


@dataclasses.dataclass(frozen=True)
class Form:
    """A law of its own: `log_loss(theta [..., k], ln N, ln D, ln U)`, and `start(plain law, runs)`, rows to begin from.

    words: what it is, in a sentence's end. unknowns: their names. needs: why a table cannot have it; None where it can.
    """

    name: str
    words: str
    unknowns: tuple[str, ...]
    log_loss: Callable[..., np.ndarray]
    start: Callable[[np.ndarray, Runs], np.ndarray]
    needs: Callable[[Runs], str | None] = lambda runs: None


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A form at a family's runs: unknowns [k] and of simulated tables [draws, k]; its root mean square error of ln L on
    what was held out and the plain law's there; errors of ln L on all rows, widened for the unknowns. unique: of the
    data that is asked about, None for new data without end."""

    form: Form
    theta: np.ndarray
    draws: np.ndarray
    held_out: float
    plain: float
    errors: np.ndarray
    sizes: tuple[float, float]
    unique: float | None = None

    def loss(self, n, d) -> tuple[np.ndarray, np.ndarray]:
        """The loss of a run, and of the draws [draws]."""
        x, y, u = (np.log(np.asarray(v, float)) for v in (n, d, self.unique or np.inf))
        each = lambda theta: np.exp(self.form.log_loss(theta, x, y, u))
        return each(self.theta), each(self.draws[(slice(None), *[None] * y.ndim, slice(None))])

    def optimum(self, cost: Cost, budget, most: float = np.inf) -> tuple[np.ndarray, np.ndarray]:
        """(N, D, loss) [3, budgets] of the lowest loss at each budget, and of the draws [3, draws, budgets]."""
        budget = np.atleast_1d(np.asarray(budget, float))
        low, high = np.log(self.sizes[0] / SPAN), np.log(min(self.sizes[1] * SPAN, most))
        x = np.linspace(low, high, SIZES)
        scale = np.log(budget / cost.k)

        def best(theta):
            values = np.stack([self.form.log_loss(theta[..., None, :], x, s - cost.p * x, np.log(self.unique or np.inf))
                               for s in scale], -2)
            place = values.argmin(-1)
            inner = np.clip(place, 1, SIZES - 2)
            left, middle, right = (np.take_along_axis(values, (inner + k)[..., None], -1)[..., 0] for k in (-1, 0, 1))
            bend = left - 2 * middle + right
            shift = np.where((place == inner) & (bend > 0), 0.5 * (left - right) / np.where(bend > 0, bend, 1.0), 0.0)
            log_n = x[place] + shift * (x[1] - x[0])
            log_d = scale - cost.p * log_n
            log_loss = self.form.log_loss(theta[..., None, :], log_n, log_d, np.log(self.unique or np.inf))
            return np.exp(np.stack([log_n, log_d, log_loss]))

        return best(self.theta), best(self.draws)


    def needed(self, cost: Cost, loss: float, losses: np.ndarray, flops: float, never: float
               ) -> tuple[float, np.ndarray]:  # fmt: skip
        """How many times `flops` come to a loss, and of the first draws to `losses`; at most `never`."""
        factors = np.geomspace(1 / never, never, 121)
        value, drawn = (part[2] for part in self.optimum(cost, flops * factors))
        at = lambda curve, loss: float(np.exp(np.interp(-loss, -curve, np.log(factors))))
        return at(value, loss), np.array([at(curve, one) for curve, one in zip(drawn, losses, strict=False)])


def _power(log_factor, exponent, x):
    return np.exp(np.clip(log_factor - np.exp(np.clip(exponent, -LIMIT, 3.0)) * x, -LIMIT, LIMIT))


def _effective(theta, y, u):
    """ln of what repeated data is worth; theta's last unknown is ln R."""
    over = np.exp(np.clip(y - u, -LIMIT, LIMIT)) - 1.0
    scale = np.exp(np.clip(theta[..., 5], -LIMIT, 12.0))
    with np.errstate(over="ignore", invalid="ignore"):
        worth = u + np.log1p(scale * -np.expm1(-np.maximum(over, 0.0) / scale))
    return np.where(over > 0, worth, y)


def _plain(theta, x, y, u):
    a, b, e, alpha, beta = (theta[..., i] for i in range(5))
    return np.log(np.exp(np.clip(e, -LIMIT, LIMIT)) + _power(a, alpha, x) + _power(b, beta, y))


def _repeated(theta, x, y, u):
    return _plain(theta, x, _effective(theta, y, u), u)


def _broken(theta, x, y, u):
    a, b, e, alpha, beta, at, more = (theta[..., i] for i in range(7))
    turn = np.logaddexp(0.0, np.clip(SHARP * (x - at), -700.0, 700.0)) / SHARP
    first = a - np.exp(np.clip(alpha, -LIMIT, 3.0)) * x - np.clip(more, -5.0, 5.0) * turn
    return np.log(np.exp(np.clip(e, -LIMIT, LIMIT)) + np.exp(np.clip(first, -LIMIT, LIMIT)) + _power(b, beta, y))


def _coupled(theta, x, y, u):
    a, b, e, alpha, beta = (theta[..., i] for i in range(5))
    alpha, beta = np.exp(np.clip(alpha, -LIMIT, 3.0)), np.exp(np.clip(beta, -LIMIT, 3.0))
    inner = np.logaddexp((a - alpha * x) / beta, (b - beta * y) / beta)
    return np.logaddexp(np.clip(e, -LIMIT, LIMIT), np.clip(beta * inner, -LIMIT, LIMIT))


def _one(theta, x, y, u):
    a, b, e, alpha = (theta[..., i] for i in range(4))
    return np.log(np.exp(np.clip(e, -LIMIT, LIMIT)) + _power(a, alpha, x) + _power(b, alpha, y))


def _from_plain(law: np.ndarray, runs: Runs) -> np.ndarray:
    """The plain law in free unknowns, and the same with a lower and a higher E."""
    base = np.concatenate([law[:3], np.log(np.maximum(law[3:], 1e-3))])
    lower, steeper = base.copy(), base.copy()
    lower[2] -= 1.0
    steeper[3:5] += 0.4
    return np.stack([base, lower, steeper])


def _with(*columns):
    """Starts of the plain law, each with every row of more unknowns."""
    def start(law, runs):
        rows = np.array([[value(runs) if callable(value) else value for value in row] for row in columns], float)
        base = _from_plain(law, runs)
        return np.concatenate([np.repeat(base, len(rows), 0), np.tile(rows, (len(base), 1))], -1)
    return start


def _size(share: float):
    return lambda runs: float(np.quantile(np.log(np.unique(runs.n)), share))


def _starts_of_one(law, runs):
    base = _from_plain(law, runs)
    return np.concatenate([base[:, :3], base[:, 3:].mean(1, keepdims=True)], -1)


def _repeats(runs: Runs) -> str | None:
    return None if runs.unique is not None and (runs.d > 1.5 * runs.unique).any() else "no data is seen twice"


def _several_sizes(runs: Runs) -> str | None:
    return None if len(np.unique(runs.n)) >= 6 else "a break in size needs six sizes"


FORMS = (
    Form("repeated", "repeated data is worth less than new data", ("A", "B", "E", "alpha", "beta", "R"), _repeated,
         _with((0.0,), (2.0,), (4.0,)), _repeats),
    Form("broken", "the power of N changes at a size", ("A", "B", "E", "alpha", "beta", "M", "c"), _broken,
         _with((_size(0.3), 0.3), (_size(0.3), -0.2), (_size(0.6), 0.3), (_size(0.6), -0.2)), _several_sizes),
    Form("coupled", "size and data bound each other", ("A", "B", "E", "alpha", "beta"), _coupled, _from_plain),
    Form("one exponent", "N and D have one exponent", ("A", "B", "E", "alpha"), _one, _starts_of_one),
)
PLAIN = Form("plain", "E + A/N^alpha + B/D^beta", ("A", "B", "E", "alpha", "beta"), _plain, _from_plain)


def choose(runs: Runs, law: np.ndarray, above: np.ndarray, unique: float | None = None, seed: int = 0
           ) -> tuple[Fitted | None, list[dict]]:  # fmt: skip
    """(the form that predicts the rows `above` best from the rest, None for the plain one; what each form came to).

    law: the plain one of all rows [5]. A form is taken if it errs less on the held-out rows than the plain one does
    and, where it has more unknowns, if these take more of all rows' squared errors away than chance would (TAKEN).
    unique: of the data that predictions are asked about.
    """
    rest, largest = runs.take(~np.isin(runs.run, runs.run[above])), runs.take(above)
    rows, fitted = [], {}
    if not len(largest) or len(rest) < len(PLAIN.unknowns) + FREE:
        return None, rows
    for form in (PLAIN, *FORMS):
        reason = form.needs(runs) or (
            None if len(rest) >= len(form.unknowns) + FREE else "too few rows remain without what is held out")
        row = {"form": form.name, "held_out": None, "scatter": None, "reason": reason}
        if reason is None:
            apart = _fit(form, rest, form.start(law, rest))
            row["held_out"] = float(np.sqrt(np.mean(_residual(form, apart, largest) ** 2)))
            whole = _fit(form, runs, np.concatenate([form.start(law, runs), apart[None]]))
            left = _residual(form, whole, runs)
            row["scatter"] = float(np.sqrt((left**2).sum() / max(len(runs) - len(form.unknowns), 1)))
            fitted[form.name] = whole, row
        rows.append(row)
    plain = fitted["plain"][1]
    able = [(row["held_out"], form, whole) for form in FORMS if form.name in fitted
            for whole, row in [fitted[form.name]] if _earns(form, row, plain, runs)]
    if not able:
        return None, rows
    held, form, theta = min(able, key=lambda one: one[0])
    errors = -_residual(form, theta, runs) * np.sqrt(len(runs) / max(len(runs) - len(theta), 1))
    sizes = float(runs.n.min()), float(runs.n.max())
    return Fitted(form, theta, _draws(form, runs, theta, seed), held, plain["held_out"], errors, sizes, unique), rows


def top(runs: Runs) -> np.ndarray:
    """[rows] bool: the largest budgets, a seventh of all rows and four at least."""
    cost = runs.flops if runs.flops is not None else runs.n * runs.d
    return cost >= np.sort(cost)[-min(max(len(runs) // 7, 4), len(runs))] * (1 - 1e-9)


def _earns(form: Form, row: dict, plain: dict, runs: Runs) -> bool:
    from scipy.special import fdtrc

    better = row["held_out"] / plain["held_out"]
    more = len(form.unknowns) - len(PLAIN.unknowns)
    squares = lambda one, unknowns: one["scatter"] ** 2 * max(len(runs) - unknowns, 1)
    ours, theirs = squares(row, len(form.unknowns)), squares(plain, len(PLAIN.unknowns))
    if more <= 0:  # no more freedom: it has to be as good on all rows, too
        return better < BETTER and ours <= 1.05 * theirs
    free = len(np.unique(runs.run)) - len(form.unknowns)
    if free < 1:
        return False
    chance = fdtrc(more, free, max(theirs - ours, 0.0) / more / (ours / free + 1e-300))
    return any(better < most and chance < likely for most, likely in TAKEN)


def _residual(form: Form, theta: np.ndarray, runs: Runs) -> np.ndarray:
    return form.log_loss(theta, np.log(runs.n), np.log(runs.d), _log_unique(runs)) - np.log(runs.loss)


def _log_unique(runs: Runs) -> np.ndarray:
    return np.log(runs.unique) if runs.unique is not None else np.full(len(runs), np.inf)


def _fit(form: Form, runs: Runs, starts: np.ndarray) -> np.ndarray:
    """The unknowns of least squares of ln L, from the best of all starts."""
    found = cells.gather(runs)
    target = found.mean(np.log(runs.loss))[None].repeat(len(starts), 0)
    u = found.mean(_log_unique(runs)) if runs.unique is not None else np.full(len(found.n), np.inf)
    theta, squares = newton(form, starts, np.log(found.n), np.log(found.d), u, target, found.rows)
    return theta[squares.argmin()]


def _draws(form: Form, runs: Runs, theta: np.ndarray, seed: int) -> np.ndarray:
    """Unknowns [draws, k] of tables simulated about a fit."""
    found = cells.gather(runs)
    u = found.mean(_log_unique(runs)) if runs.unique is not None else np.full(len(found.n), np.inf)
    x, y = np.log(found.n), np.log(found.d)
    value = form.log_loss(theta, x, y, u)
    errors = noise.measure(found, -_residual(form, theta, runs), jacobian(form, theta[None], x, y, u)[0], np.inf)
    target = value + errors.draw(DRAWS, seed)
    return newton(form, np.repeat(theta[None], DRAWS, 0), x, y, u, target, found.rows)[0]


def jacobian(form: Form, theta, x, y, u) -> np.ndarray:
    """Central differences [batch, points, k]."""
    columns = []
    for i in range(theta.shape[-1]):
        step = np.zeros(theta.shape[-1])
        step[i] = 1e-5
        up, down = (form.log_loss((theta + sign * step)[:, None], x, y, u) for sign in (1, -1))
        columns.append((up - down) / 2e-5)
    return np.stack(columns, -1)


def newton(form: Form, theta, x, y, u, target, weights) -> tuple[np.ndarray, np.ndarray]:
    """Levenberg and Marquardt's steps for a batch of fits: unknowns [batch, k] and weighted squares [batch]."""
    theta, damping = theta.copy(), np.full(len(theta), 1e-3)
    far = dict(nan=1e3, posinf=1e3, neginf=-1e3)
    residual = lambda theta: np.nan_to_num(form.log_loss(theta[:, None], x, y, u) - target, **far)
    left = residual(theta)
    squares = (weights * left**2).sum(-1)
    for _ in range(STEPS):
        columns = jacobian(form, theta, x, y, u)
        normal = np.einsum("bni,n,bnj->bij", columns, weights, columns)
        slope = np.einsum("bni,n,bn->bi", columns, weights, left)
        size = np.einsum("bii->bi", normal)
        floor = 1e-9 * size.max(-1, keepdims=True) + 1e-300
        damped = normal + (damping[:, None] * np.maximum(size, floor))[..., None] * np.eye(size.shape[-1]) + (
            1e-12 * floor[..., None] * np.eye(size.shape[-1]))
        step = np.clip(-np.linalg.solve(damped, slope[..., None])[..., 0], -1.0, 1.0)
        trial = theta + step
        there = residual(trial)
        value = (weights * there**2).sum(-1)
        better = value < squares
        gain = np.where(better, squares - value, 0.0)
        theta, left = np.where(better[:, None], trial, theta), np.where(better[:, None], there, left)
        squares = np.where(better, value, squares)
        damping = np.clip(np.where(better, damping / 5, damping * 6), 1e-12, 1e12)
        if (gain <= 1e-12 * squares).all() and (damping > 1e3)[~better].all():
            break
    return theta, squares
