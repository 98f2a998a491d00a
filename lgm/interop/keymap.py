"""Key maps: one list of rules says how a checkpoint's tensors and our parameters correspond, and is read both ways.

A rule names one of our parameters by its path ("blocks/attn/qkv/kernel"; positions in lists are numbers, as in
"down/0/norm/scale") and the tensor or tensors it is made of:

    Rule("blocks/attn/qkv/kernel", ("h.{layer}.q.weight", "h.{layer}.k.weight", "h.{layer}.v.weight"), LINEAR)

`{layer}` runs over the leading, stacked axis of ours; several tensors are joined along our last axis. A model's key map
is a function of its configuration that returns such a list; `linear`, `conv` and `norm` write the usual pairs.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np

from lgm.casting import is_finite

Get = Callable[[str], np.ndarray]
_TILE = 128  # rows and columns of a matrix that are transposed at a time
_STAGED = 1 << 28  # bytes of one parameter that wait in host memory for their device, at most (but for one layer)


@dataclasses.dataclass(frozen=True)
class Transform:
    """How one tensor of theirs becomes (part of) ours: an einops pattern, then a permutation of equal chunks.

    `pattern` reads theirs -> ours and is turned round for the way back; `dims` are the sizes of its names where they
    cannot be inferred. With `order`, chunk j of our last axis is their chunk order[j]: (1, 0) swaps scale and shift.
    """

    pattern: str | None = None
    dims: tuple[tuple[str, int], ...] = ()
    order: tuple[int, ...] | None = None

    def to_ours(self, theirs: np.ndarray) -> np.ndarray:
        """A view wherever numpy allows one, so that slices of it read no more of the file than they need."""
        if self.pattern is not None:
            theirs = einops.rearrange(theirs, self.pattern, **dict(self.dims))
        return theirs if self.order is None else _take_chunks(theirs, self.order)

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        """The inverse of `to_ours`."""
        if self.order is not None:
            ours = _take_chunks(ours, tuple(int(j) for j in np.argsort(self.order)))
        if self.pattern is not None:
            left, right = self.pattern.split("->")
            ours = einops.rearrange(ours, f"{right}->{left}", **dict(self.dims))
        return ours


def rearrange(pattern: str | None = None, *, order: tuple[int, ...] | None = None, **dims: int) -> Transform:
    """A transform of your own: `rearrange("(k o) i -> i (k o)", k=2)`, `rearrange("o i -> i o", order=(1, 0))`."""
    return Transform(pattern, tuple(dims.items()), order)


SAME = Transform()
LINEAR = Transform("o i -> i o")
CONV = Transform("o i h w -> h w i o")
CONV_AS_LINEAR = Transform("o i 1 1 -> i o")  # a 1 x 1 convolution that we hold as a matrix


@dataclasses.dataclass(frozen=True)
class Rule:
    """One parameter of ours and the tensors it is made of.

    Several `theirs` are joined along `axis` of ours (counted from the end), in lengths proportional to `sizes` (equal
    by default). Names with "{layer}" stand for one tensor a slice of our leading axis; `layers` are the numbers that
    the slices have in theirs, range(n) by default.
    """

    ours: str
    theirs: str | tuple[str, ...]
    transform: Transform = SAME
    axis: int = -1
    sizes: tuple[int, ...] | None = None
    layers: range | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """`theirs` as a tuple."""
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs

    @property
    def stacked(self) -> bool:
        """Whether our leading axis counts layers."""
        return "{layer}" in self.parts[0]


@dataclasses.dataclass(frozen=True)
class Extra:
    """A tensor of theirs that we hold no parameter for: skipped when read; written as `make()`, if there is one."""

    theirs: str
    make: Callable[[], np.ndarray] | None = None


Rules = Iterable[Rule | Extra]


def linear(ours: str, theirs: str | tuple[str, ...], *, bias: bool = True, transform: Transform = LINEAR, **rule):
    """Rules of a matrix and its bias: `ours`/kernel and `ours`/bias from `theirs`.weight and `theirs`.bias."""
    named = lambda end: tuple(f"{t}.{end}" for t in ((theirs,) if isinstance(theirs, str) else theirs))
    bias_transform = Transform(order=transform.order)
    rules = [Rule(f"{ours}/kernel", named("weight"), transform, **rule)]
    return rules + ([Rule(f"{ours}/bias", named("bias"), bias_transform, **rule)] if bias else [])


def conv(ours: str, theirs: str, *, bias: bool = True, **rule):
    """Rules of a convolution and its bias."""
    return linear(ours, theirs, bias=bias, transform=CONV, **rule)


def norm(ours: str, theirs: str, *, bias: bool = True, **rule):
    """Rules of a normalization: `ours`/scale and `ours`/bias from `theirs`.weight and `theirs`.bias."""
    rules = [Rule(f"{ours}/scale", f"{theirs}.weight", **rule)]
    return rules + ([Rule(f"{ours}/bias", f"{theirs}.bias", **rule)] if bias else [])


def prefixed(rules: Rules, ours: str = "", theirs: str = "") -> list[Rule | Extra]:
    """The same rules for a module inside another: every path of ours and every name of theirs gets its prefix."""
    moved = []
    for rule in rules:
        if isinstance(rule, Extra):
            moved.append(dataclasses.replace(rule, theirs=theirs + rule.theirs))
        else:
            names = tuple(theirs + name for name in rule.parts)
            moved.append(dataclasses.replace(rule, ours=ours + rule.ours, theirs=names))
    return moved


def to_ours(
    rules: Rules, abstract: Any, get: Get, names: Iterable[str], shape: Callable[[str], tuple[int, ...]] | None = None
) -> Any:
    """Our parameters from a checkpoint.

    Args:
        rules: the key map.
        abstract: the tree of shapes and dtypes wanted (`model.abstract()`); tensors are cast to its dtypes. A leaf
            with a sharding is built on its devices, each reading only its part; one without becomes a numpy array.
        get: gives a tensor by name; may be lazy (a memory map), no more than what is needed is touched.
        names: every tensor name of the checkpoint.
        shape: gives a tensor's shape by name, where `get` would be dear.

    Raises ValueError, one line, naming a tensor that is missing, left over or of the wrong shape.
    """
    rules, leaves = list(rules), flatten(abstract)
    check(rules, abstract, names, shape or (lambda name: get(name).shape))
    params = {rule.ours: _place(rule, leaves[rule.ours], get) for rule in _of_parameters(rules)}
    return unflatten(abstract, params)


def check(rules: Rules, abstract: Any, names: Iterable[str], shape: Callable[[str], tuple[int, ...]]) -> None:
    """Raise the errors of `to_ours`; no tensor is read."""
    rules, leaves = list(rules), flatten(abstract)
    _check_names(rules, leaves, set(names))
    for rule in _of_parameters(rules):
        _check_shapes(rule, leaves[rule.ours], shape)


def to_theirs(rules: Rules, params: Any) -> dict[str, np.ndarray]:
    """A checkpoint's tensors, by name, from our parameters; the exact inverse of `to_ours`."""
    return dict(iterate_theirs(rules, params))


def iterate_theirs(rules: Rules, params: Any) -> Iterator[tuple[str, np.ndarray]]:
    """`to_theirs` one tensor at a time, with one of our leaves on the host at a time."""
    rules, leaves = list(rules), flatten(params)
    _check_covered(rules, leaves)
    for rule in rules:
        if isinstance(rule, Extra):
            if rule.make is not None:
                yield rule.theirs, rule.make()
            continue
        for name, _, part in parts_of(rule, np.asarray(leaves[rule.ours])):
            yield name, rule.transform.to_theirs(part)


def parts_of(rule: Rule, ours: np.ndarray) -> Iterator[tuple[str, int | None, np.ndarray]]:
    """(their name, our layer or None, our part) of every tensor that `ours` stands for, before the transform.

    `ours` may be any array with the layers and the joined axis of the rule's parameter.
    """
    for i, layer in _layers(rule, ours.shape):
        whole = ours if i is None else ours[i]
        ends = np.cumsum(_lengths(rule, whole.shape))[:-1]
        for name, part in zip(rule.parts, np.split(whole, ends, rule.axis), strict=True):
            yield _named(name, layer), i, part


def names_of(rules: Rules, abstract: Any) -> list[str]:
    """Every tensor name that a checkpoint of these shapes must have."""
    leaves = flatten(abstract)
    return [
        _named(name, layer)
        for rule in _of_parameters(rules)
        for _, layer in _layers(rule, leaves[rule.ours].shape)
        for name in rule.parts
    ]


def flatten(tree: Any) -> dict[str, Any]:
    """A nested dict as {"a/0/b": leaf}."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(str(key.key) for key in path): leaf for path, leaf in leaves}


def unflatten(like: Any, leaves: dict[str, Any]) -> Any:
    """The inverse of `flatten`, shaped like the tree `like`."""
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[path] for path in flatten(like)])


def _of_parameters(rules: Rules) -> list[Rule]:
    return [rule for rule in rules if isinstance(rule, Rule)]


def _layers(rule: Rule, shape: tuple[int, ...]) -> list[tuple[int | None, int | None]]:
    """(our index, their number) of every slice; (None, None) for a parameter that is not stacked."""
    if not rule.stacked:
        return [(None, None)]
    numbers = range(shape[0]) if rule.layers is None else rule.layers
    if len(numbers) != shape[0]:
        raise ValueError(f"{rule.ours} has {shape[0]} layers, its rule {len(numbers)}; correct the rule's layers")
    return list(enumerate(numbers))


def _named(name: str, layer: int | None) -> str:
    return name if layer is None else name.replace("{layer}", str(layer))


def _lengths(rule: Rule, shape: tuple[int, ...]) -> list[int]:
    """How long each part is along our axis; `shape` is that of one layer."""
    sizes = rule.sizes or (1,) * len(rule.parts)
    length = shape[rule.axis] if shape else 1
    if len(sizes) != len(rule.parts) or length % sum(sizes):
        raise ValueError(f"{rule.ours}: sizes={sizes} do not split an axis of {length} in {len(rule.parts)}")
    return [length // sum(sizes) * size for size in sizes]


def _part_shapes(rule: Rule, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Our shape of each part of one layer."""
    if len(rule.parts) == 1:
        return [shape]
    axis = rule.axis % len(shape)
    return [shape[:axis] + (n,) + shape[axis + 1 :] for n in _lengths(rule, shape)]


def _check_covered(rules: list[Rule | Extra], leaves: dict[str, Any]) -> None:
    ruled = [rule.ours for rule in _of_parameters(rules)]
    if unknown := [path for path in ruled if path not in leaves]:
        raise ValueError(f"the key map names {several(unknown)}, which the model does not have")
    if missing := sorted(set(leaves) - set(ruled)):
        raise ValueError(f"the key map has no rule for {several(missing)}")
    if len(set(ruled)) != len(ruled):
        raise ValueError(f"the key map has two rules for {several(sorted({r for r in ruled if ruled.count(r) > 1}))}")


def _check_names(rules: list[Rule | Extra], leaves: dict[str, Any], names: set[str]) -> None:
    _check_covered(rules, leaves)
    needed = names_of(rules, leaves)
    if missing := [name for name in needed if name not in names]:
        raise ValueError(f"the checkpoint lacks {several(missing)}; is it of another architecture?")
    extras = {rule.theirs for rule in rules if isinstance(rule, Extra)}
    if left := sorted(names - set(needed) - extras):
        raise ValueError(f"the checkpoint has {several(left)}, which this model has no place for")


def several(names: list[str]) -> str:
    """The first of some names and how many more there are."""
    rest = len(names) - 1
    return repr(names[0]) + (f" and {rest} more" if rest else "")


def _check_shapes(rule: Rule, leaf: Any, shape: Callable[[str], tuple[int, ...]]) -> None:
    ours = tuple(leaf.shape)[1:] if rule.stacked else tuple(leaf.shape)
    for part, wanted in zip(rule.parts, _part_shapes(rule, ours), strict=True):
        expected = jax.eval_shape(rule.transform.to_theirs, jax.ShapeDtypeStruct(wanted, leaf.dtype)).shape
        for _, layer in _layers(rule, leaf.shape):
            name = _named(part, layer)
            found = tuple(shape(name))
            if found != expected:
                raise ValueError(f"tensor {name!r} has shape {found}; {rule.ours} needs {expected}")


def _place(rule: Rule, leaf: Any, get: Get) -> Any:
    """One parameter: a numpy array, or one array over the devices of the leaf's sharding."""
    shape, dtype, sharding = tuple(leaf.shape), leaf.dtype, getattr(leaf, "sharding", None)
    if sharding is None:
        return _read(rule, shape, dtype, get, (slice(None),) * len(shape))
    devices_of: dict[tuple, list] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        devices_of.setdefault(tuple(s.indices(n) for s, n in zip(index, shape, strict=True)), []).append(device)
    shards = []
    for key, devices in devices_of.items():  # a slice that several devices hold is read once
        shards += _onto(devices, rule, shape, dtype, get, tuple(slice(*k) for k in key))
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def _onto(devices: list, rule: Rule, shape, dtype, get: Get, index: tuple[slice, ...]) -> list[jax.Array]:
    """The slice `index` of one parameter on each of `devices`.

    A large stack of layers goes over in groups of layers, each of which leaves host memory before the next is read.
    """
    bounds = [s.indices(n)[:2] for s, n in zip(index, shape, strict=True)]
    size = math.prod(stop - start for start, stop in bounds) * np.dtype(dtype).itemsize
    if not rule.stacked or size <= _STAGED:
        piece = _read(rule, shape, dtype, get, index)
        return jax.block_until_ready([jax.device_put(piece, device) for device in devices])
    first, last = bounds[0]
    group = max(1, (last - first) * _STAGED // size)
    part_shape = tuple(stop - start for start, stop in bounds)
    wholes = [jax.device_put(jnp.zeros(part_shape, dtype, device=device)) for device in devices]
    for start in range(first, last, group):
        piece = _read(rule, shape, dtype, get, (slice(start, min(start + group, last)), *index[1:]))
        pieces = [jax.device_put(piece, device) for device in devices]
        wholes = [_insert(whole, part, start - first) for whole, part in zip(wholes, pieces, strict=True)]
        jax.block_until_ready(wholes)
        del piece, pieces  # before the next ones are made
    return wholes


@functools.partial(jax.jit, donate_argnums=0)
def _insert(whole: jax.Array, part: jax.Array, start: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(whole, part, start, 0)


def _read(rule: Rule, shape: tuple[int, ...], dtype: Any, get: Get, index: tuple[slice, ...]) -> np.ndarray:
    """The slice `index` of one parameter, filled in place from the tensors that it touches."""
    bounds = [s.indices(n)[:2] for s, n in zip(index, shape, strict=True)]
    out = np.empty([stop - start for start, stop in bounds], dtype)
    layers = _layers(rule, shape)
    if rule.stacked:
        (first, last), bounds, shape = bounds[0], bounds[1:], shape[1:]
        layers = layers[first:last]
    for i, (_, layer) in enumerate(layers):
        target, position = out[i] if rule.stacked else out, 0
        for name, part_shape in zip(rule.parts, _part_shapes(rule, shape), strict=True):
            wanted, into = [slice(*b) for b in bounds], [slice(None)] * len(bounds)
            if len(rule.parts) > 1:
                axis, length = rule.axis % len(shape), part_shape[rule.axis]
                start, stop = (min(max(b - position, 0), length) for b in bounds[axis])
                offset = position - bounds[axis][0]
                wanted[axis], into[axis] = slice(start, stop), slice(start + offset, stop + offset)
                position += length
                if start == stop:
                    continue
            place = target[tuple(into)]
            _copy(place, rule.transform.to_ours(get(_named(name, layer)))[tuple(wanted)])
            if not is_finite(place):
                raise ValueError(f"tensor {_named(name, layer)!r} holds values that are not finite (NaN or infinite)")
    return out


def _copy(target: np.ndarray, source: np.ndarray) -> None:
    """target[...] = source, a transposed matrix in tiles that fit the cache, which takes a third of the time."""
    if target.ndim != 2 or target.size < 1 << 16 or source.flags.c_contiguous:
        target[...] = source
        return
    for i in range(0, target.shape[0], _TILE):
        for j in range(0, target.shape[1], _TILE):
            target[i : i + _TILE, j : j + _TILE] = source[i : i + _TILE, j : j + _TILE]


def _take_chunks(x: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """The equal chunks of the last axis in another order."""
    chunks = x.reshape(*x.shape[:-1], len(order), -1)
    return chunks[..., np.asarray(order), :].reshape(x.shape)
