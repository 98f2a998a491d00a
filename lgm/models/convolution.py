"""The convolutional parts that autoencoder and U-Net share: convolution, group norm, residual block, resampling.

Everything is channels last. Convolutions stand outside `lax.scan`: inside one XLA:CPU runs them 14 to 28 times slower.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from lgm.models.flops import textbook
from lgm.models.keys import Keys
from lgm.parallel import constrain, gathered
from lgm.parallel.halo import convolve_rows


class Conv(nnx.Module):
    """A square convolution with bias: [B, H, W, in] -> [B, H', W', out]; `padding` is ((top, bottom), ...).

    The weights are float32 and cast to the input's dtype, which is the dtype of the result. `axes` names the logical
    axes of the channels in and out.
    """

    def __init__(self, in_channels, out_channels, size=3, *, stride=1, padding=None, zero=False,
                 axes=("conv", "channels"), rngs: Keys):
        self.stride, self.axes = stride, axes
        self.padding = ((size // 2, size // 2),) * 2 if padding is None else padding
        init = nnx.initializers.zeros_init() if zero else nnx.initializers.lecun_normal()
        shape = (size, size, in_channels, out_channels)
        self.kernel = nnx.Param(init(rngs.params(), shape), axes=(None, None, *axes))
        self.bias = nnx.Param(jnp.zeros(out_channels), axes=axes[1:])

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        kernel, bias = self.weights(x_BHWC.dtype)
        return self.placed(convolve(x_BHWC, kernel, self.stride, self.padding) + bias)

    def weights(self, dtype) -> tuple[jax.Array, jax.Array]:
        """(kernel, bias) as arithmetic in `dtype` takes them."""
        kernel = gathered(self.kernel[...].astype(dtype), (None, None, *self.axes))
        return kernel, gathered(self.bias[...].astype(dtype), self.axes[1:])

    def placed(self, y_BHWC: jax.Array) -> jax.Array:
        """A result where the mesh wants it."""
        return constrain(y_BHWC, "batch", "height", None, self.axes[1])


def convolve(x_BHWC: jax.Array, kernel: jax.Array, stride: int, padding) -> jax.Array:
    """Cross-correlation of x [B, H, W, in] with a kernel [h, w, in, out]; a 1 x 1 one as the product that it is."""
    if kernel.shape[:2] == (1, 1) and stride == 1:
        return x_BHWC @ kernel[0, 0]
    return convolve_rows(_convolve, x_BHWC, kernel, stride, padding)


def _convolve(x_BHWC: jax.Array, kernel: jax.Array, stride: int, padding) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x_BHWC, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


class GroupNorm(nnx.Module):
    """Group normalization (Wu & He 2018, 1803.08494) with float32 statistics, optionally followed by SiLU."""

    def __init__(self, channels: int, groups: int, *, epsilon: float, silu: bool = True):
        if channels % groups:
            raise ValueError(f"norm_groups={groups} does not divide {channels} channels; choose a divisor")
        self.groups, self.epsilon, self.silu = groups, epsilon, silu
        self.scale = nnx.Param(jnp.ones(channels), axes=("channels",))
        self.bias = nnx.Param(jnp.zeros(channels), axes=("channels",))

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        def normalize(x_BHWC, scale, bias):
            y = group_norm(x_BHWC, scale, bias, self.groups, self.epsilon)
            return jax.nn.silu(y) if self.silu else y

        # backward recomputes from x rather than store float32 intermediates: less memory, and a tenth faster on a CPU
        scale, bias = (gathered(part[...], ("channels",)) for part in (self.scale, self.bias))
        return jax.checkpoint(normalize)(x_BHWC, scale, bias)


def group_norm(x_BHWC: jax.Array, scale: jax.Array, bias: jax.Array, groups: int, epsilon: float) -> jax.Array:
    """x normalized over space and the channels of its group, as one multiply-add an element.

    Both moments come from one pass over x, and normalization, scale and bias are folded into one factor and one offset
    a channel, which on a CPU takes a third of the time of the textbook order.
    """
    b, h, w, c = x_BHWC.shape
    x = x_BHWC.astype(jnp.float32)
    grouped = lambda sums_BC: sums_BC.reshape(b, groups, -1).sum(-1) / (h * w * c // groups)
    mean_BG, square_BG = grouped(x.sum((1, 2))), grouped(jnp.square(x).sum((1, 2)))
    inverse_BG = jax.lax.rsqrt(jnp.maximum(square_BG - jnp.square(mean_BG), 0.0) + epsilon)
    factor_BC = jnp.repeat(inverse_BG, c // groups, 1) * scale
    offset_BC = bias - jnp.repeat(mean_BG, c // groups, 1) * factor_BC
    return (x * factor_BC[:, None, None] + offset_BC[:, None, None]).astype(x_BHWC.dtype)


class ResBlock(nnx.Module):
    """norm, SiLU, conv, (+ shift), norm, SiLU, conv, added to the input (through a 1 x 1 conv if widths differ).

    shift_BC [B, out_channels] is what a time embedding adds between the convolutions. With `zero` the last convolution
    starts at zero, so that the block starts as its shortcut.
    """

    def __init__(self, in_channels, out_channels, *, groups, epsilon, zero=False, rngs: Keys):
        self.norm1 = GroupNorm(in_channels, groups, epsilon=epsilon)
        self.conv1 = Conv(in_channels, out_channels, axes=("channels", "conv"), rngs=rngs)
        self.norm2 = GroupNorm(out_channels, groups, epsilon=epsilon)
        self.conv2 = Conv(out_channels, out_channels, zero=zero, rngs=rngs)
        self.shortcut = Conv(in_channels, out_channels, 1, rngs=rngs) if in_channels != out_channels else None

    def __call__(self, x_BHWC: jax.Array, shift_BC: jax.Array | None = None) -> jax.Array:
        x_BHWC = constrain(x_BHWC, "batch", "height", None, None)  # or the shortcut would have its channels split
        h = self.conv1(self.norm1(x_BHWC))
        if shift_BC is not None:
            h = h + shift_BC[:, None, None]
        h = self.conv2(self.norm2(h))
        return h + (x_BHWC if self.shortcut is None else self.shortcut(x_BHWC))


def upsample(x_BHWC: jax.Array, conv: Conv, size: tuple[int, int] | None = None) -> jax.Array:
    """`conv` (3 x 3) over x with every pixel doubled in each direction, cut to `size` (one less than double) first."""
    b, h, w, c = x_BHWC.shape
    size = size or (2 * h, 2 * w)
    if size == (2 * h, 2 * w) and not textbook():
        return _upsample_phases(x_BHWC, conv)
    doubled = jnp.broadcast_to(x_BHWC[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
    return conv(doubled[:, : size[0], : size[1]])


def _upsample_phases(x_BHWC: jax.Array, conv: Conv) -> jax.Array:
    """The same from x itself, in 4/9 of the multiplications and, on a CPU, half the time.

    An output pixel of given parity sees 2 x 2 distinct pixels of x, some of them under several weights, which are
    summed beforehand: four 2 x 2 convolutions, whose outputs interlace.
    """
    b, h, w, _ = x_BHWC.shape
    kernel, bias = conv.weights(jnp.float32)
    rows = _parity_weights(kernel, 0)
    weights = [[k.astype(x_BHWC.dtype) for k in _parity_weights(row, 1)] for row in rows]
    phase = lambda p, q: convolve(x_BHWC, weights[p][q], 1, ((1 - p, p), (1 - q, q)))
    y = jnp.stack([jnp.stack([phase(p, q) for q in (0, 1)], 3) for p in (0, 1)], 2)
    return conv.placed(y.reshape(b, 2 * h, 2 * w, -1) + bias.astype(x_BHWC.dtype))


def _parity_weights(kernel: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """Two weights along `axis` from three: what an even and an odd output position puts on its two pixels."""
    first, middle, last = jnp.split(kernel, 3, axis)
    even = jnp.concatenate([first, middle + last], axis)
    odd = jnp.concatenate([first + middle, last], axis)
    return even, odd
