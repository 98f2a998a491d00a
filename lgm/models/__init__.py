"""Functional model definitions: `build(config)` gives a `Model`, whatever the family."""

from __future__ import annotations

from lgm.models.base import Conditioning, Model, Params, count
from lgm.models.records import FAMILIES, ConditioningSpec, Family, families, family, family_of


def classes(name: str) -> tuple[type, type]:
    """(configuration class, module class) of a family. Raises ValueError that names the families there are."""
    found = family(name)
    return found.config, found.module


def build(config) -> Model:
    """The model of a configuration dataclass; no arrays are made."""
    return Model(config, family_of(config).module)


__all__ = ["Conditioning", "FAMILIES", "Family", "Model", "Params", "ConditioningSpec", "build", "classes",
           "count", "families", "family", "family_of"]  # fmt: skip
