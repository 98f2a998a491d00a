"""Random keys for the parameters of a network that is being built."""

from __future__ import annotations

import jax


class Keys:
    """`rngs` of a module: a key for each parameter, the same ones as `flax.Keys(key)` gives.

    Flax counts keys in an array. While a program is traced, what Flax asks of that array has JAX search the program for
    the array's origin, once a parameter, which was half of the time in which a U-Net is built; this counts in an int.
    """

    def __init__(self, key: jax.Array | int):
        self.key = jax.random.key(key) if isinstance(key, int) else key
        self.count = 0

    def params(self) -> jax.Array:
        """The next key."""
        self.count += 1
        return jax.random.fold_in(self.key, self.count - 1)
