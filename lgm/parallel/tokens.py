"""Two kinds of tokens as one sequence that is split over the `context` axis: every device has its share of both.

Attention does not care in which order tokens come. Joined share by share, text and image tokens stay on the device
where they were, and no byte is sent; on one device that is plain concatenation.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from lgm.parallel.layout import current

Array = TypeVar("Array", jax.Array, np.ndarray)


def join(first: Array, second: Array, axis: int = 1) -> Array:
    """The tokens along `axis` of both arrays as one sequence; `part` undoes it."""
    xp = np if isinstance(first, np.ndarray) else jnp
    shares = _shares(first.shape[axis], second.shape[axis])
    if shares == 1:
        return xp.concatenate([first, second], axis)
    cut = lambda x: x.reshape(*x.shape[:axis], shares, x.shape[axis] // shares, *x.shape[axis + 1 :])
    both = xp.concatenate([cut(first), cut(second)], axis + 1)
    return both.reshape(*first.shape[:axis], -1, *first.shape[axis + 1 :])


def part(joined_BTD: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The `count` first kind's tokens of a joined sequence, and the others."""
    b, total, *rest = joined_BTD.shape
    shares = _shares(count, total - count)
    shared = joined_BTD.reshape(b, shares, total // shares, *rest)
    first, second = shared[:, :, : count // shares], shared[:, :, count // shares :]
    return first.reshape(b, count, *rest), second.reshape(b, total - count, *rest)


def padded(text_BLD: jax.Array, mask_BL: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
    """Text tokens and their mask, lengthened by tokens that do not count to a length that `context` divides."""
    layout = current()
    extra = 0 if layout is None else -text_BLD.shape[1] % layout.size("context")
    if not extra:
        return text_BLD, mask_BL
    mask_BL = jnp.ones(text_BLD.shape[:2], bool) if mask_BL is None else mask_BL
    return jnp.pad(text_BLD, ((0, 0), (0, extra), (0, 0))), jnp.pad(mask_BL, ((0, 0), (0, extra)))


def _shares(*counts: int) -> int:
    """Into how many shares sequences of these lengths are cut."""
    layout = current()
    size = 1 if layout is None else layout.size("context")
    return 1 if any(count % size for count in counts) else size
