"""Files of float8 weights with a scale beside each, as people make them to save memory: w = scale * float8."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from lgm.interop.weights import Weights

_SCALES = (".scale_weight", ".weight_scale")  # of "X.weight", which is called "X" here
_UNUSED = (".scale_input", ".input_scale", ".comfy_quant")  # of activations, and words for programs that use float8


def descaled(weights: Weights) -> Weights:
    """`weights` whose scaled tensors are multiplied out in float32 as they are read; the same where there are none.

    Raises ValueError, one line, for a scale that is not one finite number above 0, or for a weight that is packed in
    another way than float8.
    """
    scales = {name: name.removesuffix(end) + ".weight" for name in weights.entries for end in _SCALES
              if name.endswith(end) and name.removesuffix(end) + ".weight" in weights.entries}  # fmt: skip
    of_them = {name.removesuffix(".weight") for name in scales.values()}
    words = {name for name in weights.entries if name.rpartition(".")[2] == "scaled_fp8"}
    words |= {name for name in weights.entries for end in _UNUSED if name.endswith(end)
              and (name.removesuffix(end) in of_them or name.removesuffix(end) + ".weight" in weights.entries)}
    if not scales and not words:
        return weights
    changes = dict(weights.changes)
    for name, target in scales.items():
        if not weights.entries[target].dtype.name.startswith(("float", "bfloat")):
            raise ValueError(f"{weights.path}: {target!r} is packed as {weights.entries[target].dtype}; of scaled "
                             "weights only floats are known")
        scale = np.asarray(weights.get(name), np.float32)
        if scale.size != 1 or not np.isfinite(scale).all() or not (scale > 0).all():
            raise ValueError(f"{weights.path}: {name!r} of shape {scale.shape} should be one finite number above 0")
        changes[target] = _times(float(scale.reshape(())), changes.get(target))
    kept = {name: entry for name, entry in weights.entries.items() if name not in scales and name not in words}
    return dataclasses.replace(weights, entries=kept, changes=changes)


def _times(scale: float, before: Callable[[np.ndarray], np.ndarray] | None) -> Callable[[np.ndarray], np.ndarray]:
    def change(tensor: np.ndarray) -> np.ndarray:
        return (tensor if before is None else before(tensor)).astype(np.float32) * np.float32(scale)

    return change
