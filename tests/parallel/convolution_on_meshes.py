"""Convolutions whose rows, channels and examples are split over 8 fake CPU devices against those of one, values and
gradients; prints the relative distances as JSON. A program of its own: the number of devices is fixed at start."""

import json
import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from flax import nnx  # noqa: E402

from lgm.models.convolution import Conv, upsample  # noqa: E402
from lgm.models.keys import Keys
from lgm.parallel import constrain, make_layout, using  # noqa: E402

EVERY, ROWS = dict(fsdp=2, tensor=2, context=2), dict(context=8)
CASES = [  # (mesh, options of Conv, doubled first?)
    (EVERY, dict(axes=("channels", "conv")), False),
    (EVERY, dict(), False),
    (EVERY, dict(stride=2), False),
    (EVERY, dict(stride=2, padding=((0, 1), (0, 1))), False),  # the autoencoders'
    (EVERY, dict(), True),
    (EVERY, dict(size=5), False),
    (ROWS, dict(), False),
    (ROWS, dict(stride=2), False),  # 8 rows on 8 devices become 4: whole on every one
    (ROWS, dict(padding=((0, 0), (0, 0))), False),  # 6 rows: likewise
]


def value_and_gradients(layout, options, doubled):
    rng = np.random.default_rng(0)
    options = dict(size=3) | options
    graph, params = nnx.split(Conv(8, 16, options.pop("size"), **options, rngs=Keys(0)))
    x = jnp.asarray(rng.normal(size=(2, 8, 8, 8)), jnp.float32)

    def scalar(params, x):
        conv = nnx.merge(graph, params)
        with using(layout):
            x = constrain(x, "batch", "height", None, None)
            y = upsample(x, conv) if doubled else conv(x)
        return jnp.sum(y * jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)), y

    gradients, y = jax.jit(jax.grad(scalar, (0, 1), has_aux=True))(params, x)
    return [np.asarray(leaf) for leaf in jax.tree.leaves((y, gradients))]


if __name__ == "__main__":
    for mesh, options, doubled in CASES:
        one = value_and_gradients(None, options, doubled)
        many = value_and_gradients(make_layout({"data": 1} | mesh), options, doubled)
        print(json.dumps([float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(many, one, strict=True)]),
              flush=True)  # fmt: skip
