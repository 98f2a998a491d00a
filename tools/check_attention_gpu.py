"""Compare the GPU's fused attention with XLA's, values and gradients, for every form of mask that networks use.

    python tools/check_attention_gpu.py

To be run wherever a GPU is at hand. Each line is a case with the largest relative error of (output, dq, dk, dv) against
XLA in float32 on the same 16-bit inputs, and the one that XLA makes in 16 bits; a case fails where the fused kernel is
further off than a few roundings of its dtype. Exits with 1 where any fails.
"""

from __future__ import annotations

import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np

from lgm.models.attention import attention

# (queries, keys, heads, head size): SD's levels with 77 words, SD3 with its text, small runs of odd lengths
SHAPES = [(64, 64, 2, 32), (76, 76, 4, 32), (21, 5, 2, 64), (4096, 77, 8, 40), (1024, 77, 10, 64), (4429, 4429, 4, 64),
          (4096, 4429, 4, 64), (333, 4608, 2, 128)]  # fmt: skip
MASKS = {
    "none": lambda b, s: None,
    "all": lambda b, s: np.ones((b, s), bool),
    "ends early": lambda b, s: np.arange(s) < np.arange(1, b + 1)[:, None] * s // (b + 1),
    "starts late": lambda b, s: np.arange(s) >= np.arange(b)[:, None] + 1,
    "in shares": lambda b, s: np.tile(np.arange(s) % (s // 2 + 1) < s // 3 + 1, (b, 1)),
    "anything": lambda b, s: np.random.default_rng(3).random((b, s)) < 0.5,
    "one": lambda b, s: np.tile(np.arange(s) == s - 1, (b, 1)),
    "none in one example": lambda b, s: (np.arange(s) < s // 2) & (np.arange(b)[:, None] != 1),
}
ROUNDINGS = 8  # of the dtype's epsilon: of the weights, the sums and the gradients that pass through them


def results(name: str, q, k, v, mask, weight) -> list[np.ndarray]:
    """(output, dq, dk, dv) in float64."""

    @jax.jit
    def run(q, k, v, mask, weight):
        out, pull = jax.vjp(lambda *qkv: attention(*qkv, mask, name), q, k, v)
        return out, *pull(weight.astype(out.dtype))

    return [np.asarray(x, np.float64) for x in run(q, k, v, mask, weight)]


def main() -> int:
    """Run every case; the exit status."""
    if jax.default_backend() != "gpu":
        print(f"there is no GPU here, only {jax.devices()[0].device_kind}; run this where there is one")
        return 2
    failures = 0
    for (t, s, n, d), (form, make), dtype in itertools.product(SHAPES, MASKS.items(), (jnp.bfloat16, jnp.float16)):
        rng, b = np.random.default_rng(0), 3
        q, k, v, weight = (jnp.asarray(rng.normal(size=(b, x, n, d)), dtype) for x in (t, s, s, t))
        mask = make(b, s)
        exact = results("xla", *(x.astype(jnp.float32) for x in (q, k, v)), mask, weight)
        fused, plain = (results(name, q, k, v, mask, weight) for name in ("cudnn", "xla"))
        apart = lambda ours: [np.linalg.norm(x - y) / max(np.linalg.norm(y), 1e-30)
                              for x, y in zip(ours, exact, strict=True)]  # fmt: skip
        allowed = ROUNDINGS * float(jnp.finfo(dtype).eps)
        ours = apart(fused)
        failed = not all(np.isfinite(ours)) or max(ours) > allowed
        failures += failed
        print(f"{'FAIL' if failed else 'ok  '} {t:5} x {s:5} {n:3} heads of {d:3} {jnp.dtype(dtype).name:9} {form:20} "
              f"{' '.join(f'{x:.1e}' for x in ours)}  XLA's {max(apart(plain)):.1e}, allowed {allowed:.1e}", flush=True)
    print(f"{failures} cases failed")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
