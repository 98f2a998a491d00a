"""AdamW or Muon with warm-up and decay, counted in images."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from lgm.config import Config
from lgm.config.combinations import mup_base
from lgm.models import build
from lgm.parsing import ConfigError
from lgm.train import in_place
from lgm.train.muon import muon

DECAYING = ("kernel", "down", "up")  # names of parameters


def learning_rate(config: Config) -> optax.Schedule:
    """Step -> learning rate: a linear warm-up, then the schedule's decay to `final` times the peak."""
    o = config.optimizer
    steps = config.steps
    warmup = min(round(o.warmup_images / config.batch_size), steps)
    rest = max(steps - warmup, 1)
    if o.schedule == "cosine":
        body = optax.cosine_decay_schedule(o.lr, rest, alpha=o.final)
    elif o.schedule == "linear":
        body = optax.linear_schedule(o.lr, o.lr * o.final, rest)
    elif o.schedule == "wsd":
        return lambda step: warmup_stable_decay(step, o.lr, warmup, decay_start(config), steps, o.final)
    else:
        body = optax.constant_schedule(o.lr)
    if not warmup:
        return body
    return optax.join_schedules([optax.linear_schedule(o.lr / warmup, o.lr, warmup - 1 or 1), body], [warmup])


def decay_start(config: Config) -> int:
    """The step at which "wsd" starts to lower the rate; what comes before it is the same for every total."""
    o, size = config.optimizer, config.batch_size
    rest = max(config.steps - min(round(o.warmup_images / size), config.steps), 1)
    return config.steps - max(min(round(o.decay_images / size), rest), 1)


def warmup_stable_decay(step, lr, warmup, start, end, final=0.0):
    """A linear rise over `warmup` steps, lr until step `start`, a straight line down to final x lr at step `end`.

    All may be traced, so that runs of different rates and lengths share a program.
    """
    rise = jnp.minimum((step + 1) / jnp.maximum(warmup, 1), 1.0)
    rest = jnp.clip((end - step) / (end - start), 0.0, 1.0)
    return lr * rise * (final + (1.0 - final) * rest)


def build_optimizer(config: Config, rate: optax.Schedule | None = None) -> optax.GradientTransformation:
    """Global-norm clipping, then AdamW or Muon at `rate` (by default the config's). Under muP updates (and decay) of a
    matrix shrink with its fan-in."""
    o = config.optimizer
    clip = in_place.clip(o.clip_norm) if o.clip_norm else optax.identity()
    rate = rate or learning_rate(config)
    if o.name == "muon":
        return optax.chain(clip, muon(rate, o.b1, o.b2, o.eps, o.weight_decay, decaying))
    adamw = in_place.adamw(rate, o.b1, o.b2, o.eps, o.weight_decay, decaying)
    if o.mup_base is None:
        return optax.chain(clip, adamw)
    factors = width_factors(build(config.model).abstract(), build(mup_base(config)).abstract())
    slow = lambda params: params | {"denoiser": jax.tree.map(jnp.multiply, params["denoiser"], factors)}
    return optax.chain(clip, adamw, optax.stateless(lambda updates, _: slow(updates)))


def decaying(params: Any) -> Any:
    """True for what weight decay shrinks: the kernels of products and convolutions and the factors of low-rank changes;
    not biases, scales of norms, or tables of embeddings."""
    return jax.tree_util.tree_map_with_path(lambda path, _: getattr(path[-1], "key", None) in DECAYING, params)


def width_factors(params: Any, base: Any) -> Any:
    """For every parameter the factor of its learning rate under muP and Adam: fan-in of `base` over its own for
    matrices and convolutions, 1 for all else. Heads keep their size, so that scores need no factor."""
    fan_in = lambda leaf: leaf.shape[-2]  # [..., in, out], behind a stack's layers or a convolution's window
    theirs = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(base)}

    def factor(path, leaf):
        if getattr(path[-1], "key", None) != "kernel":
            return 1.0
        name = jax.tree_util.keystr(path)
        if name not in theirs:
            raise ConfigError(f"config.optimizer.mup_base has no parameter {name} of config.model; change widths and "
                              "depth only")
        return fan_in(theirs[name]) / fan_in(leaf)

    return jax.tree_util.tree_map_with_path(factor, params)
