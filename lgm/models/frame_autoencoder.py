"""Qwen-Image's autoencoder, one of films (2025, 2508.02324), for films of one frame.

Its convolutions see the frames before as well, of which a picture has none: the last of a kernel's slices in time is
all that counts. The others, and the convolutions that only join frames, are kept for the files' sake. Norms divide each
pixel by the length of its channels.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from lgm.bounds import Count, Finite, Positive
from lgm.models.attention import attention
from lgm.models.convolution import Conv, convolve, upsample
from lgm.models.keys import Keys
from lgm.models.layers import PIXELS, Linear
from lgm.models.records import Family
from lgm.parallel import constrain, gathered

AXES = ("conv", "channels")
# of the released model, a channel
MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632, -0.1922,
        -0.9497, 0.2503, -0.2921)  # fmt: skip
STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253,
       2.8251, 1.9160)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class FrameAutoencoderConfig:
    """Images [B, H, W, channels] in [-1, 1] to latents [B, H / f, W / f, latent_channels], f = 2^(levels - 1).

    A level is `base_channels` times one of `multipliers` wide, from the image's resolution down. temporal: for each
    halving of the resolution, whether films would be halved in time, too. `latents_mean`, `latents_std`, `scale` and
    `shift` as in AutoencoderConfig.
    """

    channels: Count = 3
    latent_channels: Count = 16
    base_channels: Count = 96
    multipliers: tuple[Count, ...] = (1, 2, 4, 4)
    layers_per_block: Count = 2
    temporal: tuple[bool, ...] = (False, True, True)
    scale: Positive = 1.0
    shift: Finite = 0.0
    latents_mean: tuple[Finite, ...] | None = None
    latents_std: tuple[Positive, ...] | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        if len(self.temporal) != len(self.multipliers) - 1:
            raise ValueError(f"temporal={self.temporal} must have one value fewer than multipliers={self.multipliers}")
        if any(width % 2 for width in self.widths[1:]):
            raise ValueError(f"base_channels={self.base_channels} times multipliers={self.multipliers} must be even, "
                             "for the decoder halves them")  # fmt: skip
        if (self.latents_mean is None) != (self.latents_std is None):
            raise ValueError("latents_mean and latents_std go together; give both or neither")
        for name in ("latents_mean", "latents_std"):
            values = getattr(self, name)
            if values is not None and len(values) != self.latent_channels:
                raise ValueError(f"{name} has {len(values)} values; latent_channels={self.latent_channels} are needed")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, from the image's resolution down."""
        return tuple(self.base_channels * times for times in self.multipliers)

    @property
    def factor(self) -> int:
        """Image pixels a latent pixel, in each direction."""
        return 2 ** (len(self.multipliers) - 1)


PRESETS = {"qwen_image": dict(latents_mean=MEAN, latents_std=STD)}


class FrameConv(nnx.Module):
    """A convolution over `times` frames, rows and columns, of a film of one frame: its kernel's last slice counts."""

    def __init__(self, in_channels: int, out_channels: int, size: int = 3, times: int = 3, *, rngs: Keys):
        self.padding = ((size // 2, size // 2),) * 2
        shape = (times, size, size, in_channels, out_channels)
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), shape), axes=(None, None, None, *AXES))
        self.bias = nnx.Param(jnp.zeros(out_channels), axes=AXES[1:])

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        kernel = gathered(self.kernel[...][-1].astype(x_BHWC.dtype), (None, None, *AXES))
        y = convolve(x_BHWC, kernel, 1, self.padding) + gathered(self.bias[...].astype(x_BHWC.dtype), AXES[1:])
        return constrain(y, "batch", "height", None, AXES[1])


class PixelNorm(nnx.Module):
    """x / |x| times sqrt(C) and a scale, over the channels of a pixel, in float32."""

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.ones(channels), axes=("channels",))

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        x = x_BHWC.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))
        return (x * inverse * (x.shape[-1] ** 0.5 * gathered(self.scale[...], ("channels",)))).astype(x_BHWC.dtype)


class ResBlock(nnx.Module):
    """norm, SiLU, conv, twice, added to the input (through a 1 x 1 conv if widths differ)."""

    def __init__(self, in_channels: int, out_channels: int, *, rngs: Keys):
        self.norm1, self.norm2 = PixelNorm(in_channels), PixelNorm(out_channels)
        self.conv1 = FrameConv(in_channels, out_channels, rngs=rngs)
        self.conv2 = FrameConv(out_channels, out_channels, rngs=rngs)
        self.shortcut = FrameConv(in_channels, out_channels, 1, 1, rngs=rngs) if in_channels != out_channels else None

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        x = constrain(x_BHWC, "batch", "height", None, None)  # or the shortcut would have its channels split
        y = self.conv2(jax.nn.silu(self.norm2(self.conv1(jax.nn.silu(self.norm1(x))))))
        return y + (x if self.shortcut is None else self.shortcut(x))


class Middle(nnx.Module):
    """Two residual blocks with one head of attention over all pixels between them, at the lowest resolution."""

    def __init__(self, width: int, *, rngs: Keys):
        self.first, self.last = ResBlock(width, width, rngs=rngs), ResBlock(width, width, rngs=rngs)
        self.norm = PixelNorm(width)
        self.qkv = Linear(width, 3 * width, ("embed", "heads"), parts=3, over=PIXELS, rngs=rngs)
        self.out = Linear(width, width, ("heads", "embed"), over=PIXELS, rngs=rngs)

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        x = self.first(x_BHWC)
        b, h, w, c = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, h * w, 3, 1, c)
        attended = attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]).reshape(b, h, w, c)
        return self.last(x + self.out(attended))


class Level(nnx.Module):
    """Residual blocks at one resolution and, unless it is the last, the convolutions that change resolution and would
    change the rate of frames."""

    def __init__(self, in_channels, width, depth, resample: Conv | None, frames: FrameConv | None, rngs: Keys):
        self.blocks = nnx.List([ResBlock(width if i else in_channels, width, rngs=rngs) for i in range(depth)])
        self.resample, self.frames = resample, frames

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        for block in self.blocks:
            x_BHWC = block(x_BHWC)
        return x_BHWC


class Encoder(nnx.Module):
    """Image to the moments of the latents: [B, H, W, channels] -> [B, H / f, W / f, 2 latent_channels]."""

    def __init__(self, config: FrameAutoencoderConfig, *, rngs: Keys):
        widths, last = config.widths, len(config.multipliers) - 1
        self.conv_in = FrameConv(config.channels, config.base_channels, rngs=rngs)
        # padded below and to the right only, as the released weights were trained
        down = lambda n: Conv(n, n, stride=2, padding=((0, 1), (0, 1)), rngs=rngs)
        frames = lambda n, i: FrameConv(n, n, 1, rngs=rngs) if config.temporal[i] else None
        self.levels = nnx.List([
            Level(widths[i - 1] if i else config.base_channels, n, config.layers_per_block, *(
                (down(n), frames(n, i)) if i < last else (None, None)), rngs)
            for i, n in enumerate(widths)
        ])  # fmt: skip
        self.middle = Middle(widths[-1], rngs=rngs)
        self.norm_out = PixelNorm(widths[-1])
        self.conv_out = FrameConv(widths[-1], 2 * config.latent_channels, rngs=rngs)

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        return self.conv_out(self.hidden(x_BHWC))

    def hidden(self, x_BHWC: jax.Array) -> jax.Array:
        """What the last convolution reads the moments from: [B, H / f, W / f, D]."""
        x = self.conv_in(x_BHWC)
        for level in self.levels:
            x = level(x)
            x = x if level.resample is None else level.resample(x)
        return jax.nn.silu(self.norm_out(self.middle(x)))


class Decoder(nnx.Module):
    """Latents to image: [B, h, w, latent_channels] -> [B, f h, f w, channels]."""

    def __init__(self, config: FrameAutoencoderConfig, *, rngs: Keys):
        widths, last = config.widths[::-1], len(config.multipliers) - 1
        self.conv_in = FrameConv(config.latent_channels, widths[0], rngs=rngs)
        self.middle = Middle(widths[0], rngs=rngs)
        up = lambda n: Conv(n, n // 2, rngs=rngs)
        frames = lambda n, i: FrameConv(n, 2 * n, 1, rngs=rngs) if config.temporal[::-1][i] else None
        self.levels = nnx.List([
            Level(widths[i - 1] // 2 if i else n, n, config.layers_per_block + 1, *(
                (up(n), frames(n, i)) if i < last else (None, None)), rngs)
            for i, n in enumerate(widths)
        ])  # fmt: skip
        self.norm_out = PixelNorm(widths[-1])
        self.conv_out = FrameConv(widths[-1], config.channels, rngs=rngs)

    def __call__(self, z_BHWC: jax.Array) -> jax.Array:
        x = self.middle(self.conv_in(z_BHWC))
        for level in self.levels:
            x = level(x)
            x = x if level.resample is None else upsample(x, level.resample)
        return self.conv_out(jax.nn.silu(self.norm_out(x)))


class FrameAutoencoder(nnx.Module):
    """`encode` gives the Gaussian posterior of the latents, `decode` the image of latents; both unstandardized."""

    def __init__(self, config: FrameAutoencoderConfig, *, rngs: Keys):
        self.config, latent = config, config.latent_channels
        self.encoder, self.decoder = Encoder(config, rngs=rngs), Decoder(config, rngs=rngs)
        self.quant = FrameConv(2 * latent, 2 * latent, 1, 1, rngs=rngs)
        self.post_quant = FrameConv(latent, latent, 1, 1, rngs=rngs)

    def encode(self, x_BHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Images in [-1, 1] to float32 (mean, log variance), each [B, H / f, W / f, latent_channels].

        The log variance is clipped to [-30, 20]. Raises ValueError when H or W is no multiple of f.
        """
        h, w = x_BHWC.shape[1:3]
        if h % self.config.factor or w % self.config.factor:
            raise ValueError(f"an image of {h} x {w} cannot be encoded; use multiples of {self.config.factor} pixels")
        moments = self.quant(self.encoder(x_BHWC.astype(self.config.dtype)))
        mean, logvar = jnp.split(moments.astype(jnp.float32), 2, -1)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def features(self, x_BHWC: jax.Array) -> jax.Array:
        """Mean and standard deviation over an image of what its moments are read from, float32 [B, 2 D]."""
        hidden = self.encoder.hidden(x_BHWC.astype(self.config.dtype)).astype(jnp.float32)
        return jnp.concatenate([hidden.mean((1, 2)), hidden.std((1, 2))], -1)

    def decode(self, z_BHWC: jax.Array) -> jax.Array:
        """Latents [B, h, w, latent_channels] to float32 images [B, f h, f w, channels], about [-1, 1], unclipped."""
        return self.decoder(self.post_quant(z_BHWC.astype(self.config.dtype))).astype(jnp.float32)


FRAME_AUTOENCODER = Family(
    "frame_autoencoder", FrameAutoencoderConfig, FrameAutoencoder, PRESETS,
    role="autoencoder",
    convolves=True,
    blocks=lambda config: 2 * config.layers_per_block * len(config.multipliers),
    small=lambda config: dict(base_channels=8, layers_per_block=1),
)  # fmt: skip
