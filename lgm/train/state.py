"""The state of a run and the one function that advances it."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lgm.config import EMA, Config
from lgm.parallel import platform
from lgm.parallel.options import quick_options
from lgm.train import in_place

Loss = Callable[[Any, Any, dict, jax.Array], tuple[jax.Array, dict]]  # (params, frozen, batch, key)
# (batch, key) or (batch, key, progress) -> what is random in the batch's loss, one row an example
Draw = Callable[..., dict]


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


def run_once(create: Callable, **options: Any) -> Callable:
    """`jax.jit` for what runs once, like drawing parameters: on a CPU its code is not worth the time of optimizing."""
    return jax.jit(create, compiler_options=quick_options(), **options)


def ema_decay(ema: EMA, batch_size: int, step: jax.Array) -> jax.Array:
    """Decay of one update: 0.5 ** (batch / half-life), the half-life held to `ramp` of the images seen so far.

    The ramp-up is that of Karras et al. 2024 (2312.02696), so early averages forget the initial weights.
    """
    images = (step + 1).astype(jnp.float32) * batch_size
    half_life = jnp.minimum(float(ema.half_life_images), ema.ramp * images) if ema.ramp else ema.half_life_images
    return jnp.exp2(-batch_size / half_life)


def make_step(config: Config, loss: Loss, optimizer: optax.GradientTransformation, draw: Draw | None = None):
    """`step(state, frozen, batch) -> (state, metrics)`, pure; all randomness is fold_in(seed, step).

    What is random is drawn for the whole batch, which then may be taken in `config.accumulate` pieces: the update is
    that of the batch all the same. `draw`'s rows join the batch; without it the loss draws from the key itself.
    A step whose loss or gradient is not finite leaves the weights as they were, so that what failed can be looked at;
    `optimizer` is told so and leaves its own state (`in_place`).
    """
    update = optax.with_extra_args_support(optimizer).update

    def step(state: TrainState, frozen: Any, batch: dict) -> tuple[TrainState, dict]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        batch = batch | drawn(draw, batch, key, state.step / config.steps)
        gradient = in_pieces(loss, config.accumulate)
        (value, metrics), gradients = gradient(state.params, beside(state, frozen), batch, key)
        norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        updates, opt_state = update(gradients, state.opt_state, state.params, finite=finite)
        params = in_place.settled(finite, optax.apply_updates(state.params, updates), state.params)
        decay = ema_decay(config.ema, config.batch_size, state.step)
        ema = jax.tree.map(lambda e, p: jnp.where(finite, e + (1 - decay) * (p - e), e), state.ema, params)
        state = TrainState(state.step + 1, params, opt_state, ema)
        return state, {"loss": value, "grad_norm": norm, **metrics}

    return step


def beside(state: TrainState, frozen: dict) -> dict:
    """What a loss reads beside the weights: what is frozen and, for those that learn from it, their average."""
    return frozen | {"averaged": state.ema}


def drawn(draw: Draw | None, batch: dict, key: jax.Array, progress: jax.Array | float) -> dict:
    """What `draw` draws for a batch; it is told the share of training that is done where it takes `progress`."""
    if draw is None:
        return {}
    share = {"progress": progress} if "progress" in inspect.signature(draw).parameters else {}
    return draw(batch, key, **share)


def in_pieces(loss: Loss, pieces: int):
    """`jax.value_and_grad(loss, has_aux=True)` as the mean over `pieces` of the batch, one after the other.

    Piece i has every pieces-th example from i on, so that each device has its share of every piece.
    """
    gradient = jax.value_and_grad(loss, has_aux=True)
    if pieces == 1:
        return gradient

    def mean(params, frozen, batch, key):
        parts = jax.tree.map(lambda a: jnp.moveaxis(a.reshape(-1, pieces, *a.shape[1:]), 1, 0), batch)
        one = lambda part: gradient(params, frozen, part, key)
        shapes = jax.eval_shape(one, jax.tree.map(lambda a: a[0], parts))
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        add = lambda total, part: (jax.tree.map(jnp.add, total, one(part)), None)
        # laid out on a CPU, where XLA runs convolutions in a loop 14 to 28 times slower
        total, _ = jax.lax.scan(add, zeros, parts, unroll=platform() == "cpu")
        return jax.tree.map(lambda a: a / pieces, total)

    return mean


def offloaded(step, opt_state_shardings: Any):
    """`step` with an optimizer state that comes and goes in the host's memory and is on the device in between."""
    on_device = jax.tree.map(lambda s: s.with_memory_kind("device"), opt_state_shardings)

    def between(state: TrainState, frozen: Any, batch: dict) -> tuple[TrainState, dict]:
        state = dataclasses.replace(state, opt_state=jax.device_put(state.opt_state, on_device))
        state, metrics = step(state, frozen, batch)
        return dataclasses.replace(state, opt_state=jax.device_put(state.opt_state, opt_state_shardings)), metrics

    return between
