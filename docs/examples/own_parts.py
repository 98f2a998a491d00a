"""Parts of one's own, each with a name that configs know: a family of networks, a loss, a solver, a source of images.

A config says `imports=["own_parts.py"]`, and from then on "patch_mixer", "robust", "midpoint" and "squares:96" stand
beside the names that come with the package, as `own_config.py` shows. Take what you need and leave the rest.
"""

import dataclasses
import io
import itertools
import random
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from PIL import Image, ImageDraw

import lgm
from lgm import gaussian
from lgm.bounds import Count, Positive
from lgm.data.rows import build
from lgm.losses import Loss, Setting
from lgm.losses.records import OfDraws
from lgm.models import ConditioningSpec, Family
from lgm.models.layers import PIXELS, Linear
from lgm.sampling import Solver

# ---- a family: its configuration, its network, and the record that says what others need to know of it


@dataclasses.dataclass(frozen=True)
class MixerConfig:
    """Blocks that mix each pixel's features, then all pixels; told the time and a caption's vector."""

    channels: Count = 32
    side: Count = 8  # of the latent, in pixels
    width: Count = 64
    depth: Count = 2
    pooled_dim: Count = 32
    dtype: Literal["float32"] = "float32"


class Mixer(nnx.Module):
    """x [B, H, W, C], t [B] and `cond.pooled` [B, P] -> a prediction of x's shape. `axes` of a product name what a mesh
    may split; None stays whole."""

    def __init__(self, config: MixerConfig, *, rngs):
        width, pixels = config.width, config.side**2
        self.into = Linear(config.channels, width, (None, "embed"), over=PIXELS, rngs=rngs)
        self.told = Linear(config.pooled_dim + 2, width, (None, "embed"), rngs=rngs)
        self.across = nnx.List(Linear(pixels, pixels, (None, None), rngs=rngs) for _ in range(config.depth))
        self.within = nnx.List(Linear(width, width, ("embed", None), over=PIXELS, rngs=rngs)
                               for _ in range(config.depth))  # fmt: skip
        self.out = Linear(width, config.channels, ("embed", None), over=PIXELS, zero=True, rngs=rngs)

    def __call__(self, x_BHWC, t_B, cond):
        clock_B2 = jnp.stack([jnp.cos(jnp.pi * t_B), jnp.sin(jnp.pi * t_B)], -1)
        told_BD = self.told(jnp.concatenate([cond.pooled, clock_B2], -1))
        h_BHWD = self.into(x_BHWC) + told_BD[:, None, None]
        for across, within in zip(self.across, self.within, strict=True):
            h_BDN = h_BHWD.reshape(*h_BHWD.shape[:1], -1, h_BHWD.shape[-1]).swapaxes(1, 2)
            h_BHWD = h_BHWD + jax.nn.silu(across(h_BDN)).swapaxes(1, 2).reshape(h_BHWD.shape)
            h_BHWD = h_BHWD + within(jax.nn.silu(h_BHWD))
        return self.out(h_BHWD)


lgm.register("family", "patch_mixer", Family(
    "patch_mixer", MixerConfig, Mixer,
    conditioning=lambda config: ConditioningSpec(pooled=config.pooled_dim),
    native_side=lambda config: config.side,
    ladder=lambda size, **options: MixerConfig(width=32 * size, depth=size, **options),
))  # fmt: skip


# ---- a loss: what is drawn for a batch, and the scalar of it


class Drawn(NamedTuple):
    """Times [B] and noise of the latents' shape."""

    t: jax.Array
    eps: jax.Array


@dataclasses.dataclass(frozen=True)
class Robust(OfDraws):
    """Mean of sqrt(error^2 + width^2) - width (Charbonnier): errors beyond `width` count by their size, not its square.
    """

    setting: Setting
    width: Positive

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> Drawn:
        time_key, noise_key = jax.random.split(key)
        return Drawn(self.setting.density(time_key, shape[:1]), jax.random.normal(noise_key, shape))

    def given(self, predict, x, cond, t_B, eps):
        process, target = self.setting.process, self.setting.target
        prediction = predict(gaussian.add_noise(process, x, eps, t_B), t_B, cond)
        error = prediction - gaussian.target(process, target, x, eps, t_B)
        return jnp.mean(jnp.sqrt(jnp.square(error) + self.width**2) - self.width), {"largest": jnp.abs(error).max()}


lgm.register("loss", "robust", Loss("robust", lambda setting, width=0.1: Robust(setting, width)))


# ---- a solver: a pure step from time t to s < t, whatever the process and the network's target


def midpoint() -> Solver:
    """The explicit midpoint rule for the probability-flow ODE  dx/dt = a'(t) x_hat + b'(t) eps_hat: second order, two
    predictions a step."""

    def step(process, denoise, x, memory, t, s, key):
        def slope(x, t):
            implied = denoise(x, t)  # the data and the noise that the network's output at (x, t) stands for
            return process.da(t) * implied.x + process.db(t) * implied.eps

        half = 0.5 * (t + s)
        return x + (s - t) * slope(x + (half - t) * slope(x, t), half), memory

    return Solver(step)


lgm.register("solver", "midpoint", midpoint)


# ---- a source: how many records there are, what is known of each, and the bytes of any one's image


class Squares:
    """`count` pictures of a coloured square on white, of another size and at another place each, called by its colour.
    """

    kind = "drawn squares"
    COLOURS = {"red": "#e62e2e", "yellow": "#e6e02e", "green": "#2eb82e", "blue": "#2e2ee6"}

    def __init__(self, count: str, caption, bad):
        if not count.isdigit():
            raise ValueError(f"config.data.source='squares:{count}' needs a number, as squares:96")
        names = itertools.cycle(self.COLOURS)
        self.rows = build({"file_name": f"{i}.png", "text": f"{next(names)} square"} for i in range(int(count)))

    def read(self, i: int) -> bytes:
        """The encoded image of record `i`."""
        rng, image = random.Random(i), Image.new("RGB", (64, 64), "white")
        side = rng.randint(16, 40)
        x, y = rng.randint(0, 63 - side), rng.randint(0, 63 - side)
        colour = list(self.COLOURS.values())[i % len(self.COLOURS)]
        ImageDraw.Draw(image).rectangle((x, y, x + side, y + side), fill=colour)
        image.save(buffer := io.BytesIO(), "PNG")
        return buffer.getvalue()

    def stamp(self, i: int) -> str:
        """What changes where the image of record `i` does: nothing."""
        return ""


lgm.register("source", "squares", Squares)
