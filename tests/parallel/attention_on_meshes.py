"""Attention by every implementation on meshes of 8 fake CPU devices against that of one, values and gradients; prints
the relative distances as JSON. A program of its own: the number of devices is fixed at start."""

import json
import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from lgm.models.attention import attention  # noqa: E402
from lgm.parallel import make_layout, using  # noqa: E402

# (implementation, mesh, tokens, keys, is there a mask?); 21 tokens and 5 keys divide by nothing
CASES = [
    ("xla", dict(context=8), 32, 32, True),
    ("ring", dict(context=8), 32, 32, True),
    ("ring", dict(context=4, tensor=2), 21, 21, True),
    ("ring", dict(context=2, fsdp=2, data=2), 21, 21, False),
    ("ring", dict(context=8), 32, 5, True),
    ("ulysses", dict(context=4, data=2), 32, 32, True),
    ("ulysses", dict(context=2, tensor=2, fsdp=2), 21, 21, True),
    ("xla", dict(context=4, tensor=2), 32, 5, False),
    ("splash", dict(context=2, tensor=2, data=2), 32, 32, True),
]


def problem(tokens: int, keys: int, masked: bool):
    rng = np.random.default_rng(0)
    normal = lambda count: jnp.asarray(rng.normal(size=(4, count, 4, 8)), jnp.float32)
    mask = rng.random((4, keys)) < 0.6
    mask[:, 0], mask[0, : keys // 2] = True, False  # the first example's keys count on the later devices alone
    mask[0, -1] = True
    return normal(tokens), normal(keys), normal(keys), jnp.asarray(mask) if masked else None, normal(tokens)


def value_and_gradients(implementation, layout, q, k, v, mask, weight):
    def scalar(q, k, v):
        with using(layout):
            out = attention(q, k, v, mask, implementation)
        return jnp.sum(out * weight), out

    (_, out), gradients = jax.jit(jax.value_and_grad(scalar, (0, 1, 2), has_aux=True))(q, k, v)
    return [np.asarray(leaf) for leaf in (out, *gradients)]


if __name__ == "__main__":
    for implementation, mesh, tokens, keys, masked in CASES:
        arrays = problem(tokens, keys, masked)
        one = value_and_gradients("xla", None, *arrays)
        many = value_and_gradients(implementation, make_layout({"data": 1} | mesh), *arrays)
        print(json.dumps([float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(many, one, strict=True)]),
              flush=True)  # fmt: skip
