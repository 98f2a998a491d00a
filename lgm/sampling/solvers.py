"""Solvers from noise to data. Each is a pure step from time t to s < t; `sample` scans it, `loop` calls it in turn.

All share one signature, so a solver may be exchanged by name. `predict(x_t, t_B)` gives a network's raw output of the
given target kind. The step sees the data and noise that it implies, (x_hat, eps_hat) = endpoints(predict(x_t, t)).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lgm import process as gaussian
from lgm.parsing import near_miss
from lgm.process import Endpoints, Process

Denoise = Callable[[jax.Array, jax.Array], Endpoints]  # (x_t, t []) -> (x_hat, eps_hat)


class Solver(NamedTuple):
    """step(process, denoise, x, memory, t, s, key) -> (x at s, memory); `memory` is what start(x_T) gives at first."""

    step: Callable
    start: Callable[[jax.Array], Any] = lambda x: ()


def _euler(process: Process, denoise: Denoise, x, memory, t, s, key):
    """First order on d(x / a) / d(b / a) = eps, exact for a network that predicts straight lines.

    On a rectified flow this is x + (s - t) velocity; on DDPM it is DDIM with eta = 0 (2010.02502).
    """
    x_hat, eps_hat = denoise(x, t)
    return process.a(s) * x_hat + jnp.where(s > 0, process.b(s), 0.0) * eps_hat, memory


SOLVERS: dict[str, Solver] = {"euler": Solver(_euler), "ddim": Solver(_euler)}


def solver(name: str) -> Solver:
    """The solver of that name; ValueError, one line, for one there is not."""
    if name not in SOLVERS:
        raise ValueError(f"unknown solver {name!r}{near_miss(name, SOLVERS)}")
    return SOLVERS[name]


def sample(method: Solver, process: Process, target: str, predict: Callable, x_T: jax.Array, times,
           key: jax.Array | None = None) -> jax.Array:
    """x_0 from x_T [B, ...], one `lax.scan` over the falling `times` [steps + 1]; deterministic in its key."""
    denoise = _denoiser(process, target, predict)
    key = jax.random.key(0) if key is None else key
    times = jnp.asarray(times, jnp.float32)

    def body(carry, inputs):
        number, t, s = inputs
        return method.step(process, denoise, *carry, t, s, jax.random.fold_in(key, number)), None

    inputs = (jnp.arange(len(times) - 1), times[:-1], times[1:])
    return jax.lax.scan(body, (x_T, method.start(x_T)), inputs)[0][0]


def loop(method: Solver, process: Process, target: str, predict: Callable, x_T: jax.Array, times, arguments,
         key: jax.Array | None = None) -> jax.Array:
    """What `sample` computes with `predict(x_t, t_B, arguments)`, as one compiled step called in turn.

    For convolutions on a CPU, which XLA runs many times slower inside a scan. `predict` must be hashable and the same
    object from call to call, or each call compiles anew.
    """
    key = jax.random.key(0) if key is None else key
    carry = (x_T, method.start(x_T))
    for number, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
        carry = _step(method, process, target, predict, carry, arguments, jnp.float32(t), jnp.float32(s),
                      jax.random.fold_in(key, number))
    return carry[0]


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _step(method, process, target, predict, carry, arguments, t, s, key):
    denoise = _denoiser(process, target, lambda x, t_B: predict(x, t_B, arguments))
    return method.step(process, denoise, *carry, t, s, key)


def _denoiser(process: Process, target: str, predict: Callable) -> Denoise:
    def denoise(x, t):
        t_B = jnp.full(x.shape[:1], t)
        return gaussian.endpoints(process, target, predict(x, t_B), x, t_B)

    return denoise
