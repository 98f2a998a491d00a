"""Files of float8 weights with scales beside them, as people make them to save memory: w = scale * float8."""

import dataclasses
import json

import numpy as np

from lgm.interop.tensor_files import Weights
from lgm.untrusted import parse_object, shown

_SCALES = (".scale_weight", ".weight_scale")  # of "X.weight", which is called "X" here
_INPUTS = (".scale_input", ".input_scale")  # of activations, which are no float8 here
_FORMAT = ".comfy_quant"  # JSON that says how the weight is packed
_FORMATS = ("float8_e4m3fn", "float8_e5m2")


def descaled(weights: Weights) -> Weights:
    """`weights` whose scaled tensors are multiplied out in float32 as they are read; the same where there are none.

    A scale is one number, or one a row of its weight. Raises ValueError, one line, for a scale that is neither, or not
    finite, or not above 0, for a weight that has two, and for one that is packed in another way than float8.
    """
    entries, gone = dict(weights.entries), set()
    for name in weights.entries:
        module, _, part = name.rpartition(".")
        target, ending = f"{module}.weight", f".{part}"
        if part == "scaled_fp8":
            gone.add(name)
        if target not in weights.entries or ending not in (*_SCALES, *_INPUTS, _FORMAT):
            continue
        gone.add(name)
        if ending == _FORMAT:
            _check_format(weights, name)
        if ending in _SCALES:
            if entries[target].scale is not None:
                raise ValueError(f"{weights.path} has two scales of {target!r}; keep one of them")
            entries[target] = dataclasses.replace(entries[target], scale=_scale(weights, name, target))
    if not gone:
        return weights
    return dataclasses.replace(weights, entries={name: entry for name, entry in entries.items() if name not in gone})


def _scale(weights: Weights, name: str, target: str) -> np.ndarray:
    entry = weights.entries[target]
    if not entry.dtype.name.startswith(("float", "bfloat")):
        raise ValueError(f"{weights.path}: {target!r} is packed as {entry.dtype}; of scaled weights only floats are "
                         "known")
    scale = np.asarray(weights.get(name)).astype(np.float32)
    a_row = bool(entry.shape) and scale.size == entry.shape[0] and scale.shape[:1] == entry.shape[:1]
    if scale.size != 1 and not a_row:
        raise ValueError(f"{weights.path}: {name!r} has shape {scale.shape} for a weight of {entry.shape}; it should "
                         "be one number, or one a row")
    if not np.isfinite(scale).all() or scale.min() < 0 or not scale.any():  # a row of zeros may have a scale of 0
        raise ValueError(f"{weights.path}: {name!r} holds {shown(scale.reshape(-1)[:4].tolist())}; scales are finite "
                         "and above 0")
    return scale.reshape(-1)


def _check_format(weights: Weights, name: str) -> None:
    try:
        kind = parse_object(np.asarray(weights.get(name)).tobytes()).get("format")
    except (ValueError, json.JSONDecodeError) as error:
        raise ValueError(f"{weights.path}: {name!r} should be a JSON object that says the format ({error})") from None
    if kind not in _FORMATS:
        raise ValueError(f"{weights.path}: {name!r} says format={shown(kind)}; {' and '.join(_FORMATS)} are known")
