"""What the modules of a LoRA file change a weight by: LoRA, DoRA, LoHa, LoKr and plain differences.

Every change is a matrix [out, in, ...] times a scale. LoRA (Hu et al. 2021, 2106.09685) is up down, or with a core
`mid` in between for a convolution; LoHa (Hyeon-Woo et al. 2021, 2108.06098) the product, entry by entry, of two such;
LoKr (Yeh et al. 2023, 2309.14859) a Kronecker product. DoRA (Liu et al. 2024, 2402.09353) brings the changed weight's
rows, or its columns, to a length that was trained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

Rows = tuple[int, int, int] | None
Parts = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Update:
    """A change of one module: `product()` [out, in, ...] times `scale` to its weight, which has `rank` where it is low.

    `factors` are (down [rank, in, ...], up [out, rank, ...]) of a LoRA, whose product it is. `magnitude` is DoRA's,
    [out] or [1, in]; `bias` [out] is added to the module's bias. `select` takes of [out, ...] the rows that one weight
    gets.
    """

    scale: float
    rank: int | None = None
    product: Callable[[], np.ndarray] | None = None
    factors: tuple[np.ndarray, np.ndarray] | None = None
    magnitude: np.ndarray | None = None
    bias: np.ndarray | None = None
    select: Callable[[np.ndarray], np.ndarray] = lambda rows: rows

    def part(self, rows: Rows, swap: bool = False) -> Update:
        """The update of the output rows from first / of to last / of, or of all with their halves exchanged."""
        if rows is None and not swap:
            return self
        if self.magnitude is not None and self.magnitude.ndim > 1:
            raise ValueError("its dora_scale is of columns of a matrix that is divided here; only one of rows can be")

        def select(whole: np.ndarray) -> np.ndarray:
            count = len(whole)
            first, last, of = rows or (0, 1, 1)
            if count % of or swap and count % 2:
                raise ValueError(f"{count} rows of a LoRA are not {2 if swap else of} equal parts")
            taken = whole[first * count // of : last * count // of]
            return np.roll(taken, count // 2, axis=0) if swap else taken

        return dataclasses.replace(self, select=select)

    def added_to(self, weight: np.ndarray, strength: float) -> np.ndarray:
        """weight [out, in, ...] with the change made `strength` times, in float32.

        As peft merges it: strength multiplies the scale, also within DoRA. Raises ValueError where shapes do not fit.
        """
        change = self.select(self.product())
        if change.size != weight.size or len(change) != len(weight):
            raise ValueError(f"a LoRA of {change.shape} does not fit a weight of {weight.shape}")
        weight = weight.astype(np.float32)
        changed = weight + np.float32(strength * self.scale) * change.reshape(weight.shape)
        if self.magnitude is None:
            return changed
        columns = self.magnitude.ndim > 1
        over = tuple(i for i in range(weight.ndim) if i != (1 if columns else 0))
        length = np.sqrt(np.square(changed).sum(over, keepdims=True))
        magnitude = self.magnitude if columns else self.select(self.magnitude)
        if magnitude.size != length.size:
            raise ValueError(f"a dora_scale of {magnitude.shape} does not fit a weight of {weight.shape}")
        return changed * (magnitude.reshape(length.shape) / np.maximum(length, np.finfo(np.float32).tiny))

    def added_to_bias(self, bias: np.ndarray, strength: float) -> np.ndarray:
        """bias [out] with the change of it made `strength` times, in float32."""
        change = self.select(self.bias)
        if change.shape != bias.shape:
            raise ValueError(f"a change of {change.shape} does not fit a bias of {bias.shape}")
        return bias.astype(np.float32) + np.float32(strength) * change


def update_of(parts: Parts, scale_of: Callable[[int | None], float]) -> Update:
    """The update that a module's tensors describe, by the names that `lora` gives them.

    `scale_of(rank)` is what the product is multiplied by; rank is None where LoKr has none. Raises ValueError, one
    line, for tensors that make no update.
    """
    left = {name: _float32(name, value) for name, value in parts.items()}
    bias, up_bias = left.pop("diff_b", None), left.pop("up_bias", None)
    rows, either = left.pop("magnitude", None), left.pop("dora_scale", None)
    if rows is not None and either is not None:
        raise ValueError("has both a dora_scale and a lora_magnitude_vector; keep one")
    rank, scale, product = None, 1.0, None
    if left:
        rank, product = _product(left)
        scale = 1.0 if "diff" in left else scale_of(rank)
    if product is None and not (rows is None and either is None and up_bias is None):
        raise ValueError("has a dora_scale or a lora_B.bias without the matrices")
    if up_bias is not None:
        bias = np.float32(scale) * up_bias + (0 if bias is None else bias.reshape(-1))
    magnitude = rows
    if rows is not None or either is not None and not (either.ndim > 1 and len(either) == 1):
        magnitude = (either if rows is None else rows).reshape(-1)  # [out] or, for a convolution, with axes of 1
    elif either is not None:
        magnitude = either.reshape(1, -1)  # [1, in, ...]
    factors = (left["down"], left["up"]) if set(left) == {"down", "up"} else None
    return Update(scale, rank, product, factors, magnitude, None if bias is None else bias.reshape(-1))


def _float32(name: str, value: np.ndarray) -> np.ndarray:
    value = np.asarray(value).astype(np.float32)
    if not np.isfinite(value).all():
        raise ValueError(f"has values in {name} that are not finite")
    if value.size == 0 or value.ndim < (1 if name in ("diff", "diff_b", "up_bias", "magnitude", "dora_scale") else 2):
        raise ValueError(f"has a {name} of shape {value.shape}, which is no matrix")
    return value


def _product(parts: dict[str, np.ndarray]) -> tuple[int | None, Callable[[], np.ndarray]]:
    """(rank, how the change is computed) of the factors of one method."""
    names = set(parts)
    try:
        if names == {"diff"}:
            return None, lambda: parts["diff"]
        if names in ({"down", "up"}, {"down", "up", "mid"}):
            rank = len(parts["down"])
            _check_rank(rank, _flat(parts["up"]).shape[1])
            return rank, lambda: _low_rank(parts["down"], parts["up"], parts.get("mid"))
        if names >= _HADA and names - _HADA in (set(), {"t1", "t2"}):
            rank = len(parts["w1_b"])
            return rank, lambda: _factored(parts, "w1", "t1") * _factored(parts, "w2", "t2")
        if any(name.startswith("k") for name in names):
            return _kronecker(parts)
    except KeyError:
        pass
    raise ValueError(f"has {', '.join(sorted(names))}, which make no LoRA, LoHa or LoKr without their others")


_HADA = {"w1_a", "w1_b", "w2_a", "w2_b"}


def _kronecker(parts: dict[str, np.ndarray]) -> tuple[int | None, Callable[[], np.ndarray]]:
    for i in "12":
        whole, halves = f"k{i}" in parts, f"k{i}_a" in parts and f"k{i}_b" in parts
        if whole == halves:
            raise KeyError(i)
    known = {"k1", "k1_a", "k1_b", "k2", "k2_a", "k2_b"} | ({"kt2"} if "k2_a" in parts else set())
    if set(parts) - known:
        raise KeyError("kt2")
    low = parts.get("k2_b", parts.get("k1_b"))
    first = lambda: parts["k1"] if "k1" in parts else parts["k1_a"] @ parts["k1_b"]
    second = lambda: parts["k2"] if "k2" in parts else _factored(parts, "k2", "kt2")

    def product() -> np.ndarray:
        one, two = first(), second()
        return np.kron(one.reshape(*one.shape, *(1,) * (two.ndim - one.ndim)), two)

    return None if low is None else len(low), product


def _factored(parts: dict[str, np.ndarray], name: str, core: str) -> np.ndarray:
    """a b, or with a core t [r, r, k, k], a [r, out] and b [r, in] the convolution that Tucker's form stands for."""
    a, b = parts[f"{name}_a"], parts[f"{name}_b"]
    if core not in parts:
        _check_rank(a.shape[1], len(b))
        return a @ b
    t = parts[core]
    _check_rank(t.shape[0], len(a))
    _check_rank(t.shape[1], len(b))
    return np.tensordot(b, np.tensordot(a, t, (0, 0)), (0, 1)).swapaxes(0, 1)


def _low_rank(down: np.ndarray, up: np.ndarray, mid: np.ndarray | None) -> np.ndarray:
    if mid is None:
        return (_flat(up) @ _flat(down)).reshape(len(up), *down.shape[1:])
    up, down = _flat(up), _flat(down)
    _check_rank(mid.shape[0], up.shape[1])
    _check_rank(mid.shape[1], len(down))
    return np.tensordot(down, np.tensordot(up, mid, (1, 0)), (0, 1)).swapaxes(0, 1)


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1)


def _check_rank(a: int, b: int) -> None:
    if a != b:
        raise ValueError(f"has factors of rank {a} and {b}, which do not fit each other")
