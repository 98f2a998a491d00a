"""The KL autoencoder of latent diffusion (Rombach et al. 2022, 2112.10752), laid out as diffusers' AutoencoderKL."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import einops
import jax
import jax.numpy as jnp
from flax import nnx

from lgm.bounds import Count, Finite, Positive
from lgm.models.attention import attention
from lgm.models.convolution import Conv, GroupNorm, ResBlock, upsample
from lgm.models.keys import Keys
from lgm.models.layers import PIXELS, Linear
from lgm.models.records import Family

EPSILON = 1e-6  # of every group norm


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """Images [B, H, W, channels] in [-1, 1] to latents [B, H / f, W / f, latent_channels].

    f = patch_size x 2^(levels - 1). block_channels has one width a level, from the image's resolution down. A
    patch_size above 1 (none of the released models) folds patches of pixels into channels before the first level and
    back after the last, which spares the wide, shallow passes that cost a small machine most of its time. `linear_skip`
    (likewise) adds a linear map of f x f patches to latents and back around encoder and decoder, whose last
    convolutions then start at zero: the network begins as a linear autoencoder and learns what a linear one cannot do,
    as the shortcuts of DC-AE (Chen et al. 2024, 2410.10733) let it. `scale`, `shift` or, a channel,
    `latents_mean` and `latents_std` say how latents are standardized for a denoiser (see `standardize`); with k x k
    values a channel they are those of each place in patches of k x k latent pixels, as Flux.2 has them.
    """

    channels: Count = 3
    latent_channels: Count = 4
    block_channels: tuple[Count, ...] = (128, 256, 512, 512)
    layers_per_block: Count = 2
    patch_size: Count = 1
    linear_skip: bool = False
    norm_groups: Count = 32
    mid_attention: bool = True
    use_quant_conv: bool = False
    use_post_quant_conv: bool = False
    scale: Positive = 1.0
    shift: Finite = 0.0
    latents_mean: tuple[Finite, ...] | None = None
    latents_std: tuple[Positive, ...] | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        for width in self.block_channels:
            if width % self.norm_groups:
                raise ValueError(f"norm_groups={self.norm_groups} does not divide block_channels={self.block_channels}")
        if (self.latents_mean is None) != (self.latents_std is None):
            raise ValueError("latents_mean and latents_std go together; give both or neither")
        for name in ("latents_mean", "latents_std"):
            values = getattr(self, name)
            if values is not None and len(values) != self.latent_channels * side(self) ** 2:
                raise ValueError(f"{name} has {len(values)} values; latent_channels={self.latent_channels} are needed, "
                                 "or as many for each place in a square patch")

    @property
    def factor(self) -> int:
        """Image pixels a latent pixel, in each direction."""
        return self.patch_size * 2 ** (len(self.block_channels) - 1)


_RELEASED = dict(block_channels=(128, 256, 512, 512), layers_per_block=2, norm_groups=32)
_QUANT = dict(use_quant_conv=True, use_post_quant_conv=True)

# the released autoencoders, as arguments of AutoencoderConfig
PRESETS = {
    "sd15": dict(_RELEASED, **_QUANT, latent_channels=4, scale=0.18215),
    "sdxl": dict(_RELEASED, **_QUANT, latent_channels=4, scale=0.13025),
    "sd3": dict(_RELEASED, latent_channels=16, scale=1.5305, shift=0.0609),
    "flux": dict(_RELEASED, latent_channels=16, scale=0.3611, shift=0.1159),
    "flux2": dict(_RELEASED, **_QUANT, latent_channels=32),  # whose statistics stand with its weights
}


class Attention(nnx.Module):
    """One head of self-attention over all pixels, added to its input."""

    def __init__(self, channels: int, groups: int, *, rngs: Keys):
        self.norm = GroupNorm(channels, groups, epsilon=EPSILON, silu=False)
        self.qkv = Linear(channels, 3 * channels, ("embed", "heads"), parts=3, over=PIXELS, rngs=rngs)
        self.out = Linear(channels, channels, ("heads", "embed"), over=PIXELS, rngs=rngs)

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        b, h, w, c = x_BHWC.shape
        qkv = self.qkv(self.norm(x_BHWC)).reshape(b, h * w, 3, 1, c)
        y = attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]).reshape(b, h, w, c)
        return x_BHWC + self.out(y)


class Middle(nnx.Module):
    """Two residual blocks with attention between them, at the lowest resolution."""

    def __init__(self, config: AutoencoderConfig, *, rngs: Keys):
        width = config.block_channels[-1]
        block = lambda: ResBlock(width, width, groups=config.norm_groups, epsilon=EPSILON, rngs=rngs)
        self.first, self.last = block(), block()
        self.attention = Attention(width, config.norm_groups, rngs=rngs) if config.mid_attention else None

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        x = self.first(x_BHWC)
        x = x if self.attention is None else self.attention(x)
        return self.last(x)


class Level(nnx.Module):
    """Residual blocks at one resolution and, unless it is the last, the convolution that changes resolution."""

    def __init__(self, in_channels, out_channels, depth, config: AutoencoderConfig, resample: Conv | None, rngs):
        block = lambda n: ResBlock(n, out_channels, groups=config.norm_groups, epsilon=EPSILON, rngs=rngs)
        self.blocks = nnx.List([block(out_channels if i else in_channels) for i in range(depth)])
        self.resample = resample

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        for block in self.blocks:
            x_BHWC = block(x_BHWC)
        return x_BHWC


class Encoder(nnx.Module):
    """Image to the moments of the latents: [B, H, W, channels] -> [B, H / f, W / f, 2 latent_channels]."""

    def __init__(self, config: AutoencoderConfig, *, rngs: Keys):
        widths, last = config.block_channels, len(config.block_channels) - 1
        self.conv_in = Conv(config.channels * config.patch_size**2, widths[0], rngs=rngs)
        # padded below and to the right only, as the released weights were trained
        down = lambda n: Conv(n, n, stride=2, padding=((0, 1), (0, 1)), rngs=rngs)
        self.levels = nnx.List([
            Level(widths[max(i - 1, 0)], n, config.layers_per_block, config, down(n) if i < last else None, rngs)
            for i, n in enumerate(widths)
        ])
        self.middle = Middle(config, rngs=rngs)
        self.norm_out = GroupNorm(widths[-1], config.norm_groups, epsilon=EPSILON)
        self.conv_out = Conv(widths[-1], 2 * config.latent_channels, zero=config.linear_skip, rngs=rngs)

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        return self.conv_out(self.hidden(x_BHWC))

    def hidden(self, x_BHWC: jax.Array) -> jax.Array:
        """What the last convolution reads the moments from: [B, H / f, W / f, block_channels[-1]]."""
        x = self.conv_in(x_BHWC)
        for level in self.levels:
            x = level(x)
            x = x if level.resample is None else level.resample(x)
        return self.norm_out(self.middle(x))


class Decoder(nnx.Module):
    """Latents to image: [B, h, w, latent_channels] -> [B, f h, f w, channels]."""

    def __init__(self, config: AutoencoderConfig, *, rngs: Keys):
        widths, last = config.block_channels[::-1], len(config.block_channels) - 1
        self.conv_in = Conv(config.latent_channels, widths[0], rngs=rngs)
        self.middle = Middle(config, rngs=rngs)
        up = lambda n: Conv(n, n, rngs=rngs)
        self.levels = nnx.List([
            Level(widths[max(i - 1, 0)], n, config.layers_per_block + 1, config, up(n) if i < last else None, rngs)
            for i, n in enumerate(widths)
        ])
        self.norm_out = GroupNorm(widths[-1], config.norm_groups, epsilon=EPSILON)
        self.conv_out = Conv(widths[-1], config.channels * config.patch_size**2, zero=config.linear_skip, rngs=rngs)

    def __call__(self, z_BHWC: jax.Array) -> jax.Array:
        x = self.middle(self.conv_in(z_BHWC))
        for level in self.levels:
            x = level(x)
            x = x if level.resample is None else upsample(x, level.resample)
        return self.conv_out(self.norm_out(x))


class Autoencoder(nnx.Module):
    """`encode` gives the Gaussian posterior of the latents, `decode` the image of latents; both unstandardized."""

    def __init__(self, config: AutoencoderConfig, *, rngs: Keys):
        self.config = config
        self.encoder, self.decoder = Encoder(config, rngs=rngs), Decoder(config, rngs=rngs)
        latent = config.latent_channels
        self.quant = Conv(2 * latent, 2 * latent, 1, rngs=rngs) if config.use_quant_conv else None
        self.post_quant = Conv(latent, latent, 1, rngs=rngs) if config.use_post_quant_conv else None
        patch = config.channels * config.factor**2
        skip = config.linear_skip
        self.linear_in = Linear(patch, latent, (None, None), over=PIXELS, rngs=rngs) if skip else None
        self.linear_out = Linear(latent, patch, (None, None), over=PIXELS, rngs=rngs) if skip else None

    def encode(self, x_BHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Images in [-1, 1] to float32 (mean, log variance), each [B, H / f, W / f, latent_channels].

        The log variance is clipped to [-30, 20]. Raises ValueError when H or W is no multiple of f.
        """
        h, w = x_BHWC.shape[1:3]
        if h % self.config.factor or w % self.config.factor:
            raise ValueError(f"an image of {h} x {w} cannot be encoded; use multiples of {self.config.factor} pixels")
        x = x_BHWC.astype(self.config.dtype)
        moments = self.encoder(fold(x, self.config.patch_size))
        moments = moments if self.quant is None else self.quant(moments)
        mean, logvar = jnp.split(moments.astype(jnp.float32), 2, -1)
        if self.linear_in is not None:
            mean = mean + self.linear_in(fold(x, self.config.factor))
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def features(self, x_BHWC: jax.Array) -> jax.Array:
        """Mean and standard deviation over an image of what its moments are read from, float32 [B, 2 D]."""
        hidden = self.encoder.hidden(fold(x_BHWC.astype(self.config.dtype), self.config.patch_size))
        hidden = hidden.astype(jnp.float32)
        return jnp.concatenate([hidden.mean((1, 2)), hidden.std((1, 2))], -1)

    def decode(self, z_BHWC: jax.Array) -> jax.Array:
        """Latents [B, h, w, latent_channels] to float32 images [B, f h, f w, channels], about [-1, 1], unclipped."""
        z = z_BHWC.astype(self.config.dtype)
        z = z if self.post_quant is None else self.post_quant(z)
        x = unfold(self.decoder(z), self.config.patch_size)
        if self.linear_out is not None:
            x = x + unfold(self.linear_out(z), self.config.factor)
        return x.astype(jnp.float32)

    def reconstruct(self, x_BHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(decode(mean), mean) of images: what a denoiser's latents keep of them."""
        mean, _ = self.encode(x_BHWC)
        return self.decode(mean), mean


def fold(x_BHWC: jax.Array, patch: int) -> jax.Array:
    """Patches of patch x patch pixels into channels: [B, H, W, C] -> [B, H / patch, W / patch, patch^2 C]."""
    return einops.rearrange(x_BHWC, "b (h p) (w q) c -> b h w (p q c)", p=patch, q=patch)


def unfold(x_BHWC: jax.Array, patch: int) -> jax.Array:
    """The inverse of `fold`."""
    return einops.rearrange(x_BHWC, "b h w (p q c) -> b (h p) (w q) c", p=patch, q=patch)


def side(config: AutoencoderConfig) -> int:
    """How many latent pixels a side the patches have, for whose places latents are standardized each."""
    return math.isqrt(len(config.latents_mean) // config.latent_channels) if config.latents_mean else 1


def _statistics(config: AutoencoderConfig, z_BHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Means and deviations that broadcast to latents."""
    k, (h, w) = side(config), z_BHWC.shape[1:3]
    if h % k or w % k:
        raise ValueError(f"latents of {h} x {w} do not divide into patches of {k}, for which they are standardized")
    both = (jnp.asarray(values).reshape(-1, k, k) for values in (config.latents_mean, config.latents_std))
    return tuple(jnp.tile(values.transpose(1, 2, 0), (1, 1, 1) if k == 1 else (h // k, w // k, 1)) for values in both)


def standardize(config: AutoencoderConfig, z_BHWC: jax.Array) -> jax.Array:
    """Latents as the denoiser sees them, of about unit variance: (z - shift) * scale, or (z - mean) / std * scale."""
    if config.latents_mean is not None:
        mean, std = _statistics(config, z_BHWC)
        z_BHWC = (z_BHWC - mean) / std
    return (z_BHWC - config.shift) * config.scale


def standardize_log_variance(config: AutoencoderConfig, logvar_BHWC: jax.Array) -> jax.Array:
    """Log variance of standardised latents, of that of latents."""
    factor = jnp.abs(jnp.asarray(config.scale))
    if config.latents_mean is not None:
        factor = factor / _statistics(config, logvar_BHWC)[1]
    return logvar_BHWC + 2.0 * jnp.log(factor)


def unstandardize(config: AutoencoderConfig, z_BHWC: jax.Array) -> jax.Array:
    """The inverse of `standardize`: what `decode` takes."""
    z_BHWC = z_BHWC / config.scale + config.shift
    if config.latents_mean is not None:
        mean, std = _statistics(config, z_BHWC)
        z_BHWC = z_BHWC * std + mean
    return z_BHWC


AUTOENCODER = Family(
    "autoencoder", AutoencoderConfig, Autoencoder, PRESETS,
    role="autoencoder",
    convolves=True,
    blocks=lambda config: 2 * config.layers_per_block * len(config.block_channels),
    small=lambda config: dict(block_channels=[16] * len(config.block_channels), layers_per_block=1, norm_groups=4),
)  # fmt: skip
