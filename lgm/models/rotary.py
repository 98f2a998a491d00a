"""Rotary position embedding (Su et al. 2021, 2104.09864): of a line, or of a grid, where each axis has its share of a
head's width."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

Array = np.ndarray | jax.Array
Table = tuple[Array, Array]  # cosines and sines [T, D / 2] or [B, T, D / 2], float32

PERIOD = 10_000.0


def check_axes(axes: Sequence[int], width: int, heads: int, count: int = 3) -> None:
    """Raise ValueError, one line, unless `heads` divide a `width` and `count` even `axes` share a head's channels."""
    if heads < 1 or width % heads:
        raise ValueError(f"heads={heads} does not divide width={width}; choose a divisor")
    if len(axes) != count or any(n < 2 or n % 2 for n in axes):
        words = {3: "three", 4: "four"}[count]
        raise ValueError(f"rotary_axes={axes} must be {words} even numbers, for channels turn in pairs")
    if sum(axes) != width // heads:
        raise ValueError(f"rotary_axes={axes} must sum to the width of a head, width / heads = {width // heads}")


def share_axes(head_size: int, share: float) -> tuple[int, int, int]:
    """The channels of a head that turn with the first coordinate, the row and the column, of which the latter two get
    about a `share` each. Raises ValueError, one line, where there are too few."""
    side = 2 * int(head_size * share / 2)
    if side < 2 or head_size % 2:
        raise ValueError(f"head_size={head_size} must be even and 6 or more: three even axes share its channels")
    return head_size - 2 * side, side, side


def rotary_grid(rows: int, columns: int, text: int, axes: tuple[int, int, int]) -> Table:
    """The angles of rows * columns image tokens, rows first, and of `text` tokens after them.

    A token's place is (0, row, column); text stands at the origin, where nothing is rotated.
    """
    row, column = np.indices((rows, columns)).reshape(2, -1)
    places = np.zeros((rows * columns + text, 3))
    places[: rows * columns, 1], places[: rows * columns, 2] = row, column
    return rotary_table(places, axes, PERIOD)


def rotary_table(places_TA: np.ndarray, axes: Sequence[int], period: float) -> Table:
    """The angles [T, D / 2] of tokens at the places [T, A], in float64 until they are turned by.

    The `axes` say how many channels of a head each coordinate turns: channels 2 i and 2 i + 1 of n by place x
    period^(-2 i / n).
    """
    angles = [places_TA[:, i, None] * period ** (-np.arange(0, n, 2) / n) for i, n in enumerate(axes)]
    angles_TD = np.concatenate(angles, -1)
    return np.cos(angles_TD).astype(np.float32), np.sin(angles_TD).astype(np.float32)


def rotary_places(places_BT: Sequence[jax.Array], ends: Sequence[int], axes: Sequence[int], period: float) -> Table:
    """The angles [B, T, D / 2] of tokens at whole-numbered places below `ends`, one array of them an axis.

    They are rounded to float32 once, from float64, as torch does it where it tabulates them.
    """
    parts = []
    for place_BT, end, n in zip(places_BT, ends, axes, strict=True):
        angles = (np.arange(end + 1)[:, None] * period ** (-np.arange(0, n, 2) / n)).astype(np.float32)
        parts.append([jnp.asarray(f(angles))[place_BT] for f in (np.cos, np.sin)])
    cos, sin = (jnp.concatenate(part, -1) for part in zip(*parts, strict=True))
    return cos, sin


def rotate(x_BTND: jax.Array, table: Table) -> jax.Array:
    """Queries or keys with every pair of neighbouring channels turned by its angle, in float32."""
    cos, sin = (part[..., None, :] for part in table)
    pairs = x_BTND.astype(jnp.float32).reshape(*x_BTND.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], -1)
    return turned.reshape(x_BTND.shape).astype(x_BTND.dtype)


def rotary_line(places: np.ndarray, width: int, period: float) -> Table:
    """The angles [T, width / 2] of places on a line, as torch rounds them to float32 for language models."""
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    frequencies = np.float32(1.0) / np.float32(period) ** exponents
    angles_TD = places.astype(np.float32)[:, None] * frequencies
    return np.cos(angles_TD), np.sin(angles_TD)


def rotate_halves(x_BTND: jax.Array, table: Table) -> jax.Array:
    """Queries or keys with channels i and i + D / 2 turned together, in float32, as language models pair them."""
    cos, sin = (part[..., None, :] for part in table)
    first, second = jnp.split(x_BTND.astype(jnp.float32), 2, -1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return turned.astype(x_BTND.dtype)
