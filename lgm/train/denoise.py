"""The main task: a denoiser and its text encoder learn latents of captioned images under one process and loss."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lgm.config import Config
from lgm.data import batches, open_images, save_grid
from lgm.drawing import draw, encode_all
from lgm.evaluate.heldout import heldout_loss
from lgm.models import Conditioning
from lgm.system import System, build_loss, build_system
from lgm.train.loop import Task


def make_task(config: Config, mesh: jax.sharding.Mesh) -> Task:
    """Everything the loop needs to train `config`'s denoiser."""
    system, frozen = build_system(config)
    data = config.data
    images = open_images(data.source, where=data.where, resolution=data.resolution)
    heldout = open_images(data.source, where=data.heldout_where, resolution=data.resolution)
    tokens, mask = system.tokenize(images.captions)
    arrays = {"tokens": tokens, "mask": mask}
    in_memory = data.latents == "memory"
    if in_memory:
        arrays["latent"] = encode_all(system, frozen, images)
    iterator = batches(arrays, image=None if in_memory else images.image, batch_size=config.batch_size,
                       seed=config.seed, process_index=jax.process_index(), process_count=jax.process_count())
    count = min(len(heldout), config.evaluation.max_images)
    test = encode_all(system, frozen, heldout, count), *system.tokenize(heldout.captions[:count])
    rows = pictured(config, heldout, images)
    return Task(
        init=system.init,
        logical_axes=system.logical_axes(),
        loss=make_loss(config, system),
        frozen=frozen,
        batches=iterator,
        forward_flops=forward_flops(system),
        heldout=lambda params: heldout_loss(system, params, *test),
        pictures=lambda params, path: picture(system, params, frozen, rows, path),
    )


def make_loss(config: Config, system: System):
    """The loss of a batch {"latent" or "image", "tokens", "mask"}; captions are dropped here, from the step's key."""
    objective = build_loss(config, system.process)
    dropout = config.text.caption_dropout if config.text else 0.0

    def loss(params, frozen, batch, key):
        drop_key, key = jax.random.split(key)
        x = batch["latent"] if "latent" in batch else system.encode(frozen, batch["image"])
        tokens, mask = batch["tokens"], batch["mask"]
        if dropout:
            none, none_mask = system.unconditional(len(tokens))
            drop = jax.random.bernoulli(drop_key, dropout, (len(tokens), 1))
            tokens, mask = jnp.where(drop, none, tokens), jnp.where(drop, none_mask, mask)
        cond = system.condition(params, tokens, mask)
        return objective(lambda x_t, t, cond: system.denoise(params, x_t, t, cond), x, cond, key)

    return loss


def forward_flops(system: System) -> float:
    """FLOPs of one image's forward pass through text encoder and denoiser."""
    x = jax.ShapeDtypeStruct((1, *system.latent_shape()), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.float32)
    if system.text is None:
        return system.denoiser.flops(x, t, Conditioning())
    length = system.text.config.max_length
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, length), jnp.bool_)
    hidden, pooled = jax.eval_shape(system.text.apply, system.text.abstract(), tokens, mask)
    cond = Conditioning(text=hidden, text_mask=mask, pooled=pooled)
    return system.text.flops(tokens, mask) + system.denoiser.flops(x, t, cond)


def pictured(config: Config, heldout, images) -> tuple[list[str], np.ndarray | None]:
    """(captions, the real images they belong to or None): the config's prompts, else held-out and training captions."""
    if config.sampling.prompts:
        return list(config.sampling.prompts), None
    held = [(heldout, i) for i in range(len(heldout))]
    spread = np.linspace(0, len(images) - 1, config.sampling.count).astype(int)
    chosen = (held[: config.sampling.count // 2] + [(images, int(i)) for i in spread])[: config.sampling.count]
    return [s.captions[i] for s, i in chosen], np.stack([s.image(i) for s, i in chosen])


def picture(system: System, params, frozen, rows, path: Path) -> np.ndarray:
    """Draw `rows` under the config's sampling settings and save them beside the real images."""
    captions, real = rows
    drawn = draw(system, params, frozen, captions, seed=system.config.seed)
    if real is None:
        return save_grid(path, drawn, captions)
    return save_grid(path, drawn, captions, beside=real)
