"""Text to image and image to image with the systems read from a diffusers folder."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lgm import sampling
from lgm.interop.skip_layers import read_skip, skipped
from lgm.models import Conditioning, Params
from lgm.models.autoencoder import standardize, unstandardize
from lgm.models.tiling import tiled_decode
from lgm.parallel import fetch
from lgm.pictures import NOT_FINITE, latent_mask
from lgm.process import network_input, pure_noise
from lgm.registry import section
from lgm.systems.release import Pipeline, latent_size
from lgm.systems.text import condition, unconditional


def text_to_image(
    pipeline: Pipeline,
    params: Mapping[str, Params],
    prompts: Sequence[str],
    *,
    negative: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    noise: jax.Array | None = None,
    solver: str | Mapping[str, Any] | None = None,
    schedule: Mapping[str, Any] | None = None,
    rule: str | Mapping[str, Any] = "plain",
    interval: tuple[float, float] = (0.0, 1.0),
    image: jax.Array | None = None,
    strength: float | None = None,
    mask: np.ndarray | None = None,
    t5_tokens: int | None = None,
    true_guidance: float = 1.0,
    skip_layers: str | Mapping[str, Any] | None = None,
    tile: int | None = None,
) -> np.ndarray:
    """Images [B, H, W, 3], float32 in [0, 1], of B prompts (DiT's are classes: "class 207" or a name the folder has).

    Args:
        negative: what the image should not show; the default is the system's own unconditional text.
        steps, guidance, solver: the system's and its scheduler's by default. Flux takes guidance as an input of its
            network; the others extrapolate from the unconditional prediction where it is above 1, by `rule` and for
            t in `interval` (`sampling.rule`).
        schedule: arguments of `sampling.times` instead of the scheduler's own times.
        size: (height, width) in pixels; by default what the denoiser was trained at.
        noise: x_T [B, h, w, C] in latent pixels; by default that of image i is a function of (seed, i) alone, as is
            what a stochastic solver draws.
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
    steps, guidance = steps or defaults.steps, defaults.guidance if guidance is None else guidance
    autoencoder = pipeline.models["vae"].config
    if image is not None:
        size = tuple(image.shape[1:3])
    size = size or (pipeline.sample_size * autoencoder.factor,) * 2
    shape = (len(prompts), *latent_size(pipeline, size), autoencoder.latent_channels)
    if noise is None:
        noise = sampling.noise(seed, range(shape[0]), shape[1:])
    if noise.shape != shape:
        raise ValueError(f"noise has shape {noise.shape}; {len(prompts)} images of {size} need {shape}")
    if pipeline.inpaints and (image is None or mask is None):
        raise ValueError("this folder's U-Net draws what a mask covers of a picture; give an image and a mask")

    distilled = not pipeline.system.extrapolates
    cond = condition(pipeline, params, prompts, size, guidance=guidance, t5_tokens=t5_tokens)
    wanted = (1.0 if negative is None else true_guidance) if distilled else guidance
    scale = max(1.0, float(wanted))
    idle = {"negative": negative is not None, "rule": rule != "plain", "interval": tuple(interval) != (0.0, 1.0)}
    if scale == 1.0 and any(idle.values()):
        what = "true_guidance" if distilled else "guidance"
        word = next(name for name, given in idle.items() if given)
        given = {"negative": negative, "rule": rule, "interval": interval}[word]
        warnings.warn(f"{word}={given!r} changes nothing at {what} 1; give a {what} above 1", stacklevel=2)
    how = uncond = None
    if scale > 1.0:
        how = sampling.rule(scale=scale, **section(rule, "rule"))
        uncond = unconditional(pipeline, params, len(prompts), size, negative, t5_tokens, guidance=guidance)

    walk, method, start = _course(pipeline, steps, shape, schedule, solver)
    if method.variance and not pipeline.told.variance:
        raise ValueError("the variances of the solver 'ddpm:variance=learned' are not among what this network gives; "
                         "take 'ddpm', whose variance is the posterior's")
    method, wrap = sampling.guided(method, how, tuple(interval))
    process, target, left = pipeline.process, pipeline.schedule.target, None
    strength = defaults.strength if strength is None else strength
    if pipeline.inpaints:
        beside = _beside(pipeline, params["vae"], image, mask)
        cond, uncond = (c and dataclasses.replace(c, beside=beside) for c in (cond, uncond))
        mask = None
    if image is None or pipeline.inpaints and strength == 1.0:
        x = noise * start
    else:
        if pipeline.system.rounds_up:
            strength = _rounded_up(strength, steps)
        z = _encode(pipeline, params["vae"], jnp.asarray(image, jnp.float32))
        left = len(sampling.last_part(walk.times, strength)) - 1
        if solver is None and schedule is None:
            walk, left = pipeline.schedule.part(walk, left), None
        x, _ = sampling.from_image(process, z, noise, walk.times, 1.0 if left is None else strength)
        if mask is not None:
            drawn_anew = jnp.asarray(latent_mask(mask, z.shape[1:3]))
            method = sampling.inpainting(method, z, drawn_anew, noise)
    away = None
    if skip_layers is not None:
        if how is None or isinstance(how, sampling.Projected) or tuple(interval) != (0.0, 1.0):
            raise ValueError("skip_layers goes with guidance above 1 by the rule plain or rescaled, without an "
                             "interval")
        told = walk.times[:-1] if walk.told is None else walk.told
        away = skipped(pipeline, read_skip(skip_layers), told[-left:] if left else told)
    arguments = (params[pipeline.system.denoiser], cond, uncond)
    predict = _predictor(pipeline, wrap, method.variance, how, away)
    x = sampling.loop(method, process, target, predict, x, walk, arguments, sampling.keys(seed, range(len(x))), left)
    if image is not None and mask is not None:
        x = jnp.where(drawn_anew > 0, x, z)  # the last step of a table ends above t = 0, with some noise
    decode = lambda z: fetch(_decode(pipeline, params["vae"], z))
    if tile is not None:
        images = tiled_decode(decode, fetch(x), factor=autoencoder.factor, tile=_tile(tile, autoencoder.factor))
    else:
        images = np.concatenate([decode(x[i : i + 1]) for i in range(len(x))])  # one by one: less memory
    if not np.isfinite(images).all():
        raise ValueError(NOT_FINITE)
    return np.clip(images, 0.0, 1.0)


def _beside(pipeline: Pipeline, vae: Params, image, mask_HW) -> jax.Array:
    """What a model that inpaints sees next to x: the mask at the latent pixels' corners, and the latents of the picture
    that is gray where it is drawn anew."""
    image, mask = jnp.asarray(image, jnp.float32), jnp.asarray(mask_HW, bool)
    latents = _encode(pipeline, vae, jnp.where(mask[:, :, None], 0.5, image))
    factor = pipeline.models["vae"].config.factor
    corners = mask[None, ::factor, ::factor, None].astype(latents.dtype)
    return jnp.concatenate([jnp.broadcast_to(corners, (*latents.shape[:3], 1)), latents], -1)


def _tile(pixels: int, factor: int) -> int:
    if pixels < 4 * factor or pixels % factor:
        raise ValueError(f"tile={pixels} must be a multiple of {factor} pixels, at least {4 * factor}")
    return pixels // factor


def _rounded_up(strength: float, steps: int) -> float:
    """The strength at which a step that is only begun is made too, as diffusers' pipelines of flows have it."""
    if not 0.0 < strength <= 1.0:
        return strength  # refused where it is used
    made = steps - int(steps - steps * strength)
    return min(1.0, (made + 0.5) / steps)


def _course(pipeline: Pipeline, steps: int, shape: tuple[int, ...], schedule: Mapping[str, Any] | None,
            solver: str | Mapping[str, Any] | None) -> tuple[sampling.Walk, sampling.Solver, float]:
    """(times, solver, factor of the noise that x_T is) of latents of `shape`."""
    if solver is not None and sampling.solver(**section(solver, "solver")).jumps:
        raise ValueError(f"solver={solver!r} is for models of mean velocities, which no released system is")
    process, tokens = pipeline.process, shape[1] * shape[2] // 4  # flow models cut latents into patches of 2 x 2
    if schedule is not None:
        times = sampling.telling(process, pipeline.schedule.target, sampling.times(process, steps, **schedule))
        found = sampling.solver(**section(solver or pipeline.schedule.solver, "solver"))
        return sampling.Walk(times), found, float(pure_noise(process, jnp.float32(1.0), times[0]))
    walk = pipeline.schedule.walk(steps, tokens, even=pipeline.system.even)
    scale = pipeline.schedule.noise_scale(process, walk.times)
    return walk, pipeline.schedule.method(walk.times, solver), scale


@functools.lru_cache(maxsize=8)
def _predictor(pipeline: Pipeline, wrap: sampling.Wrap, variance: bool, how: sampling.Rule | None,
               away: sampling.Skipped | None):
    """`predict(x_t, t_B, arguments)`, the same object for the same pipeline and guidance; with its `variance`."""
    named, process = {"method": "with_variance"} if variance else {}, pipeline.process

    def given(x, t_B):
        """As the network is given them: under EDM's process diffusers tells log(sigma) / 4 instead of 1000 t."""
        if process.name != "edm":
            return x, t_B
        return network_input(process, x, t_B), 2.5e-4 * jnp.log(process.sigma(t_B))

    def predict(x, t_B, arguments: tuple[Params, Conditioning, Conditioning | None]):
        params, cond, uncond = arguments
        network = lambda x, t, c, **words: pipeline.denoiser.apply(params, *given(x, t), c, **named, **words)
        if away is not None:
            weak = functools.partial(network, skip=away.layers)
            return sampling.skipping(network, weak, cond, uncond, how, away)(x, t_B)
        return wrap(network, cond, uncond)(x, t_B)

    return predict


@functools.partial(jax.jit, static_argnums=0)
def _encode(pipeline: Pipeline, params: Params, image_BHWC: jax.Array) -> jax.Array:
    """Latents as the denoiser sees them, of images in [0, 1]."""
    vae = pipeline.models["vae"]
    mean, _ = vae.apply(params, 2.0 * image_BHWC - 1.0, method="encode")
    return standardize(vae.config, mean)


@functools.partial(jax.jit, static_argnums=0)
def _decode(pipeline: Pipeline, params: Params, z_BHWC: jax.Array) -> jax.Array:
    """Images of which black is 0 and white 1."""
    vae = pipeline.models["vae"]
    image = vae.apply(params, unstandardize(vae.config, z_BHWC), method="decode")
    return 0.5 * image + 0.5
