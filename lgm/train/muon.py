"""Muon: momentum, orthogonalized by Newton-Schulz (Jordan et al. 2024; at scale Liu et al. 2025, 2502.16982).

The arithmetic is small and a network has many matrices, so that run one by one they cost mostly their own starts and,
laid out, minutes of compilation. Here all matrices of one shape go through one batched iteration, under a loop.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of x, x x' x, (x x')^2 x: steep at 0; singular values end at 0.7 to 1.2
ITERATIONS = 5
MOMENTUM = 0.95
RMS = 0.2  # root mean square of an update over its rate, AdamW's own: one rate serves both (2502.16982, sec. 2.2)
HIDDEN = "shifts"  # a U-Net's projections of time, one a residual block, fused and so at its border by name alone
TINY = 1e-8


class Matrix(NamedTuple):
    """How a parameter is read as matrices: `batch` axes of separate ones, then `inputs` axes of rows, a convolution's
    window among them."""

    batch: int
    inputs: int

    def size(self, shape: tuple[int, ...]) -> float:
        """Root mean square of an orthogonal matrix's update over its rate: `RMS`, and for a convolution less by the
        root of its window, as the weights are too."""
        return RMS / math.sqrt(math.prod(shape[self.batch : self.batch + self.inputs - 1]))


def muon(rate, b1: float, b2: float, eps: float, weight_decay: float, decays: Any) -> optax.GradientTransformation:
    """Muon for the hidden matrices, AdamW with Nesterov's look-ahead for everything else, at one rate."""
    labels = lambda params: jax.tree.map(
        lambda read: "adamw" if read is None else "muon", hidden_matrices(params), is_leaf=_is_read
    )
    matrices = optax.chain(
        optax.trace(MOMENTUM, nesterov=True), orthogonalize(),
        optax.add_decayed_weights(weight_decay, decays), optax.scale_by_learning_rate(rate),
    )  # fmt: skip
    adamw = optax.adamw(rate, b1, b2, eps, weight_decay=weight_decay, mask=decays, nesterov=True)
    return optax.partition({"muon": matrices, "adamw": adamw}, labels)


def hidden_matrices(params: Any) -> Any:
    """For every parameter how Muon reads it, or None where AdamW updates it: biases, norms, embeddings, and the layers
    at a network's border, which read or write what is no hidden feature."""

    def read(path, leaf):
        keys = [getattr(step, "key", None) for step in path]
        inner = len(keys) > 3 or HIDDEN in keys  # part of the system, layer at the border, kernel: three keys
        if keys[-1] != "kernel" or not inner:
            return None
        return Matrix(0, 3) if leaf.ndim == 4 else Matrix(leaf.ndim - 2, 1)  # a convolution's window is of its inputs

    return jax.tree_util.tree_map_with_path(read, params)


def _is_read(node: Any) -> bool:
    return node is None or isinstance(node, Matrix)


def orthogonalize() -> optax.GradientTransformation:
    """Every update becomes orthogonal matrices of `Matrix.size`."""

    def update(updates, state, params=None):
        del params
        leaves, tree = jax.tree.flatten(updates)
        reads = jax.tree.leaves(hidden_matrices(updates), is_leaf=lambda node: isinstance(node, Matrix))
        groups = defaultdict(list)  # shape, short side first -> its stacks as (leaf, was it so already, stack)
        for i, (leaf, (batch, inputs)) in enumerate(zip(leaves, reads, strict=True)):
            rows = math.prod(leaf.shape[batch : batch + inputs])
            stack = leaf.reshape(-1, rows, math.prod(leaf.shape[batch + inputs :]))
            wide = rows <= stack.shape[2]
            stack = stack if wide else stack.mT
            groups[stack.shape[1:]].append((i, wide, stack))
        for (_, longer), members in groups.items():
            done = orthogonalized(jnp.concatenate([stack for *_, stack in members])) * math.sqrt(longer)
            ends = list(itertools.accumulate(len(stack) for *_, stack in members))
            for (i, wide, _), part in zip(members, jnp.split(done, ends[:-1]), strict=True):
                shape = leaves[i].shape
                leaves[i] = reads[i].size(shape) * (part if wide else part.mT).reshape(shape)
        return jax.tree.unflatten(tree, leaves), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def orthogonalized(x_NIO: jax.Array) -> jax.Array:
    """About U V' for every matrix U S V' of a stack, I <= O; a matrix of zeros stays zero."""
    a, b, c = COEFFICIENTS
    x = x_NIO / (jnp.linalg.norm(x_NIO, axis=(-2, -1), keepdims=True) + TINY)

    def iterate(_, x):
        gram = x @ x.mT
        return a * x + (b * gram + c * gram @ gram) @ x

    def iterate_short(_, both):
        """The same on the short sides alone: x_k = q_k x_0 and its Gram matrix, which the next q is made of."""
        q, gram = both
        step = a * eye + b * gram + c * gram @ gram
        return step @ q, step @ gram @ step

    if x.shape[2] < 2 * x.shape[1]:
        return jax.lax.fori_loop(0, ITERATIONS, iterate, x)
    eye = jnp.eye(x.shape[1])
    q, _ = jax.lax.fori_loop(0, ITERATIONS, iterate_short, (jnp.broadcast_to(eye, (len(x), *eye.shape)), x @ x.mT))
    return q @ x
