"""Adam and momentum whose state changes where it lies, in one pass over every array, and only in a step that is finite.

An update that reads the old moments beside the new ones keeps both alive: XLA:CPU then copies every array of the state
that it was given before it writes there, and computes the moments again for the weights and for their average. Here
each new array is settled before anything reads it, so that its old one has one reader.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from lgm.parallel import platform


def settled(finite: jax.Array | bool, new: Any, old: Any) -> Any:
    """The tree `new` where a step is `finite`, else `old`; on a CPU computed once, before what reads it."""

    def settle(new, old):
        kept = jnp.where(finite, new, old)
        return jax.lax.optimization_barrier(kept) if platform() == "cpu" else kept

    return jax.tree.map(settle, new, old)


def clip(norm: float) -> optax.GradientTransformation:
    """Updates whose norm over all parameters is at most `norm`."""

    def update(updates, state, params=None):
        del params
        factor = jnp.minimum(1.0, norm / optax.tree.norm(updates))
        return jax.tree.map(lambda g: factor * g, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def adamw(rate, b1: float, b2: float, eps: float, weight_decay: float, decays: Any,
          nesterov: bool = False) -> optax.GradientTransformationExtraArgs:
    """`optax.adamw` of the same state (Loshchilov & Hutter 2019, 1711.05101); `update` is told whether the step is
    `finite`."""
    return optax.chain(_adam(b1, b2, eps, nesterov), optax.add_decayed_weights(weight_decay, decays),
                       _scaled(rate))


def trace(decay: float) -> optax.GradientTransformationExtraArgs:
    """Momentum with Nesterov's look-ahead, as `optax.trace` has it."""

    def update(updates, state, params=None, *, finite=True, **_):
        del params
        kept = settled(finite, jax.tree.map(lambda g, m: g + decay * m, updates, state.trace), state.trace)
        return jax.tree.map(lambda g, m: g + decay * m, updates, kept), optax.TraceState(kept)

    return optax.GradientTransformationExtraArgs(optax.trace(decay).init, update)


def _adam(b1: float, b2: float, eps: float, nesterov: bool) -> optax.GradientTransformationExtraArgs:
    """`optax.scale_by_adam`; with `nesterov` as Dozat 2016 has it, without his factor of the second moment."""

    def update(updates, state, params=None, *, finite=True, **_):
        del params
        count = state.count + 1
        mean = jax.tree.map(lambda g, m: b1 * m + (1 - b1) * g, updates, state.mu)
        square = jax.tree.map(lambda g, v: b2 * v + (1 - b2) * jnp.square(g), updates, state.nu)
        mean, square = settled(finite, mean, state.mu), settled(finite, square, state.nu)
        # factors of the whole array: a division an element is as dear as all else
        unbiased, now = 1.0 / (1.0 - b2**count), 1.0 / (1.0 - b1**count)
        ahead = 1.0 / (1.0 - b1 ** (count + 1))
        first = (lambda g, m: b1 * ahead * m + (1 - b1) * now * g) if nesterov else (lambda g, m: now * m)
        change = lambda g, m, v: first(g, m) / (jnp.sqrt(unbiased * v) + eps)
        updates = jax.tree.map(change, updates, mean, square)
        return updates, optax.ScaleByAdamState(jnp.where(finite, count, state.count), mean, square)

    return optax.GradientTransformationExtraArgs(optax.scale_by_adam(b1, b2, eps).init, update)


def _scaled(rate) -> optax.GradientTransformationExtraArgs:
    """`optax.scale_by_learning_rate`, which counts finite steps."""
    plain = optax.scale_by_learning_rate(rate)

    def update(updates, state, params=None, *, finite=True, **_):
        updates, counted = plain.update(updates, state, params)
        return updates, jax.tree.map(lambda new, old: jnp.where(finite, new, old), counted, state)

    return optax.GradientTransformationExtraArgs(plain.init, update)
