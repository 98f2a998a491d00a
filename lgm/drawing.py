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
from lgm.sampling import classifier_free
from lgm.sampling.clipping import clipped
from lgm.system import System

CHUNK = 16  # images drawn by one compiled call: bounds memory, and a shorter list compiles nothing new


def draw(system: System, params, frozen, captions: list[str], seed: int = 0, **changes) -> np.ndarray:
    """uint8 images [N, H, W, 3] for N captions; the noise of image i is a function of (seed, i) alone.

    `changes` replace fields of the config's `sampling` (solver, steps, guidance, schedule).
    """
    options = dataclasses.replace(system.config.sampling, **changes)
    tokens, mask = system.tokenize(captions)
    images = []
    for start in range(0, len(captions), CHUNK):
        rows = np.minimum(np.arange(start, start + CHUNK), len(captions) - 1)
        latents = _draw_chunk(system, options, params, tokens[rows], mask[rows], rows, seed)
        images.append(fetch(_decode(system, frozen, latents))[: len(captions) - start])
    return np.concatenate(images)


def _draw_chunk(system: System, options: Sampling, params, tokens, mask, rows, seed: int) -> jax.Array:
    noise = sampling.noise(seed, rows, system.latent_shape())
    walk, solver, scale = system.walk(options)
    guidance, context = float(options.guidance), _contexts(system, params, tokens, mask)
    if getattr(system.config.model, "guidance", False):  # distilled: the network is told the scale
        told = dataclasses.replace(context[0], guidance=jnp.full(len(tokens), guidance))
        guidance, context = 1.0, (told, context[1])
    predict = _guided(system, guidance, options.clip)
    return sampling.loop(solver, system.process, system.config.loss.target, predict, noise * scale, walk,
                         (params, context))


@functools.partial(jax.jit, static_argnums=0)
def _contexts(system: System, params, tokens, mask):
    none = system.unconditional(len(tokens))
    return system.condition(params, tokens, mask), system.condition(params, *none)


@functools.cache
def _guided(system: System, scale: float, clip: float | None):
    """One predict function a system and scale, so that its compiled step is found again."""

    def predict(x, t, arguments):
        params, (cond, uncond) = arguments
        guided = classifier_free(functools.partial(system.denoise, params), cond, uncond, scale)
        if clip is not None:
            guided = clipped(guided, system.process, system.config.loss.target, clip)
        return guided(x, t)

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
