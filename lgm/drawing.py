"""From captions to images: what `lgm sample`, sample grids and evaluation share."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from lgm import sampling
from lgm.config import Sampling
from lgm.parallel import fetch
from lgm.pictures import Start, latent_mask
from lgm.system import System

CHUNK = 16  # images drawn by one compiled call: bounds memory, and a shorter list compiles nothing new


def draw(system: System, params, frozen, captions: list[str], seed: int = 0, start: Start | None = None,
         **changes) -> np.ndarray:
    """uint8 images [N, H, W, 3] for N captions; all that is drawn at random for image i is a function of (seed, i)
    alone, a stochastic solver's noise too.

    `changes` replace fields of the config's `sampling` (solver, steps, guidance, rule, interval, negative, schedule).
    """
    options = dataclasses.replace(system.config.sampling, **changes)
    system.course(options)
    tokens, mask = system.tokenize(captions)
    images = []
    for first in range(0, len(captions), CHUNK):
        rows = np.minimum(np.arange(first, first + CHUNK), len(captions) - 1)
        latents = _draw_chunk(system, options, params, frozen, tokens[rows], mask[rows], rows, seed, start)
        images.append(fetch(_decode(system, frozen, latents))[: len(captions) - first])
    return np.concatenate(images)


def draw_latents(system: System, params, frozen, captions: list[str], seed: int = 0,
                 **changes) -> tuple[np.ndarray, np.ndarray]:
    """(latents, the noise N(0, I) that they were drawn from) [N, h, w, c] for N captions, as `draw` draws them."""
    options = dataclasses.replace(system.config.sampling, **changes)
    system.course(options)
    tokens, mask = system.tokenize(captions)
    latents = []
    for first in range(0, len(captions), CHUNK):
        rows = np.minimum(np.arange(first, first + CHUNK), len(captions) - 1)
        part = _draw_chunk(system, options, params, frozen, tokens[rows], mask[rows], rows, seed, None)
        latents.append(fetch(part)[: len(captions) - first])
    return np.concatenate(latents), fetch(sampling.noise(seed, range(len(captions)), system.latent_shape()))


def _draw_chunk(system: System, options: Sampling, params, frozen, tokens, mask, rows, seed: int,
                start: Start | None) -> jax.Array:
    noise = sampling.noise(seed, rows, system.latent_shape())
    none = system.unconditional(len(rows))
    if options.negative:
        none = tuple(np.repeat(part, len(rows), 0) for part in system.tokenize([options.negative]))
    context = _contexts(system, params, (tokens, mask), none)
    if getattr(system.config.model, "guidance", False):  # distilled: the network is told the scale
        told = dataclasses.replace(context[0], guidance=jnp.full(len(tokens), float(options.guidance)))
        context = (told, context[1])
    walk, method, wrap, scale = system.course(options)
    x_T, left = noise * scale, None
    if start is not None:
        pixels = np.round(start.image * 255).astype(np.uint8)
        z = jnp.tile(_encode(system, frozen, pixels[None]), (len(rows), 1, 1, 1))
        x_T, times = sampling.from_image(system.process, z, noise, walk.times, start.strength)
        left = len(times) - 1
        if start.mask is not None:
            drawn_anew = latent_mask(start.mask, z.shape[1:3])
            method = sampling.inpainting(method, z, drawn_anew, noise)
    x = sampling.loop(method, system.process, system.config.loss.target, _predictor(system, wrap), x_T, walk,
                      (params, context), sampling.keys(seed, rows), left)
    if start is not None and start.mask is not None:
        x = jnp.where(drawn_anew > 0, x, z)  # the last step of a table may end above t = 0, with some noise
    return x


@functools.partial(jax.jit, static_argnums=0)
def _contexts(system: System, params, words, none):
    return system.condition(params, *words), system.condition(params, *none)


@functools.cache
def _predictor(system: System, wrap: sampling.Wrap):
    """One predict function a system and guidance, so that its compiled step is found again."""

    def predict(x, t, arguments, s=None):
        params, (cond, uncond) = arguments
        if s is not None:  # where a mean velocity ends
            cond, uncond = (dataclasses.replace(c, jump=t - s) for c in (cond, uncond))
        return wrap(functools.partial(system.denoise, params), cond, uncond)(x, t)

    return predict


@functools.partial(jax.jit, static_argnums=0)
def _decode(system: System, frozen, latents):
    return system.decode(frozen, latents)


@functools.partial(jax.jit, static_argnums=0)
def _encode(system: System, frozen, images):
    return system.encode(frozen, images)


def encode_all(system: System, frozen, images, count: int | None = None, size: int = 64) -> np.ndarray:
    """Standardised latents [N, h, w, c] of a whole image set, encoded in chunks of one shape."""
    count = len(images) if count is None else count
    pixels = images.take(range(count)).images() if count else None
    parts = []
    for start in range(0, count, size):
        rows = np.minimum(np.arange(start, start + size), count - 1)
        parts.append(fetch(_encode(system, frozen, pixels[rows]))[: count - start])
    return np.concatenate(parts) if parts else np.zeros((0, *system.latent_shape()), np.float32)
