"""Arrays in another type of floats, where their values have an equal in it."""

from typing import Any

import jax.numpy as jnp
import numpy as np


def cast(name: str, tensor: np.ndarray, dtype: Any) -> np.ndarray:
    """The floats of a tensor as `dtype`, None for as they are; other numbers as they are.

    Raises ValueError, one line with the tensor's `name`, where a value then is NaN or infinite.
    """
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        return tensor
    with np.errstate(over="ignore"):
        changed = tensor if dtype is None else tensor.astype(dtype)
    if is_finite(changed):
        return changed
    if not is_finite(tensor):
        raise ValueError(f"tensor {name!r} holds values that are not finite; it is not written")
    most = float(np.abs(tensor.astype(np.float64)).max())
    raise ValueError(f"tensor {name!r} holds {most:.6g}, which {jnp.dtype(dtype).name} cannot; "
                     f"{'float32' if dtype == jnp.bfloat16 else 'bfloat16 or float32'} would do")


def is_finite(x: np.ndarray) -> bool:
    """Whether no value is NaN or infinite; a sum tells, which reads the array once and makes no other."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return True
    if x.dtype.itemsize == 2:  # numpy adds up 16-bit floats slowly: all bits of the exponent are set in what is not
        exponent = 0x7F80 if x.dtype == jnp.bfloat16 else 0x7C00
        return not ((x.view(np.uint16) & exponent) == exponent).any()
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(x.sum()) or np.isfinite(x).all())
