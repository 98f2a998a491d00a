"""From captions to images: what `lgm sample`, sample grids and evaluation share."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from lgm import sampling
from lgm.config import Sampling
from lgm.parallel import constrain, even, fetch, spread, using
from lgm.pictures import NOT_FINITE, Start, latent_mask
from lgm.system import System

CHUNK = 16  # images drawn by one compiled call: bounds memory, and a shorter list compiles nothing new


def draw(system: System, params, frozen, captions: list[str], seed: int = 0, start: Start | None = None,
         size: tuple[int, int] | None = None, **changes) -> np.ndarray:
    """uint8 images [N, H, W, 3] of `size` = (H, W), by default the config's resolution, for N captions; all that is
    drawn at random for image i is a function of (seed, i) alone, a stochastic solver's noise too.

    `changes` replace fields of the config's `sampling` (solver, steps, guidance, rule, interval, negative, schedule).
    """
    parts = _chunks(system, params, frozen, captions, seed, 0, start, size, changes)
    return np.concatenate([fetch(_decode(system, frozen, latents))[:count] for latents, count in parts])


def draw_latents(system: System, params, frozen, captions: list[str], seed: int = 0, first: int = 0,
                 **changes) -> tuple[np.ndarray, np.ndarray]:
    """(latents, the noise N(0, I) that they were drawn from) [N, h, w, c] for N captions, drawn as `draw` draws the
    images from number `first` on."""
    parts = _chunks(system, params, frozen, captions, seed, first, None, None, changes)
    latents = np.concatenate([fetch(latents)[:count] for latents, count in parts])
    return latents, fetch(_noise(system, seed, np.arange(first, first + len(captions)), system.latent_shape()))


def _chunks(system: System, params, frozen, captions: list[str], seed: int, number: int, start: Start | None,
            shape: tuple[int, int] | None, changes) -> Iterator[tuple[jax.Array, int]]:
    """(latents, how many of them were asked for) of one call after another, for images from `number` on."""
    options = dataclasses.replace(system.config.sampling, **changes)
    system.course(options)
    tokens, mask = system.tokenize(captions)
    size = chunk(system, len(captions))
    for first in range(0, len(captions), size):
        rows = np.minimum(np.arange(first, first + size), len(captions) - 1)
        drawn = _draw_chunk(system, options, params, frozen, tokens[rows], mask[rows], number + rows, seed, start,
                            shape)
        if not fetch(jnp.isfinite(drawn).all()):
            raise ValueError(NOT_FINITE)
        yield drawn, min(size, len(captions) - first)


def chunk(system: System, count: int) -> int:
    """How many images a call draws of `count`: so many in all, or on each of several devices where there are more."""
    least = even(system.layout, CHUNK)
    return least if count <= least else even(system.layout, 1) * CHUNK


def _draw_chunk(system: System, options: Sampling, params, frozen, tokens, mask, rows, seed: int,
                start: Start | None, shape: tuple[int, int] | None) -> jax.Array:
    rows, tokens, mask = spread(system.layout, rows, tokens, mask)
    noise = _noise(system, seed, rows, system.latent_shape(shape))
    none = system.unconditional(len(rows))
    if options.negative:
        none = tuple(np.repeat(part, len(rows), 0) for part in system.tokenize([options.negative]))
    whole = None if shape is None else jnp.tile(jnp.asarray([*shape, 0, 0, *shape], jnp.float32), (len(tokens), 1))
    context = _contexts(system, params, (tokens, mask), none, whole)
    if system.told.guidance:  # distilled: the network is told the scale
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
    x = sampling.loop(method, system.process, system.config.loss.target, _predictor(system, wrap, method.variance),
                      x_T, walk, (params, context), sampling.keys(seed, rows), left)
    if start is not None and start.mask is not None:
        x = jnp.where(drawn_anew > 0, x, z)  # the last step of a table may end above t = 0, with some noise
    return x


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def _noise(system: System, seed: int, rows, shape: tuple[int, int, int]):
    with using(system.layout):
        return constrain(sampling.noise(seed, rows, shape), "batch", None, None, None)


@functools.partial(jax.jit, static_argnums=0)
def _contexts(system: System, params, words, none, micro):
    return system.condition(params, *words, micro), system.condition(params, *none, micro)


@functools.cache
def _predictor(system: System, wrap: sampling.Wrap, variance: bool):
    """One predict function a system and guidance, so that its compiled step is found again; with its `variance`."""
    named = {"method": "with_variance"} if variance else {}

    def predict(x, t, arguments, s=None):
        params, (cond, uncond) = arguments
        if s is not None:  # where a mean velocity ends
            cond, uncond = (dataclasses.replace(c, jump=t - s) for c in (cond, uncond))
        return wrap(functools.partial(system.denoise, params, **named), cond, uncond)(x, t)

    return predict


@functools.partial(jax.jit, static_argnums=0)
def _decode(system: System, frozen, latents):
    return system.decode(frozen, latents)


@functools.partial(jax.jit, static_argnums=0)
def _encode(system: System, frozen, images):
    return system.encode(frozen, images)


def encode_all(system: System, frozen, images, count: int | None = None, size: int = 64,
               shape: tuple[int, int] | None = None) -> np.ndarray:
    """Standardised latents [N, h, w, c] of a whole image set in `shape` = (H, W), by default the config's resolution,
    encoded in chunks of one shape."""
    count = len(images) if count is None else count
    pixels = images.take(range(count)).images(shape) if count else np.zeros((0, 1, 1, 3), np.uint8)
    return encode_pixels(system, frozen, pixels, shape, size)


def encode_pixels(system: System, frozen, pixels: np.ndarray, shape: tuple[int, int] | None = None,
                  size: int = 64) -> np.ndarray:
    """Standardised latents [N, h, w, c] of uint8 images [N, H, W, 3] of `shape` = (H, W)."""
    parts, size, count = [], even(system.layout, size), len(pixels)
    for start in range(0, count, size):
        rows = np.minimum(np.arange(start, start + size), count - 1)
        parts.append(fetch(_encode(system, frozen, *spread(system.layout, pixels[rows])))[: count - start])
    return np.concatenate(parts) if parts else np.zeros((0, *system.latent_shape(shape)), np.float32)
