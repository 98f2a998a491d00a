"""Skip-layer guidance of SD3.5 as its released sampler is told of it: layers, a scale, and from which step to which."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lgm.models import family_of
from lgm.registry import make
from lgm.sampling import Skipped

Skip = tuple[tuple[int, ...], float, float, float]  # layers, scale, start, stop


def read_skip(value: str | Mapping[str, Any]) -> Skip:
    """(layers, scale, start, stop) of dict(layers=(7, 8, 9), scale=2.8, start=0.01, stop=0.2) or of the short form
    "7,8,9" or "7,8,9:scale=2.8,start=0.01,stop=0.2". Raises ValueError, one line, for what is neither."""
    if isinstance(value, str):
        layers, _, words = value.partition(":")
        pairs = [word.partition("=") for word in words.split(",")] if words else []
        try:
            options = {"layers": tuple(int(layer) for layer in layers.split(","))}
            options |= {key.strip(): float(text) for key, _, text in pairs}
        except ValueError:
            raise ValueError(f"skip_layers={value!r} should read 7,8,9 or 7,8,9:scale=2.8,start=0.01,"
                             "stop=0.2") from None
    else:
        options = dict(value)
    return make("guidance", {"skip_layers": _skip}, "skip_layers", options)


def _skip(layers: Sequence[int], scale: float = 2.8, start: float = 0.01, stop: float = 0.2) -> Skip:
    layers = tuple(layers)
    if not layers or len(set(layers)) < len(layers) or not all(isinstance(i, int) and i >= 0 for i in layers):
        raise ValueError(f"skip_layers: layers={list(layers)} must be numbers of blocks from 0 on, each once")
    if not 0.0 <= start < stop <= 1.0:
        raise ValueError(f"skip_layers: start={start} and stop={stop} must rise within [0, 1], the shares of the steps")
    return layers, float(scale), float(start), float(stop)


def skipped(model: Any, skip: Skip, inputs: np.ndarray) -> Skipped | None:
    """The guidance of a network of configuration `model` in steps at which it is given these times; None where no
    step has it.

    Raises ValueError, one line, for a network without such layers.
    """
    layers, scale, start, stop = skip
    network = family_of(model)
    if not network.skips:
        raise ValueError(f"skip_layers is for SD3 and SD3.5; this network is a {network.name}")
    depth = network.blocks(model)
    if max(layers) >= depth:
        raise ValueError(f"skip_layers: layer {max(layers)} is not among this network's {depth}, 0 to {depth - 1}")
    number = np.arange(len(inputs))
    inside = inputs[(number > len(inputs) * start) & (number < len(inputs) * stop)]
    return Skipped(layers, scale, float(inside.min()), float(inside.max())) if len(inside) else None
