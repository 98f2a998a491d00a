"""A network's file in a folder, seen to be for the network that is here before any of it is read."""

from __future__ import annotations

from pathlib import Path

from lgm.interop.components import component
from lgm.interop.keymap import check
from lgm.interop.tensor_files import Weights, open_weights
from lgm.models import Model
from lgm.parsing import ConfigError


def open_checked(folder: Path, name: str, model: Model) -> tuple[list, Weights]:
    """(key map, weights) of the network of class `name` in a folder, which are seen to be for `model`; none is read."""
    kind = component(name)
    rules, weights = kind.rules(model.config), kind.prepare(open_weights(folder))
    try:
        check(rules, model.abstract(), weights.names, weights.shape)
    except ValueError as error:
        raise ConfigError(f"{weights.path}: {error}") from error
    return rules, weights
