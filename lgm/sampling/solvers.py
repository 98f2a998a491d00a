"""Solvers from noise to data. Each is a pure step from time t to s < t; `sample` scans it, `loop` calls it in turn.

All share one signature, so a solver may be exchanged by name. `predict(x_t, t_B)` gives a network's raw output of the
given target kind. The step sees the data and noise that it implies, (x_hat, eps_hat) = endpoints(predict(x_t, t)).
`key` is what a stochastic solver draws from: one, or one an example [B], whose sample then does not depend on the rest
of its batch.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lgm import gaussian, registry
from lgm.gaussian import Process
from lgm.sampling import dpm_adaptive, halfway, multistep, posterior, singlestep, sit, steps, unipc
from lgm.sampling.steps import Denoise, Solver

_WATCHER: ContextVar[Callable[[float], None] | None] = ContextVar("watcher", default=None)  # of `watched`


def _churning(method: Callable[[], Solver]) -> Callable[..., Solver]:
    return lambda s_churn=0.0, s_tmin=0.0, s_tmax=math.inf, s_noise=1.0: (
        halfway.churned(method(), s_churn, s_tmin, s_tmax, s_noise))  # fmt: skip


def _dpmpp_2m(solver_type: str = "midpoint", eta: float = 0.0, s_noise: float = 1.0) -> Solver:
    if solver_type not in ("midpoint", "heun"):
        raise ValueError(f"solver option solver_type={solver_type!r} must be 'midpoint' or 'heun'")
    return multistep.dpmpp(2, eta=eta, s_noise=s_noise, exact=solver_type == "heun")


SOLVERS: dict[str, Callable[..., Solver]] = {
    "euler": _churning(singlestep.euler),
    "ddim": singlestep.ddim,
    "ddpm": posterior.ddpm,
    "euler_ancestral": halfway.euler_ancestral,
    "heun": _churning(singlestep.heun),
    "dpm_2": _churning(halfway.dpm_2),
    "dpm_2_ancestral": lambda eta=1.0, s_noise=1.0: halfway.dpm_2(eta, s_noise),
    "dpm_adaptive": dpm_adaptive.dpm_adaptive,
    "consistency": singlestep.consistency,
    "lcm": singlestep.lcm,
    "tcd": singlestep.tcd,
    "jump": lambda: singlestep.euler()._replace(jumps=True),
    "dpmpp_2s": lambda: singlestep.dpmpp_2s(),
    "dpmpp_2s_sde": lambda: singlestep.dpmpp_2s(noise=True),
    "dpmpp_2s_ancestral": halfway.dpmpp_2s_ancestral,
    "dpmpp_2m": lambda solver_type="midpoint": _dpmpp_2m(solver_type),
    "dpmpp_3m": lambda curvature=1.0: multistep.dpmpp(3, curvature=curvature),
    "dpmpp_sde": halfway.dpmpp_sde,
    "dpmpp_2m_sde": lambda solver_type="midpoint", eta=1.0, s_noise=1.0: _dpmpp_2m(solver_type, eta, s_noise),
    # k-diffusion's: the second step's slope in full, and half of the polynomial's curvature
    "dpmpp_3m_sde": lambda eta=1.0, s_noise=1.0, curvature=0.5: (
        multistep.dpmpp(3, eta=eta, s_noise=s_noise, curvature=curvature, exact=True)),
    "unipc": lambda order=2, limits=(), variant="bh2": unipc.unipc(order, limits, variant),
    "sit_sde": sit.sit_sde,
    "deis": lambda order=3: multistep.deis(order),
    "lms": multistep.adams_bashforth,
    "plms": lambda: multistep.plms(),
}


def solver(name: str, **options) -> Solver:
    """The solver of that name, one object for one choice; ValueError, one line, for a name or option there is not."""
    try:
        return _solver(name, SOLVERS.get(name), **options)
    except TypeError:  # an option that cannot be hashed is none that there is
        return registry.make("solver", SOLVERS, name, options)


@functools.cache  # so that a compiled step is found again
def _solver(name: str, method: Callable | None, /, **options) -> Solver:
    return registry.make("solver", SOLVERS, name, options)


def sample(method: Solver, process: Process, target: str, predict: Callable, x_T: jax.Array, times,
           key: jax.Array | None = None) -> jax.Array:
    """x_0 from x_T [B, ...], one `lax.scan` over the falling `times` [steps + 1]; deterministic in its key."""
    return trace(method, process, target, predict, x_T, times, key)[0]


def trace(method: Solver, process: Process, target: str, predict: Callable, x_T: jax.Array, times,
          key: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """`sample`'s x_0, and the states [steps, B, ...] after each step."""
    key_of = _keys(key)
    _check(process, target, times)
    times, x_T = jnp.asarray(times, float), jnp.asarray(x_T, float)

    def body(carry, inputs):
        number, t, s = inputs
        inputs = functools.partial(_predicted, predict, s if method.jumps else None)
        carry = method.step(process, _denoiser(process, target, inputs, method.variance), *carry, t, s, key_of(number))
        return carry, carry[0]

    inputs = (jnp.arange(len(times) - 1), times[:-1], times[1:])
    (x, _), states = jax.lax.scan(body, (x_T, steps.begin(method, x_T, len(times) - 1)), inputs)
    return x, states


class Timesteps(NamedTuple):
    """The times of a solver's steps: `times` [steps + 1], falling.

    Schedulers that keep noise levels and the network's timesteps in tables of their own may have `inputs` [steps], what
    the network is told at `times[:-1]`, and `ends` [steps], where steps end if not where the next one begins.
    """

    times: np.ndarray
    inputs: np.ndarray | None = None
    ends: np.ndarray | None = None


def loop(method: Solver, process: Process, target: str, predict: Callable, x_T: jax.Array, grid: Timesteps | np.ndarray,
         arguments, key: jax.Array | None = None, last: int | None = None, scanned: bool = False) -> jax.Array:
    """What `sample` computes with `predict(x_t, t_B, arguments)`, as one compiled step called in turn, or `scanned`.

    For convolutions on a CPU, which XLA runs many times slower inside a scan. `predict` must be hashable and the same
    object from call to call, or each call compiles anew. `grid` is Timesteps or their times; of it the `last` steps are
    made, by default all.
    """
    if not isinstance(grid, Timesteps):
        _check(process, target, grid)
        grid = Timesteps(grid)
    key_of = _keys(key)
    x_T = jnp.asarray(x_T, float)
    inputs = None if grid.inputs is None else (jnp.asarray(grid.times[:-1], float), grid.inputs)
    pairs = list(zip(grid.times[:-1], grid.times[1:] if grid.ends is None else grid.ends, strict=True))
    pairs = pairs[-last:] if last else pairs
    _not_singular(process, target, pairs[0][0])
    carry = (x_T, steps.begin(method, x_T, len(pairs)))
    method = method._replace(start=None)  # which may hold arrays of this call; a step depends on none of it
    if scanned:
        def body(carry, now):
            number, t, s = now
            return _step(method, process, target, predict, carry, arguments, inputs, t, s, key_of(number)), None

        both = (jnp.asarray(part, float) for part in zip(*pairs, strict=True))
        return jax.lax.scan(body, carry, (jnp.arange(len(pairs), dtype=jnp.int32), *both))[0][0]
    tell = _WATCHER.get()
    for number, (t, s) in enumerate(pairs):
        ends = jnp.asarray(t, float), jnp.asarray(s, float)
        carry = _step(method, process, target, predict, carry, arguments, inputs, *ends, key_of(jnp.int32(number)))
        if tell is not None:
            jax.block_until_ready(carry[0])
            tell(1 / len(pairs))
    return carry[0]


@contextlib.contextmanager
def watched(tell: Callable[[float], None]) -> Iterator[None]:
    """A context in which every step of a `loop` that is not scanned is waited for, and its share of the steps told."""
    token = _WATCHER.set(tell)
    try:
        yield
    finally:
        _WATCHER.reset(token)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _step(method, process, target, predict, carry, arguments, inputs, t, s, key):
    say = lambda t_B: t_B if inputs is None else _input_at(t_B, *inputs)
    given = lambda x, t_B, *s_B: predict(x, say(t_B), arguments, *s_B)
    ask = functools.partial(_predicted, given, s if method.jumps else None)
    denoise = _denoiser(process, target, ask, method.variance)
    return method.step(process, denoise, *carry, t, s, key)


def _input_at(t_B: jax.Array, times: jax.Array, inputs: jax.Array) -> jax.Array:
    """What is told at the steps' times; between them, where a step may ask again, the time itself."""
    equal_BS = t_B[:, None] == times
    return jnp.where(equal_BS.any(1), jnp.asarray(inputs, t_B.dtype)[equal_BS.argmax(1)], t_B)


def _predicted(predict: Callable, s: jax.Array | None, x: jax.Array, t_B: jax.Array) -> jax.Array:
    """The prediction of a network that is also told where the step ends, unless `s` is None."""
    return predict(x, t_B) if s is None else predict(x, t_B, jnp.full_like(t_B, s))


def _denoiser(process: Process, target: str, predict: Callable, variance: bool = False) -> Denoise:
    def denoise(x, t):
        t_B = jnp.full(x.shape[:1], t)
        given = predict(x, t_B)
        wanted = x.shape[-1] * (2 if variance else 1)
        if given.shape[-1] != wanted:
            raise ValueError(f"the network gives {given.shape[-1]} channels for x's {x.shape[-1]}; this solver takes "
                             f"{wanted}, {'a prediction and its variances' if variance else 'a prediction alone'}")
        if not variance:
            return gaussian.endpoints(process, target, given, x, t_B)
        prediction, v = jnp.split(given, 2, -1)
        return steps.Spread(*gaussian.endpoints(process, target, prediction, x, t_B), v.astype(float))

    return denoise


def _keys(key: jax.Array | None) -> Callable[[jax.Array], jax.Array]:
    """The key, or the keys [B], of a step's number."""
    key = jax.random.key(0) if key is None else jnp.asarray(key)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)  # of jax.random.PRNGKey
    return lambda number: jax.vmap(jax.random.fold_in, (0, None))(key, number) if key.ndim else (
        jax.random.fold_in(key, number))  # fmt: skip


def _check(process: Process, target: str, times) -> None:
    """Refuse times that no solver can timesteps, as far as they are known before the program runs."""
    gaussian.coefficients(process, target, jnp.asarray(0.5, float))
    first = steps.check_times(times)
    if first is not None:
        _not_singular(process, target, first)


def _not_singular(process: Process, target: str, first: float) -> None:
    gaussian.check_tells_data(process, target, first, "start below, or train another target")
