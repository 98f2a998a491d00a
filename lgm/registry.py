"""Things made by name from config values: `make(kind, table, name, options)`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from lgm.parsing import near_miss


def make(kind: str, table: Mapping[str, Callable], name: str, options: Mapping[str, Any]):
    """`table[name](**options)`; raises ValueError in one line for an unknown name or option, or a missing one."""
    if name not in table:
        raise ValueError(f"unknown {kind} {name!r}{near_miss(name, table)}")
    parameters = inspect.signature(table[name]).parameters
    for key in options:
        if key not in parameters:
            known = near_miss(key, parameters) if parameters else "; it takes none"
            raise ValueError(f"{kind} {name!r} has no option {key!r}{known}")
    for key, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and key not in options:
            raise ValueError(f"{kind} {name!r} needs option {key!r}")
    return table[name](**options)
