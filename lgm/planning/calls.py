"""What a GPU's program leaves to libraries: products to cuBLAS, convolutions and attention to cuDNN.

Their calls say of themselves what is multiplied; work is counted from that, two a multiply-add.
"""

import math
import re

from lgm.planning.hlo import Computation, Instruction, Shape, convolution_flops

_TARGET = re.compile(r'custom_call_target="__(cublas|cudnn)\$([^"]*)"')
_CONTRACTED = re.compile(r'"lhs_contracting_dimensions":\s*\[([^\]]*)\]')


def library(i: Instruction) -> tuple[str, str] | None:
    """("cublas" or "cudnn", what it is asked for) of a library's call, None of any other instruction."""
    found = _TARGET.search(i.attributes) if i.opcode == "custom-call" else None
    return (found[1], found[2]) if found else None


def results(i: Instruction) -> tuple[Shape, ...]:
    """What a call hands back, without the workspace that it names last, which is bytes."""
    return i.shapes[:-1] if len(i.shapes) > 1 and i.shapes[-1].dtype in ("s8", "u8") else i.shapes


def call_flops(i: Instruction, computation: Computation) -> float:
    """Floating-point operations of a library's call; 0 for one that multiplies nothing, as a norm's."""
    which, what = library(i)
    given = [computation.by_name[name].shapes[0] for name in i.operands if name in computation.by_name]
    if which == "cublas":
        contracted = _CONTRACTED.search(i.attributes)
        dims = [given[0].dims[int(d)] for d in re.findall(r"\d+", contracted[1])]
        return 2.0 * i.shapes[0].elements * math.prod(dims)
    if what.startswith("conv"):
        left, right, out = given[0], given[1], i.shapes[0]
        if what == "convBackwardInput":  # told as the forward convolution of which it is the gradient
            left, out = out, left
        elif what == "convBackwardFilter":
            right, out = out, right
        return convolution_flops(i.attributes, left, right, out)
    if what.startswith("fmha"):
        return _attention(i, given)
    return 0.0


def _attention(i: Instruction, given: list[Shape]) -> float:
    """Two products forward and five backward, of queries and keys [B, T, N, D]; a causal mask leaves half of them."""
    q, k = given[:2]
    scores = 2.0 * q.elements * k.dims[1]
    products = 5 if "Backward" in library(i)[1] else 2
    causal = re.search(r'"mask_type":\s*"CAUSAL"', i.attributes)
    return scores * products / (2 if causal else 1)
