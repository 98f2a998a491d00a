"""A small network of the plane and its training in one compiled loop: few-step losses shown in seconds."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

FREQUENCIES = 4  # of each time's sines and cosines


def init(key: jax.Array, times: int = 1, width: int = 128, depth: int = 3, dimensions: int = 2) -> list[dict]:
    """Parameters of a multilayer perceptron of x [B, dimensions] and so many times [B]; its output starts at 0."""
    widths = [dimensions + times * (1 + 2 * FREQUENCIES), *[width] * depth, dimensions]
    keys = jax.random.split(key, len(widths) - 1)
    last = len(keys) - 1
    return [
        {"kernel": jax.random.normal(k, (m, n)) * (0.0 if i == last else math.sqrt(2.0 / m)), "bias": jnp.zeros(n)}
        for i, (k, m, n) in enumerate(zip(keys, widths[:-1], widths[1:], strict=True))
    ]


def apply(params: list[dict], x: jax.Array, *times_B: jax.Array) -> jax.Array:
    """[B, dimensions]; smooth in x and the times, whose derivatives some losses take."""
    parts = [x]
    for t in times_B:
        angles = math.pi * t[:, None] * 2.0 ** jnp.arange(FREQUENCIES - 1, -1, -1)
        parts += [t[:, None], jnp.sin(angles), jnp.cos(angles)]
    h = jnp.concatenate(parts, -1)
    for layer in params[:-1]:
        h = jax.nn.gelu(h @ layer["kernel"] + layer["bias"])
    return h @ params[-1]["kernel"] + params[-1]["bias"]


def fit(loss: Callable, params, steps: int, key: jax.Array, lr: float = 2e-3, average: float = 0.995):
    """Averaged parameters after so many Adam steps of `loss(params, averaged, key) -> scalar`, with a cosine decay."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(lr, steps)))

    def step(carry, key):
        params, averaged, state = carry
        value, gradient = jax.value_and_grad(loss)(params, averaged, key)
        updates, state = optimizer.update(gradient, state)
        params = optax.apply_updates(params, updates)
        averaged = jax.tree.map(lambda e, p: average * e + (1.0 - average) * p, averaged, params)
        return (params, averaged, state), value

    run = jax.jit(lambda carry, keys: jax.lax.scan(step, carry, keys))
    (_, averaged, _), _ = run((params, params, optimizer.init(params)), jax.random.split(key, steps))
    return averaged
