"""Starts from an image: image to image, and inpainting of a part of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lgm import gaussian
from lgm.gaussian import Process
from lgm.sampling.grids import last_part
from lgm.sampling.steps import Solver, arrival


def noise(seed: int, rows, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal [N, *shape] for N images; that of image i of `rows` is a function of (seed, i) alone."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(_folded(seed, rows, 0))


def keys(seed: int, rows) -> jax.Array:
    """[N] keys for `sample`'s or `loop`'s stochastic solvers: what image i of `rows` draws on its way is, like its
    `noise` and apart from it, a function of (seed, i) alone."""
    return _folded(seed, rows, 1)


def _folded(seed: int, rows, number: int) -> jax.Array:
    of = lambda row: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), row), number)
    return jax.vmap(of)(jnp.asarray(rows))


def from_image(process: Process, x: jax.Array, noise: jax.Array, times: np.ndarray,
               strength: float) -> tuple[jax.Array, np.ndarray]:
    """(x_t, the times that are left) of SDEdit (Meng et al. 2022, 2108.01073): the image x [B, ...] with noise of the
    time at which the last int(strength x steps) steps begin. Strength 1 makes all of them and keeps what a(t) keeps."""
    left = last_part(times, strength)
    return gaussian.add_noise(process, x, noise, jnp.full(x.shape[:1], left[0])), left


def inpainting(method: Solver, x: jax.Array, mask: jax.Array, noise: jax.Array) -> Solver:
    """`method` held to the image x [B, ...] where `mask` (broadcastable to x) is 0: after each step to s those elements
    are a(s) x + b(s) noise again (Lugmayr et al. 2022, 2201.09865, eq. 8, with one noise throughout, as the ODE's paths
    have). What is drawn where it is 1 fits to them mostly: at high noise the known part says little."""
    return method._replace(step=_held(method),
                           start=lambda x_T, *count: (method.start(x_T, *count), (x, mask, noise)))


@functools.cache  # what is held is in the memory, so that a compiled step is found again for another picture
def _held(method: Solver):
    def step(process, denoise, x_t, memory, t, s, key):
        memory, (x, mask, noise) = memory
        drawn, memory = method.step(process, denoise, x_t, memory, t, s, key)
        at = arrival(process, s)
        return jnp.where(mask > 0, drawn, at.a * x + at.b * noise), (memory, (x, mask, noise))

    return step
