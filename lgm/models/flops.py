"""Floating-point operations of a traced program, counted from its matrix products and convolutions."""

from __future__ import annotations

import contextvars
import dataclasses
import math
from collections.abc import Callable, Iterator

import jax

_TEXTBOOK = contextvars.ContextVar("textbook", default=False)


def textbook() -> bool:
    """Whether the program that is traced now is only to be counted, and networks shall compute as papers count them
    rather than in fewer operations."""
    return _TEXTBOOK.get()


def count_flops(fn: Callable, *abstract_args, executed: bool = False) -> float:
    """Floating-point operations (two a multiply-add) of the products and convolutions in one call of `fn`.

    The count is that of papers and of other counters, a model's standard one; with `executed` it is of what a device is
    given, which is less where a network has a cheaper way to the same values. `fn` is traced on arrays or
    `jax.ShapeDtypeStruct`s; nothing is compiled or run. A scan's body counts as often as it runs, of a `cond` the
    dearest branch counts, a `while` body counts once (its length is not in the program), and elementwise work does not
    count. Multiplications with a convolution's padding count, as hardware does them.
    """
    token = _TEXTBOOK.set(not executed)
    try:
        return _jaxpr(jax.make_jaxpr(lambda *args: fn(*args))(*abstract_args).jaxpr)  # anew: no trace is remembered
    finally:
        _TEXTBOOK.reset(token)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One call of a Pallas kernel: its name, elements of its operands (which tell calls of one name apart), FLOPs."""

    name: str
    elements: int
    flops: float


def kernels_in(jaxpr) -> tuple[Kernel, ...]:
    """Every different call of a Pallas kernel in a traced program; inside `shard_map` shapes are one device's."""
    found: dict[Kernel, None] = {}
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            elements = sum(math.prod(v.aval.shape) for v in equation.invars)
            found[Kernel(_kernel_name(equation.params), elements, _equation(equation))] = None
        else:
            found |= dict.fromkeys(k for inner in _inner(equation.params) for k in kernels_in(inner))
    return tuple(found)


def _kernel_name(parameters) -> str:
    return str(getattr(parameters.get("name_and_src_info"), "name", None) or parameters.get("name"))


def _jaxpr(jaxpr) -> float:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation) -> float:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        return _dot_general(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    if name.startswith("dot_product_attention_"):  # cuDNN's, opaque to the trace
        return _attention(equation) * (2.5 if "bwd" in name else 1.0)
    inner = [_jaxpr(jaxpr) for jaxpr in _inner(parameters)]
    if name == "cond":
        return max(inner)
    times = parameters["length"] if name == "scan" else _grid(parameters)
    return times * sum(inner)


def _dot_general(equation) -> float:
    (contracting, _), _ = equation.params["dimension_numbers"]
    lhs = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(lhs[d] for d in contracting)


def _convolution(equation) -> float:
    kernel, numbers = equation.invars[1].aval.shape, equation.params["dimension_numbers"]
    # a kernel's input-channel dimension is that of one feature group already
    per_output = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
    # a dilated input is mostly zeros between the real values; only the real ones are work
    zeros = math.prod(equation.params["lhs_dilation"])
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * per_output / zeros


def _attention(equation) -> float:
    """q k^T and its product with v; backward repeats the first and has four more of the same size."""
    q, k = (v.aval.shape for v in equation.invars[:2])
    lengths_first = equation.params["layout"] == 0  # [B, T, N, D], else [B, N, T, D]
    return 4.0 * math.prod(q) * k[1 if lengths_first else 2]


def _inner(parameters) -> Iterator:
    """The programs among an equation's parameters: bodies of scan, remat, jit, custom rules, kernels, branches."""
    for value in parameters.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            jaxpr = getattr(item, "jaxpr", item)
            if hasattr(jaxpr, "eqns"):
                yield jaxpr


def _grid(parameters) -> int:
    """How often a Pallas kernel's body runs; 1 for everything else."""
    grid = getattr(parameters.get("grid_mapping"), "grid", ())
    return math.prod(size for size in grid if isinstance(size, int))
