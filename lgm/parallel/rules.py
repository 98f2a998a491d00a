"""The one table that says which mesh axes split which logical axis, and how a shape is cut by it."""

import math
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from jax.sharding import PartitionSpec

AXES = ("data", "fsdp", "context", "tensor", "stage")

PLACES = ("batch", "tokens", "height")  # logical axes of activations alone

# Logical axis -> mesh axes, the one to try first at the front. A parameter's dimensions take their first axes, then
# their second ones, ...: what one dimension cannot take because it does not divide, another may. Where `tensor` comes
# first it splits arithmetic too; all else is where a parameter is kept until it is gathered for use.
RULES: Mapping[str, tuple[str, ...]] = MappingProxyType({
    # parameters
    "layers": ("stage",),
    "embed": ("fsdp", "context", "stage", "tensor"),  # the residual stream's side of a matrix
    "fused": ("fsdp", "context", "stage", "tensor"),  # the same, where the other side is of several parts
    "mlp": ("tensor", "fsdp", "context", "stage"),
    "heads": ("tensor", "fsdp", "context", "stage"),
    "features": ("tensor", "fsdp", "context", "stage"),
    "vocab": ("tensor", "fsdp"),
    "channels": ("fsdp", "context", "stage", "tensor"),  # of a feature map; "conv" are those inside a residual block
    "conv": ("tensor", "fsdp", "context", "stage"),
    # activations
    "batch": ("data", "fsdp", "stage"),
    "tokens": ("context",),
    "height": ("context",),
})


def with_overrides(overrides: Mapping[str, str | Sequence[str] | None], where: str = "config.mesh.rules"):
    """`RULES` with some of them replaced: a mesh axis, several, or None for never split.

    Raises ValueError, one line, for a logical axis that no model has or a mesh axis that is not there.
    """
    rules = dict(RULES)
    for name, value in overrides.items():
        if name not in RULES:
            raise ValueError(f"{where}.{name} is no logical axis; there are {', '.join(RULES)}")
        if not (value is None or isinstance(value, (str, tuple, list))):
            raise ValueError(f"{where}.{name}={value!r} is no mesh axis; give one, a list of them, or None")
        axes = () if value is None else (value,) if isinstance(value, str) else tuple(value)
        for axis in axes:
            if axis not in AXES:
                raise ValueError(f"{where}.{name}={value!r}: {axis!r} is no mesh axis; there are {', '.join(AXES)}")
        if len(set(axes)) != len(axes):
            raise ValueError(f"{where}.{name}={value!r} names a mesh axis twice; name each once")
        if name == "height" and axes not in ((), ("context",)):
            raise ValueError(f"{where}.height={value!r}: rows are split over context alone; give that or None")
        rules[name] = axes
    return MappingProxyType(rules)


def partition(shape: Sequence[int], names: Sequence[str | None], sizes: Mapping[str, int],
              rules: Mapping[str, Sequence[str]] = RULES, only: Collection[str] = AXES) -> PartitionSpec:
    """How an array of logical axes `names` is split over a mesh of `sizes`, by `rules`.

    A mesh axis splits at most one dimension, and only where what is split already still divides; several may split one
    (their product then divides it). Axes of size 1 and those not in `only` split nothing.
    """
    chosen: list[list[str]] = [[] for _ in shape]
    wanted = [tuple(rules[name]) if name else () for name in names]
    taken: set[str] = set()
    for choice in range(max(map(len, wanted), default=0)):
        for axes, size, split in zip(wanted, shape, chosen, strict=True):
            axis = axes[choice] if choice < len(axes) else None
            if axis is None or axis in taken or axis not in only or sizes[axis] == 1:
                continue
            if size % (sizes[axis] * math.prod(sizes[a] for a in split)) == 0:
                split.append(axis)
                taken.add(axis)
    return PartitionSpec(*(split[0] if len(split) == 1 else tuple(split) or None for split in chosen))
