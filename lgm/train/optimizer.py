"""AdamW with warm-up and decay, counted in images."""

from __future__ import annotations

import jax
import optax

from lgm.config import Config


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
        decay = max(min(round(o.decay_images / config.batch_size), rest), 1)
        body = optax.linear_schedule(o.lr, o.lr * o.final, decay, transition_begin=rest - decay)
    else:
        body = optax.constant_schedule(o.lr)
    if not warmup:
        return body
    return optax.join_schedules([optax.linear_schedule(o.lr / warmup, o.lr, warmup - 1 or 1), body], [warmup])


def build_optimizer(config: Config) -> optax.GradientTransformation:
    """Global-norm clipping, then AdamW; only matrices and kernels decay, not norms, biases or embeddings of time."""
    o = config.optimizer
    decays = lambda params: jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) in ("kernel", "embedding"), params
    )
    clip = optax.clip_by_global_norm(o.clip_norm) if o.clip_norm else optax.identity()
    adamw = optax.adamw(learning_rate(config), o.b1, o.b2, o.eps, weight_decay=o.weight_decay, mask=decays)
    return optax.chain(clip, adamw)
