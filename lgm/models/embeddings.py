"""Embeddings of time and place, and the cutting of images into tokens."""

from __future__ import annotations

import math

import einops
import jax
import jax.numpy as jnp
import numpy as np

PERIOD = 10_000.0


def timestep_embedding(t_B: jax.Array, size: int = 256) -> jax.Array:
    """[B, size] float32: `sinusoids` of 1000 t for t in [0, 1]; 1000 t is the timestep of the released models."""
    return sinusoids(1000.0 * t_B.astype(jnp.float32), size)


def sinusoids(values: jax.Array, size: int) -> jax.Array:
    """[..., size] float32: cosines, then sines, of `values` at size / 2 frequencies 10,000^(-2 k / size).

    The frequencies are rounded once, from float32 exponents, as torch's exp does it: at the angles of late timesteps,
    near 1000, one unit in their last place is 6e-5 of a turn's radian, and a network trained on others sees it.
    """
    half = size // 2
    exponents = np.float32(-math.log(PERIOD)) * np.arange(half, dtype=np.float32) / np.float32(half)
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = values.astype(jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


def sincos_2d(
    width: int, rows: int, columns: int, table: int, base: int, scale: float | None = None, offset: float = 0.0
) -> np.ndarray:
    """[rows * columns, width] float32: the middle of a table x table grid of 2-D sine-cosine positions.

    The p-th row or column stands for the place scale p - offset. The default scale is base / table, so that a table
    larger than the `base` grid refines it (2403.03206, 5.3.2). The first half of the width encodes the column, the
    second the row; each has sines, then cosines.
    """
    if max(rows, columns) > table:
        raise ValueError(f"{rows} x {columns} exceed the table of {table} x {table} positions; raise position_size")
    frequencies = 1.0 / 10_000.0 ** (np.arange(width // 4) / (width / 4))

    def encode(count):
        places = np.arange(count, dtype=np.float32) + (table - count) // 2
        places = places / np.float32(table / base) if scale is None else places * np.float32(scale)
        angles = (places - np.float32(offset)).astype(np.float64)[:, None] * frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], -1)

    row, column = encode(rows)[:, None], encode(columns)[None]
    grid = np.concatenate(np.broadcast_arrays(column, row), -1)
    return grid.reshape(rows * columns, width).astype(np.float32)


def patchify(x_BHWC: jax.Array, patch: int) -> jax.Array:
    """[B, H, W, C] -> tokens [B, (H / p) (W / p), p p C], rows first."""
    return einops.rearrange(x_BHWC, "b (h p) (w q) c -> b (h w) (p q c)", p=patch, q=patch)


def unpatchify(x_BTD: jax.Array, patch: int, rows: int) -> jax.Array:
    """The inverse of `patchify` for a grid of `rows` rows."""
    return einops.rearrange(x_BTD, "b (h w) (p q c) -> b (h p) (w q) c", p=patch, q=patch, h=rows)
