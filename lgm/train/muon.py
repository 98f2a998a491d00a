"""Muon: momentum, orthogonalized by Newton-Schulz (Jordan et al. 2024; at scale Liu et al. 2025, 2502.16982).

The arithmetic is small and a network has many matrices, so that run one by one they cost mostly their own starts and,
laid out, minutes of compilation. Here all matrices that iterate on products of one size do so as one batch, under a
loop: those twice as long as wide on their Gram matrices, whatever their longer sides.
"""

import contextlib
import contextvars
import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from lgm.parallel import platform
from lgm.train import in_place

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of x, x x' x, (x x')^2 x: steep at 0; singular values end at 0.7 to 1.2
ITERATIONS = 5
MOMENTUM = 0.95
RMS = 0.2  # root mean square of an update over its rate, AdamW's own: one rate serves both (2502.16982, sec. 2.2)
HIDDEN = "shifts"  # a U-Net's projections of time, one a residual block, fused and so at its border by name alone
TINY = 1e-8
_stored: contextvars.ContextVar[dict | None] = contextvars.ContextVar("stored", default=None)  # path -> sharding


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
    labels = lambda params: jax.tree.map(lambda read: "adamw" if read is None else "muon", hidden_matrices(params),
                                         is_leaf=lambda node: node is None or isinstance(node, Matrix))
    matrices = optax.chain(
        in_place.trace(MOMENTUM), orthogonalize(),
        optax.add_decayed_weights(weight_decay, decays), optax.scale_by_learning_rate(rate),
    )  # fmt: skip
    adamw = in_place.adamw(rate, b1, b2, eps, weight_decay, decays, nesterov=True)
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


@contextlib.contextmanager
def stored(places: Any) -> Iterator[None]:
    """Trace what is inside for parameters that lie as `places`, a tree of their shardings, says."""
    named = jax.tree_util.tree_leaves_with_path(places)
    token = _stored.set({jax.tree_util.keystr(path): place for path, place in named})
    try:
        yield
    finally:
        _stored.reset(token)


def orthogonalize() -> optax.GradientTransformation:
    """Every update becomes orthogonal matrices of `Matrix.size`."""

    def update(updates, state, params=None):
        del params
        paths, tree = jax.tree_util.tree_flatten_with_path(updates)
        names, leaves = [jax.tree_util.keystr(path) for path, _ in paths], [leaf for _, leaf in paths]
        reads = jax.tree.leaves(hidden_matrices(updates), is_leaf=lambda node: isinstance(node, Matrix))
        groups = defaultdict(list)  # the leaves that are made orthogonal together
        for i, (name, leaf, read) in enumerate(zip(names, leaves, reads, strict=True)):
            place = (_stored.get() or {}).get(name)
            inner = leaf.shape[read.batch :]
            if place is None or place.is_fully_replicated:
                groups[_kind(math.prod(inner[:-1]), inner[-1])].append(i)
            else:
                spec = PartitionSpec(*place.spec, *[None] * (leaf.ndim - len(place.spec)))
                groups[place.mesh, spec, read.batch, inner].append(i)
        for key, members in groups.items():
            stacks = [leaves[i] for i in members]
            batch = [reads[i].batch for i in members]
            done = _together(stacks, batch) if len(key) == 2 else _spread(*key[:2], stacks, batch)
            for i, part in zip(members, done, strict=True):
                leaves[i] = reads[i].size(leaves[i].shape) * part
        return jax.tree.unflatten(tree, leaves), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _kind(rows: int, columns: int) -> tuple[int, int]:
    """Matrices of one kind iterate together: those of one shape or its transpose, and all long ones of one width."""
    short, long = sorted((rows, columns))
    return (short, 0) if long >= 2 * short else (short, long)


def _together(leaves: list[jax.Array], batch: list[int]) -> list[jax.Array]:
    """Orthogonal matrices of root mean square 1 of leaves of one `_kind`, in one iteration."""
    stacks = [leaf.reshape(-1, math.prod(leaf.shape[axes:-1]), leaf.shape[-1])
              for leaf, axes in zip(leaves, batch, strict=True)]
    short, long = _kind(*stacks[0].shape[1:])
    flat = [stack.shape[1] == short for stack in stacks]
    done = _iterated(stacks, flat) if long else _iterated_short(stacks, flat)
    return [part.reshape(leaf.shape) for part, leaf in zip(done, leaves, strict=True)]


def _spread(mesh, spec: PartitionSpec, leaves: list[jax.Array], batch: list[int]) -> list[jax.Array]:
    """`_together` of leaves that are split over a mesh alike: their matrices change places, so that each device has
    some whole ones instead of a part of each, and back. No device holds more than its share, or one matrix."""
    axes = batch[0]
    inputs, outputs = _axes(spec[-2]), _axes(spec[-1])

    def local(*parts):
        stacks = [part.reshape(-1, *part.shape[axes:]) for part in parts]
        stack = jnp.concatenate(stacks)
        count = len(stack)
        extra = -count % math.prod(mesh.shape[axis] for axis in inputs + outputs)
        stack = jnp.pad(stack, [(0, extra)] + [(0, 0)] * (stack.ndim - 1))  # a matrix of zeros stays zero
        for names, dimension in ((inputs, stack.ndim - 2), (outputs, stack.ndim - 1)):
            stack = jax.lax.all_to_all(stack, names, 0, dimension, tiled=True) if names else stack
        (stack,) = _together([stack], [1])
        for names, dimension in ((outputs, stack.ndim - 1), (inputs, stack.ndim - 2)):
            stack = jax.lax.all_to_all(stack, names, dimension, 0, tiled=True) if names else stack
        done = jnp.split(stack[:count], list(itertools.accumulate(map(len, stacks)))[:-1])
        return tuple(part.reshape(leaf.shape) for part, leaf in zip(done, parts, strict=True))

    specs = (spec,) * len(leaves)
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=specs, check_vma=False)(*leaves)


def _axes(entry) -> tuple[str, ...]:
    """The mesh axes of a dimension's entry in a PartitionSpec."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def _iterated(stacks: list[jax.Array], flat: list[bool]) -> list[jax.Array]:
    """Of stacks of one shape or, where not `flat`, its transpose."""
    a, b, c = COEFFICIENTS
    x = jnp.concatenate([x if wide else x.mT for x, wide in zip(stacks, flat, strict=True)])
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + TINY)

    def iterate(_, x):
        gram = x @ x.mT
        return a * x + (b * gram + c * gram @ gram) @ x

    x = jax.lax.fori_loop(0, ITERATIONS, iterate, x, unroll=platform() == "cpu") * math.sqrt(x.shape[2])
    return [part if wide else part.mT for part, wide in zip(_split(x, stacks), flat, strict=True)]


def _iterated_short(stacks: list[jax.Array], flat: list[bool]) -> list[jax.Array]:
    """Of stacks of one short side, their rows or, where not `flat`, columns: x_k = q_k x_0 by iterating q_k and the
    Gram matrix of x_k, from which the next is made. Scales are applied to q, which is small."""
    a, b, c = COEFFICIENTS
    gram = jnp.concatenate([x @ x.mT if wide else x.mT @ x for x, wide in zip(stacks, flat, strict=True)])
    inverse = 1.0 / (jnp.sqrt(jnp.trace(gram, axis1=1, axis2=2)[:, None, None]) + TINY)
    eye = jnp.eye(gram.shape[1])
    change = lambda gram: a * eye + b * gram + c * gram @ gram

    def iterate(_, both):
        q, gram = both
        step = change(gram)
        return step @ q, step @ gram @ step

    gram = gram * inverse * inverse
    first = change(gram)  # the first q is this itself, and of the last no Gram matrix is needed
    both = first, first @ gram @ first
    q, gram = jax.lax.fori_loop(0, ITERATIONS - 2, iterate, both, unroll=platform() == "cpu")
    q = change(gram) @ q * inverse
    return [math.sqrt(max(x.shape[1:])) * part @ x if wide else x @ (math.sqrt(max(x.shape[1:])) * part)
            for part, x, wide in zip(_split(q, stacks), stacks, flat, strict=True)]


def _split(x_NIJ: jax.Array, stacks: list[jax.Array]) -> list[jax.Array]:
    """Parts as many as each of the stacks has matrices."""
    return jnp.split(x_NIJ, list(itertools.accumulate(map(len, stacks)))[:-1])
