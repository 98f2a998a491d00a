"""Options of other libraries' configurations that have one possible value here, or a few."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def expect(config: Mapping[str, Any], key: str, *allowed: Any) -> Any:
    """The option `key`, or the first of `allowed` where it is absent.

    Raises ValueError, one line, for a value that has no equal here.
    """
    value = config.get(key, allowed[0])
    if value not in allowed:
        raise ValueError(f"config.json: {key}={value!r} has no equal here; supported: {', '.join(map(repr, allowed))}")
    return value


def a_level(value: Any, levels: int) -> tuple:
    """A value for each level, where a configuration may give one for all."""
    return tuple(value) if isinstance(value, (list, tuple)) else (value,) * levels
