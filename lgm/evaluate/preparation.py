"""How images of 8 bits become what a feature network takes: resizing, cropping, scaling, each as its protocol says.

A filter is a matrix a direction, so that one program resizes as TensorFlow 1, PyTorch or Pillow would, on any device.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

Filter = Literal["bilinear_tf1", "bilinear_torch", "bicubic_torch", "bilinear_pillow", "bicubic_pillow"]


@dataclasses.dataclass(frozen=True)
class Preparation:
    """From uint8 images of any size to a network's input.

    size: side of the input. filter: what resizes, named by the library whose numbers it gives; Pillow's are
    antialiased and end within 0 to 255, the others do neither. rounded: whether grey levels are rounded after each
    direction, as Pillow does with pictures of 8 bits. short: the shorter side after resizing, of which the middle
    `size` x `size` are taken; None where both sides become `size`, whatever the image's shape. mean, std: in grey
    levels, a channel each; the input is (x - mean) / std.
    """

    size: int
    filter: Filter
    rounded: bool = False
    short: int | None = None
    mean: tuple[float, ...] = (127.5,) * 3
    std: tuple[float, ...] = (127.5,) * 3

    def __call__(self, images_BHWC: jax.Array) -> jax.Array:
        """[B, size, size, 3] float32 of uint8 [B, H, W, 3]."""
        x = images_BHWC.astype(jnp.float32)
        height, width = x.shape[1:3]
        high, wide = self._resized(height, width)
        for axis, inputs, outputs in ((2, width, wide), (1, height, high)):  # Pillow's order
            if inputs != outputs:
                weights = matrix(self.filter, inputs, outputs)
                x = _rounded(x, axis, weights) if self.rounded else _along(x, axis, weights)
        x = jnp.clip(x, 0, 255) if self.filter.endswith("pillow") else x
        top, left = (high - self.size) // 2, (wide - self.size) // 2
        x = x[:, top : top + self.size, left : left + self.size]
        return (x - jnp.asarray(self.mean, jnp.float32)) / jnp.asarray(self.std, jnp.float32)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.short is None:
            return self.size, self.size
        scaled = lambda side: max(self.short, int(self.short * side / min(height, width)))
        return scaled(height), scaled(width)


def _along(x_BHWC: jax.Array, axis: int, matrix_OI: np.ndarray) -> jax.Array:
    return jnp.moveaxis(jnp.tensordot(x_BHWC, matrix_OI.astype(np.float32), (axis, 1)), -1, axis)


def _rounded(x_BHWC: jax.Array, axis: int, matrix_OI: np.ndarray) -> jax.Array:
    """Whole grey levels to whole grey levels in Pillow's arithmetic, whose weights are multiples of 2^-22.

    As two numbers of 11 bits they make products with grey levels whose sums float32 holds exactly.
    """
    scaled = matrix_OI * 2**22
    whole = np.trunc(scaled + np.copysign(0.5, scaled))
    high = np.floor(whole / 2**11)
    sums = [_along(x_BHWC, axis, part).astype(jnp.int32) for part in (high, whole - high * 2**11)]
    return jnp.clip(((sums[0] << 11) + sums[1] + (1 << 21)) >> 22, 0, 255).astype(jnp.float32)


def matrix(filter: Filter, inputs: int, outputs: int) -> np.ndarray:
    """[outputs, inputs] float64: what each pixel of a resized line takes of each pixel of a line."""
    kind, _, library = filter.partition("_")
    scale, place = inputs / outputs, np.arange(outputs)
    weights = np.zeros((outputs, inputs))
    if library == "pillow":
        stretch = max(scale, 1.0)  # antialiasing: the filter grows with the pixels that it covers
        centre = (place + 0.5) * scale
        reach = (1.0 if kind == "bilinear" else 2.0) * stretch
        first = np.maximum((centre - reach + 0.5).astype(int), 0)
        last = np.minimum((centre + reach + 0.5).astype(int), inputs)
        near = (np.arange(inputs) >= first[:, None]) & (np.arange(inputs) < last[:, None])
        offset = (np.arange(inputs) + 0.5 - centre[:, None]) / stretch
        weights = np.where(near, _triangle(offset) if kind == "bilinear" else _cubic(offset, -0.5), 0.0)
        weights /= weights.sum(1, keepdims=True)
    else:
        source = place * scale if library == "tf1" else (place + 0.5) * scale - 0.5
        source = np.maximum(source, 0) if kind == "bilinear" else source
        low = np.floor(source).astype(int)
        for tap in (0, 1) if kind == "bilinear" else (-1, 0, 1, 2):
            offset = low + tap - source
            value = _triangle(offset) if kind == "bilinear" else _cubic(offset, -0.75)
            np.add.at(weights, (place, np.clip(low + tap, 0, inputs - 1)), value)
    return weights


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys's cubic convolution (1981) with the slope `a` at 1."""
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
