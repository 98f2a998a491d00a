"""Guidance: one predict function made of a conditional one, by a rule that is called by name.

`uncond` is the condition without a caption or, for a negative prompt, that of the words to keep away from.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lgm import registry
from lgm.sampling.steps import Solver

Predict = Callable[[jax.Array, jax.Array, object], jax.Array]
Rule = Callable[[jax.Array, jax.Array], jax.Array]  # (conditional c, unconditional u) -> guided


def plain(scale: float, channels: int = 0) -> Rule:
    """u + scale (c - u), in the first `channels` alone if any are named: DiT's and SiT's released code guides 3 of the
    4, the last is the conditional prediction's."""
    if channels < 0:
        raise ValueError(f"channels={channels} of the guided prediction must be at least 0")
    guided = lambda c, u: u + scale * (c - u)
    if not channels:
        return guided
    return lambda c, u: jnp.concatenate([guided(c, u)[..., :channels], c[..., channels:]], -1)


def rescaled(scale: float, share: float = 0.7) -> Rule:
    """`plain`, its deviation over an example brought back to c's for a `share` of it: no washed-out or burnt images
    at large scales (Lin et al. 2023, 2305.08891, eq. 15-16)."""
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share={share} of the rescaled prediction must lie between 0 and 1")

    def rule(c, u):
        guided = u + scale * (c - u)
        deviation = lambda x: jnp.std(x.astype(float), axis=tuple(range(1, x.ndim)), keepdims=True)
        return guided * (share * deviation(c) / deviation(guided) + (1.0 - share))

    return rule


def token_rescaled(scale: float, patch: int = 2) -> Rule:
    """`plain`, the norm of each token, patch x patch latent pixels with all their channels, brought back to c's, as
    Qwen-Image's released sampler does."""
    if patch < 1:
        raise ValueError(f"patch={patch} of the token_rescaled prediction must be at least 1")

    def rule(c, u):
        guided, (b, h, w, k) = u + scale * (c - u), c.shape
        if h % patch or w % patch:
            raise ValueError(f"latents of {h} x {w} do not divide into tokens of {patch}, which token_rescaled has")
        tokens = lambda x: x.astype(float).reshape(b, h // patch, patch, w // patch, patch, k)
        squares = lambda x: jnp.square(tokens(x)).sum((2, 4, 5), keepdims=True)
        ratio = jnp.sqrt(squares(c) / jnp.maximum(squares(guided), jnp.finfo(jnp.float32).tiny))
        return (tokens(guided) * ratio).reshape(c.shape)

    return rule


def classifier_free(predict: Predict, cond, uncond, scale: float, rule: Rule | None = None,
                    interval: tuple[float, float] = (0.0, 1.0)) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """`predict(x, t)` guided by `rule`, `plain(scale)` by default (Ho & Salimans 2022, 2207.12598); c and u are
    evaluated as one batch.

    What a network gives beyond x's own channels, like learned variances, is the conditional's, as in the released DiT.
    Scale 1 is the conditional prediction alone, at half the cost. Outside `interval` = (t from, t to) it is that too:
    guidance hurts at high noise and is idle at low (Kynkaanniemi et al. 2024, 2404.07724). All of t must be equal then.
    """
    _rising(interval)
    if scale == 1.0 and rule is None:
        return lambda x, t: predict(x, t, cond)
    rule, doubled = plain(scale) if rule is None else rule, paired(predict, cond, uncond)

    def guided(x, t):
        c, u = jnp.split(doubled(jnp.concatenate([x, x]), jnp.concatenate([t, t])), 2)
        own = x.shape[-1]
        if c.shape[-1] == own:
            return rule(c, u)
        return jnp.concatenate([rule(c[..., :own], u[..., :own]), c[..., own:]], -1)

    if tuple(interval) == (0.0, 1.0):
        return guided

    def limited(x, t):
        inside = _inside(t[0], interval)
        conditional = lambda: predict(x, t, cond)
        dtype = jax.eval_shape(guided, x, t).dtype
        return jax.lax.cond(inside, lambda: guided(x, t), lambda: conditional().astype(dtype))

    return limited


def _rising(interval: tuple[float, float]) -> None:
    if len(interval) != 2 or not 0.0 <= interval[0] < interval[1] <= 1.0:
        raise ValueError(f"guidance interval={tuple(interval)} must rise within [0, 1]")


def _inside(t: jax.Array, interval: tuple[float, float]) -> jax.Array:
    return (t >= interval[0]) & (t <= interval[1])


def paired(predict: Predict, cond, uncond) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """`predict(x, t)` of a doubled batch: the first half is conditional, the second unconditional."""
    pair = jax.tree.map(lambda c, u: jnp.concatenate([c, u]), cond, uncond)
    return lambda x, t: predict(x, t, pair)


def embedded(predict: Predict, cond, scale: float) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """`predict(x, t)` of a network that was distilled to take the scale as an input, at the cost of one pass."""
    return lambda x, t: predict(x, t, dataclasses.replace(cond, guidance=jnp.full(len(x), scale, jnp.float32)))


class Projected(NamedTuple):
    """Adaptive projected guidance (Sadat et al. 2025, 2410.02416) of data predictions.

    The update c - u gets `momentum` of the earlier ones (negative: against them), is cut to the norm `limit` (0: not),
    and its part along c, which saturates colours, counts `parallel` times.
    """

    scale: float
    parallel: float = 0.0
    limit: float = 0.0
    momentum: float = 0.0

    def __call__(self, c: jax.Array, u: jax.Array, running: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(guided, running sum of updates); all [B, ...]."""
        axes = tuple(range(1, c.ndim))
        total = lambda x: jnp.sum(x, axis=axes, keepdims=True)
        running = (c - u) + self.momentum * running
        update = running
        if self.limit > 0.0:
            norm = jnp.sqrt(total(jnp.square(update)))
            update = update * jnp.minimum(1.0, self.limit / jnp.maximum(norm, 1e-12))
        along = c * (total(update * c) / jnp.maximum(total(jnp.square(c)), 1e-12))
        return c + (self.scale - 1.0) * (update - along + self.parallel * along), running


def projected(method: Solver, rule: Projected, interval: tuple[float, float] = (0.0, 1.0)) -> Solver:
    """`method` under adaptive projected guidance, for `sample` with the predict of `paired`.

    The running sum of updates lives in the solver's memory. It moves once a step, at the step's first evaluation; a
    step's further evaluations start from the same sum. Outside `interval` the conditional prediction stands alone.
    """
    _rising(interval)

    def start(x, *count):
        return method.start(x, *count), jnp.zeros(x.shape, float)

    def step(process, denoise, x, memory, t, s, key):
        inner, running = memory
        moved = []

        def guided(x, t):
            ends = denoise(jnp.concatenate([x, x]), t)
            c, u = jnp.split(ends.x, 2)
            x_hat, updated = rule(c, u, running)
            if tuple(interval) != (0.0, 1.0):
                inside = _inside(t, interval)
                x_hat, updated = jnp.where(inside, x_hat, c), jnp.where(inside, updated, running)
            moved.append(updated)
            told = jax.tree.map(lambda leaf: leaf[: len(x)], ends)  # a variance is the conditional's
            return told._replace(x=x_hat, eps=(x - process.a(t) * x_hat) / process.b(t))

        x, inner = method.step(process, guided, x, inner, t, s, key)
        return x, (inner, moved[0])

    return method._replace(step=step, start=start)


def _projected_of(scale: float, parallel: float = 0.0, limit: float = 0.0, momentum: float = 0.0) -> Projected:
    if limit < 0.0 or not -1.0 < momentum < 1.0:
        raise ValueError(f"guidance rule 'projected': limit={limit} must be at least 0 and momentum={momentum} lie "
                         "between -1 and 1")
    return Projected(scale, parallel, limit, momentum)


class Skipped(NamedTuple):
    """Skip-layer guidance (SD3.5-medium's released sampler): away from what the network says without the blocks
    `layers`, by `scale` times the difference from the conditional prediction, for t from `low` to `high`."""

    layers: tuple[int, ...]
    scale: float
    low: float
    high: float


def skipping(predict: Predict, weak: Predict, cond, uncond, rule: Rule,
             skipped: Skipped) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """`predict(x, t)` guided by `rule` and away from `weak`, the network without some layers; all of t are equal."""
    doubled = paired(predict, cond, uncond)

    def guided(x, t):
        c, u = jnp.split(doubled(jnp.concatenate([x, x]), jnp.concatenate([t, t])), 2)
        inside = _inside(t[0], (skipped.low, skipped.high))
        away = lambda: skipped.scale * (c - weak(x, t, cond).astype(c.dtype))
        return rule(c, u) + jax.lax.cond(inside, away, lambda: jnp.zeros_like(c))

    return guided


RULES: dict[str, Callable[..., Rule | Projected]] = {
    "plain": plain, "rescaled": rescaled, "token_rescaled": token_rescaled, "projected": _projected_of}  # fmt: skip


def rule(name: str, scale: float, **options) -> Rule | Projected:
    """The guidance rule of that name at a scale, one object for one choice; ValueError, one line, for a name or option
    there is not."""
    try:
        return _rule(name, scale, **options)
    except TypeError:  # an option that cannot be hashed is none that there is
        return registry.make("guidance rule", RULES, name, {"scale": scale, **options})


@functools.cache
def _rule(name: str, scale: float, **options) -> Rule | Projected:
    return registry.make("guidance rule", RULES, name, {"scale": scale, **options})


Wrap = Callable[[Predict, object, object], Callable[[jax.Array, jax.Array], jax.Array]]


@functools.cache  # so that a compiled step is found again
def guided(method: Solver, how: Rule | Projected | None,
           interval: tuple[float, float] = (0.0, 1.0)) -> tuple[Solver, Wrap]:
    """(solver, wrap) that draw under any rule: `wrap(predict, cond, uncond)` is the predict(x, t) that the solver takes
    in `sample`. Without a rule it is the conditional prediction, and `uncond` may be None."""
    if how is None:
        return method, lambda predict, cond, uncond: lambda x, t: predict(x, t, cond)
    if isinstance(how, Projected):
        return projected(method, how, interval), paired
    _rising(interval)
    return method, lambda predict, cond, uncond: classifier_free(predict, cond, uncond, 0.0, how, interval)
