"""The state of a run and the one function that advances it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lgm.config import EMA, Config

Loss = Callable[[Any, Any, dict, jax.Array], tuple[jax.Array, dict]]  # (params, frozen, batch, key)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that training changes. `step` counts updates; `ema` has the shape of `params`."""

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any


def init_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step; the EMA starts at the parameters."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), jax.tree.map(jnp.copy, params))


def ema_decay(ema: EMA, batch_size: int, step: jax.Array) -> jax.Array:
    """Decay of one update: 0.5 ** (batch / half-life), the half-life held to `ramp` of the images seen so far.

    The ramp-up is that of Karras et al. 2024 (2312.02696), so early averages forget the initial weights.
    """
    images = (step + 1).astype(jnp.float32) * batch_size
    half_life = jnp.minimum(float(ema.half_life_images), ema.ramp * images) if ema.ramp else ema.half_life_images
    return jnp.exp2(-batch_size / half_life)


def make_step(config: Config, loss: Loss, optimizer: optax.GradientTransformation):
    """`step(state, frozen, batch) -> (state, metrics)`, pure; all randomness is fold_in(seed, step).

    A step whose loss or gradient is not finite leaves the weights as they were, so that what failed can be looked at.
    """

    def step(state: TrainState, frozen: Any, batch: dict) -> tuple[TrainState, dict]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        (value, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(state.params, frozen, batch, key)
        norm = optax.global_norm(gradients)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = ema_decay(config.ema, config.batch_size, state.step)
        ema = jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), state.ema, params)
        keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
        state = TrainState(
            state.step + 1, keep(params, state.params), keep(opt_state, state.opt_state), keep(ema, state.ema)
        )
        return state, {"loss": value, "grad_norm": norm, **metrics}

    return step
