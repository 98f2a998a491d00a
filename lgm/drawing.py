"""From captions to images, with a run or with a system that a folder holds: what `lgm sample`, sample grids and
evaluation share.

`source` is what draws, a `System` or a `Pipeline`: both know their process and target, and denoise, encode and decode.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lgm import sampling
from lgm.config import Sampling
from lgm.models import Params
from lgm.models.autoencoder import AutoencoderConfig, side
from lgm.models.tiling import tiled_decode
from lgm.parallel import constrain, even, fetch, spread, using
from lgm.pictures import NOT_FINITE, Start, latent_mask
from lgm.registry import section
from lgm.sampler import Sampler, resolve
from lgm.skip_layers import read_skip, skipped
from lgm.system import System
from lgm.systems.release import Pipeline, latent_size, micro
from lgm.systems.text import conditions

CHUNK = 16  # images drawn by one compiled call: bounds memory, and a shorter list compiles nothing new


def draw(system: System, params, frozen, captions: list[str], seed: int = 0, start: Start | None = None,
         size: tuple[int, int] | None = None, **changes) -> np.ndarray:
    """uint8 images [N, H, W, 3] of `size` = (H, W), by default the config's resolution, for N captions; all that is
    drawn at random for image i is a function of (seed, i) alone, a stochastic solver's noise too.

    `changes` replace fields of the config's `sampling` (solver, steps, guidance, rule, interval, negative, schedule).
    """
    parts = _chunks(system, params, frozen, captions, seed, 0, start, size, changes)
    return np.concatenate([fetch(_decode(system, frozen, latents))[:count] for latents, count in parts])


def draw_rows(system: System, params, frozen, captions: list[str], seed: int, rows: Sequence[int],
              size: tuple[int, int] | None = None, **changes) -> np.ndarray:
    """uint8 images [N, H, W, 3] of N captions that `draw` would draw as the seed's images number `rows`, by one call of
    N. Raises ValueError where they are not finite."""
    options = dataclasses.replace(system.config.sampling, **changes)
    tokens, mask = system.tokenize(captions)
    latents = _draw_chunk(system, options, params, frozen, tokens, mask, np.asarray(rows), seed, None, size)
    if not fetch(jnp.isfinite(latents).all()):
        raise ValueError(NOT_FINITE)
    return fetch(_decode(system, frozen, latents))


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
    system.sampler(options)
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
    whole = None if shape is None else micro(shape, shape, len(tokens))
    context = _contexts(system, params, (tokens, mask), none, whole)
    if system.conditioning.guidance:  # distilled: the network is told the scale
        cond = dataclasses.replace(context[0], guidance=jnp.full(len(tokens), float(options.guidance)))
        context = (cond, context[1])
    if start is not None:
        pixels = np.round(start.image * 255).astype(np.uint8)
        z = jnp.tile(_encode(system, frozen, pixels[None]), (len(rows), 1, 1, 1))
        start = dataclasses.replace(start, image=z)
    return _solve(system, system.sampler(options), (params, context), noise, sampling.keys(seed, rows), start)


def solve_as_one(source: System | Pipeline, sampler: Sampler, arguments, noise: jax.Array, keys: jax.Array
                 ) -> jax.Array:  # fmt: skip
    """Latents drawn from `noise`, to be traced as one program, which has one step in it however many it makes.
    `arguments` are (parameters, (conditioning, that of no caption))."""
    return _solve(source, sampler, arguments, noise, keys, scanned=True)


def _solve(source: System | Pipeline, sampler: Sampler, arguments, noise: jax.Array, keys: jax.Array,
          start: Start | None = None, rule: sampling.Rule | None = None, away: sampling.Skipped | None = None,
          scanned: bool = False) -> jax.Array:
    """Latents drawn from `noise` or, of which only the last steps are made, from a `start` whose image is latents.
    `arguments` are (parameters, (conditioning, that of no caption)); `away` is guidance beside that by `rule`."""
    steps, method, process, left = sampler.timesteps, sampler.solver, source.process, None
    x = noise * sampler.scale
    if start is not None:
        left = len(sampling.last_part(steps.times, start.strength)) - 1
        if sampler.schedule is not None:
            steps, left = sampler.schedule.part(steps, left), None
        x, _ = sampling.from_image(process, start.image, noise, steps.times, 1.0 if left is None else start.strength)
        if start.mask is not None:
            drawn_anew = jnp.asarray(latent_mask(start.mask, noise.shape[1:3]))
            method = sampling.inpainting(method, start.image, drawn_anew, noise)
    skip = None
    if away is not None:
        inputs = steps.times[:-1] if steps.inputs is None else steps.inputs
        skip = away(inputs[-left:] if left else inputs)
    predict = _predictor(source, sampler.wrap, method.variance, rule, skip)
    x = sampling.loop(method, process, source.target, predict, x, steps, arguments, keys, left, scanned)
    if start is not None and start.mask is not None:
        x = jnp.where(drawn_anew > 0, x, start.image)  # the last step of a table may end above t = 0, with some noise
    return x


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def _noise(system: System, seed: int, rows, shape: tuple[int, int, int]):
    with using(system.layout):
        return constrain(sampling.noise(seed, rows, shape), "batch", None, None, None)


@functools.partial(jax.jit, static_argnums=0)
def _contexts(system: System, params, words, none, micro):
    return system.condition(params, *words, micro), system.condition(params, *none, micro)


@functools.lru_cache(maxsize=64)
def _predictor(source: System | Pipeline, wrap: sampling.Wrap, variance: bool, rule: sampling.Rule | None,
               away: sampling.Skipped | None):
    """One predict function a source and guidance, so that its compiled step is found again; with its `variance`."""
    named = {"method": "with_variance"} if variance else {}

    def predict(x, t, arguments, s=None):
        params, (cond, uncond) = arguments
        if s is not None:  # where a mean velocity ends
            cond, uncond = (dataclasses.replace(c, jump=t - s) for c in (cond, uncond))
        network = functools.partial(source.denoise, params, **named)
        if away is not None:
            return sampling.skipping(network, functools.partial(network, skip=away.layers), cond, uncond, rule,
                                     away)(x, t)  # fmt: skip
        return wrap(network, cond, uncond)(x, t)

    return predict


@functools.partial(jax.jit, static_argnums=0)
def _decode(source: System | Pipeline, frozen, latents):
    return source.decode(frozen, latents)


@functools.partial(jax.jit, static_argnums=0)
def _encode(source: System | Pipeline, frozen, images):
    return source.encode(frozen, images)


@functools.partial(jax.jit, static_argnums=0)
def _encode_posterior(system: System, frozen, images):
    return jnp.concatenate(system.posterior(frozen, images), -1)


def encode_all(system: System, frozen, images, count: int | None = None, size: int = 64,
               shape: tuple[int, int] | None = None, flipped: bool = False) -> np.ndarray:
    """Standardised latents [N, h, w, c] of a whole image set in `shape` = (H, W), by default the config's resolution,
    encoded in chunks of one shape; of the images `flipped`, left to right, where that is asked for."""
    count = len(images) if count is None else count
    pixels = images.take(range(count)).images(shape) if count else np.zeros((0, 1, 1, 3), np.uint8)
    return encode_pixels(system, frozen, pixels[:, :, ::-1] if flipped else pixels, shape, size)


def encode_pixels(system: System, frozen, pixels: np.ndarray, shape: tuple[int, int] | None = None,
                  size: int = 64) -> np.ndarray:
    """Standardised latents [N, h, w, c] of uint8 images [N, H, W, 3] of `shape` = (H, W)."""
    return _encoded(system, frozen, pixels, shape, size, _encode)


def encode_posterior(system: System, frozen, pixels: np.ndarray, shape: tuple[int, int] | None = None,
                     size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """(mean, log variance) [N, h, w, c] of standardised latents of uint8 images [N, H, W, 3] of `shape` = (H, W)."""
    return tuple(np.split(_encoded(system, frozen, pixels, shape, size, _encode_posterior), 2, -1))


def _encoded(system: System, frozen, pixels: np.ndarray, shape: tuple[int, int] | None, size: int,
             encode: Callable) -> np.ndarray:
    parts, size, count = [], even(system.layout, size), len(pixels)
    for start in range(0, count, size):
        rows = np.minimum(np.arange(start, start + size), count - 1)
        parts.append(fetch(encode(system, frozen, *spread(system.layout, pixels[rows])))[: count - start])
    return np.concatenate(parts) if parts else np.zeros((0, *system.latent_shape(shape)), np.float32)


def text_to_image(
    pipeline: Pipeline, params: Mapping[str, Params], prompts: Sequence[str], *, negative: str | None = None,
    steps: int | None = None, guidance: float | None = None, size: tuple[int, int] | None = None, seed: int = 0,
    noise: jax.Array | None = None, solver: str | Mapping[str, Any] | None = None,
    schedule: Mapping[str, Any] | None = None, rule: str | Mapping[str, Any] | None = None,
    interval: tuple[float, float] = (0.0, 1.0), image: jax.Array | None = None, strength: float | None = None,
    mask: np.ndarray | None = None, t5_tokens: int | None = None, true_guidance: float = 1.0,
    skip_layers: str | Mapping[str, Any] | None = None, tile: int | None = None, rows: Sequence[int] | None = None,
) -> np.ndarray:  # fmt: skip
    """Images [B, H, W, 3], float32 in [0, 1], of B prompts (DiT's are classes: "class 207" or a name the folder has).

    Args:
        negative: what the image should not show; the default is the system's own unconditional text.
        steps, guidance, solver: the system's and its scheduler's by default. Flux takes guidance as an input of its
            network; the others extrapolate from the unconditional prediction where it is above 1, by `rule` (the
            system's by default) and for t in `interval` (`sampling.rule`).
        schedule: arguments of `sampling.times` instead of the scheduler's own times.
        size: (height, width) in pixels; by default what the denoiser was trained at.
        noise: x_T [B, h, w, C] in latent pixels; by default that of image i is a function of (seed, i) alone, as is
            what a stochastic solver draws. rows: the images' numbers i among the seed's, by default from 0 on.
        image: start from these images [B, H, W, 3] in [0, 1] with noise of `strength` in (0, 1] (the system's own by
            default): only the last strength x steps steps are made. Where `mask` [H, W] is False they are kept. A model
            that inpaints needs both: it is told what is kept, starts from noise alone at strength 1 and draws it all.
        t5_tokens: the length that texts are padded to for T5.
        true_guidance: Flux alone: extrapolate from `negative` by this scale, at twice the cost.
        skip_layers: SD3 and SD3.5 alone: guide away from what the network says without these blocks, too
            (`skip_layers.read_skip`).
        tile: decode in overlapping tiles of so many pixels a side, which bounds the memory of large images.

    Raises ValueError, one line, for what cannot be.
    """
    defaults = pipeline.defaults
    if (guidance or 0.0) > 1.0 and not pipeline.extrapolates and not pipeline.conditioning.guidance:
        warnings.warn(f"guidance={guidance} changes nothing: this model was distilled to draw without it", stacklevel=2)
    steps, guidance = steps or defaults.steps, defaults.guidance if guidance is None else guidance
    strength = defaults.strength if strength is None else strength
    autoencoder = pipeline.models["vae"].config
    if image is not None:
        size = tuple(image.shape[1:3])
    size = size or (pipeline.sample_size * autoencoder.factor,) * 2
    shape = (len(prompts), *latent_size(pipeline, size), autoencoder.latent_channels)
    rows = range(shape[0]) if rows is None else rows
    if noise is None:
        noise = sampling.noise(seed, rows, shape[1:])
    if noise.shape != shape:
        raise ValueError(f"noise has shape {noise.shape}; {len(prompts)} images of {size} need {shape}")
    if pipeline.inpaints and (image is None or mask is None):
        raise ValueError("this folder's U-Net draws what a mask covers of a picture; give an image and a mask")

    extrapolates = pipeline.extrapolates
    scale = max(1.0, float(guidance if extrapolates else 1.0 if negative is None else true_guidance))
    idle = {"negative": negative is not None, "rule": rule not in (None, "plain"),
            "interval": tuple(interval) != (0.0, 1.0)}
    if scale == 1.0 and any(idle.values()):
        what = "guidance" if extrapolates else "true_guidance"
        word = next(name for name, given in idle.items() if given)
        given = {"negative": negative, "rule": rule, "interval": interval}[word]
        warnings.warn(f"{word}={given!r} changes nothing at {what} 1; give a {what} above 1", stacklevel=2)
    how = sampling.rule(scale=scale, **section(rule or defaults.rule, "rule")) if scale > 1.0 else None
    cond, uncond = conditions(pipeline, params, prompts, size, negative, guidance, scale > 1.0, t5_tokens)
    away = start = None
    if skip_layers is not None:
        if how is None or isinstance(how, sampling.Projected) or tuple(interval) != (0.0, 1.0):
            raise ValueError("skip_layers goes with guidance above 1 by the rule plain or rescaled, without an "
                             "interval")
        away = functools.partial(skipped, pipeline.denoiser.config, read_skip(skip_layers))

    sampler = folder_sampler(pipeline, shape[1] * shape[2], steps, how, solver, schedule, tuple(interval))
    vae = {"vae": params["vae"]}
    if pipeline.inpaints:
        beside = _beside(pipeline, vae, image, mask)
        cond, uncond = (c and dataclasses.replace(c, beside=beside) for c in (cond, uncond))
        mask = None
    if image is not None and not (pipeline.inpaints and strength == 1.0):
        strength = _rounded_up(strength, steps) if pipeline.system.rounds_up else strength
        start = Start(_encode(pipeline, vae, jnp.asarray(image, jnp.float32)), strength, mask)
    network = {pipeline.system.denoiser: params[pipeline.system.denoiser]}
    keys = sampling.keys(seed, rows)
    x = _solve(pipeline, sampler, (network, (cond, uncond)), noise, keys, start, how, away)
    decode = lambda z: fetch(_decode(pipeline, vae, z))
    if tile is not None:
        images = tiled_decode(decode, fetch(x), factor=autoencoder.factor, tile=_tile(tile, autoencoder))
    else:
        images = np.concatenate([decode(x[i : i + 1]) for i in range(len(x))])  # one by one: less memory
    if not np.isfinite(images).all():
        raise ValueError(NOT_FINITE)
    return np.clip(images, 0.0, 1.0)


def folder_sampler(pipeline: Pipeline, pixels: int, steps: int, rule: sampling.Rule | None = None,
                   solver: str | Mapping[str, Any] | None = None, schedule: Mapping[str, Any] | None = None,
                   interval: tuple[float, float] = (0.0, 1.0)) -> Sampler:
    """How a folder's system draws images of so many latent pixels, guided by a rule in an interval; solver and schedule
    as `text_to_image` has them. Raises ValueError, one line, for a solver that it cannot draw by."""
    if solver is not None and sampling.solver(**section(solver, "solver")).jumps:
        raise ValueError(f"solver={solver!r} is for models of mean velocities, which no released system is")
    own = solver is None and schedule is None
    times, method, factor = resolve(
        pipeline.process, pipeline.target, steps, pipeline.schedule if schedule is None else schedule,
        solver if schedule is None else solver or pipeline.schedule.solver,
        pixels // 4, pipeline.system.even, pipeline.system.log_shift,  # flow models have patches of 2 x 2
    )  # fmt: skip
    if method.variance and not pipeline.conditioning.variance:
        raise ValueError("the variances of the solver 'ddpm:variance=learned' are not among what this network gives; "
                         "take 'ddpm', whose variance is the posterior's")
    return Sampler(times, *sampling.guided(method, rule, interval), factor, pipeline.schedule if own else None)


def _beside(pipeline: Pipeline, vae: Params, image, mask_HW) -> jax.Array:
    """What a model that inpaints sees next to x: the mask at the latent pixels' corners, and the latents of the picture
    that is gray where it is drawn anew."""
    image, mask = jnp.asarray(image, jnp.float32), jnp.asarray(mask_HW, bool)
    latents = _encode(pipeline, vae, jnp.where(mask[:, :, None], 0.5, image))
    factor = pipeline.models["vae"].config.factor
    corners = mask[None, ::factor, ::factor, None].astype(latents.dtype)
    return jnp.concatenate([jnp.broadcast_to(corners, (*latents.shape[:3], 1)), latents], -1)


def _tile(pixels: int, autoencoder: AutoencoderConfig) -> int:
    factor, patch = autoencoder.factor, side(autoencoder)
    unit = factor if patch == 1 else 4 * patch * factor  # tiles start every 3 / 4 of one, at a patch's edge
    if pixels < 4 * factor or pixels % unit:
        raise ValueError(f"tile={pixels} must be a multiple of {unit} pixels, at least {max(unit, 4 * factor)}")
    return pixels // factor


def _rounded_up(strength: float, steps: int) -> float:
    """The strength at which a step that is only begun is made too, as diffusers' pipelines of flows have it."""
    if not 0.0 < strength <= 1.0:
        return strength  # refused where it is used
    made = steps - int(steps - steps * strength)
    return min(1.0, (made + 0.5) / steps)
