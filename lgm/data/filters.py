"""Which rows of a table `where` means: a field by its value, by one of several, by how it begins, by its size."""

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from lgm.data.rows import Rows
from lgm.parsing import ConfigError, near_miss

SHOWN = 30  # values that an error lists before it only counts them
SIGNS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_COMPARISON = re.compile(r"(>=|<=|>|<)\s*([^\s,<>=]+)[\s,]*")
MEASURED = ("height", "width", "pixels")  # of the images themselves, where a table has no such field


def select(rows: Rows, where: Mapping[str, Any], source: str) -> tuple[Rows, list[tuple[str, int]]]:
    """(the rows that match every filter, [(a filter in words, how many it and those before it leave)])."""
    left, asked = [], ""
    for field, wanted in where.items():
        matches = condition(field, wanted)
        if field not in rows.fields:
            known = near_miss(field, [*rows.fields, *MEASURED])
            raise ValueError(f"config.data.where.{field}: {source} has no such field{known}")
        matching, values = rows.where(field, matches)
        if not len(matching):
            listed = (value if isinstance(value, list) else [value] for value in rows.values(field))
            raise nothing_left(field, wanted, source, asked, [item for items in listed for item in items])
        rows, asked = matching, f"{asked or ' with'} {field}={wanted!r}"
        left.append((f"{field}={wanted!r}", len(rows)))
    return rows, left


def nothing_left(field: str, wanted: Any, source: str, asked: str, values: list[Any]) -> ValueError:
    """The error of a filter that no row matches, with what there is."""
    problem = f"config.data.where.{field}={wanted!r} leaves no image of {source}{asked}"
    if _compares(wanted):
        numbers = [number for value in values if (number := _number(value)) is not None]
        there = f"{min(numbers):g} to {max(numbers):g}" if numbers else "no numbers"
        return ValueError(f"{problem}; there are {there}")
    values = sorted(set(map(str, values)))
    shown = ", ".join(values[:SHOWN]) + (f", ... ({len(values)} in all)" if len(values) > SHOWN else "")
    return ValueError(f"{problem}; there are {shown}")


def condition(field: str, wanted: Any) -> Callable[[Any], bool]:
    """Whether a value of a field is what is `wanted`: the value itself; a list of such, any of which may match; a
    prefix that ends in "-" or "*"; or comparisons with numbers, all of which must hold, as ">=5" or ">0.2 <=0.8". A
    value that is a list matches by any of its items. Raises ConfigError, one line, for what is no comparison."""
    if isinstance(wanted, (list, tuple)):
        options = [condition(field, option) for option in wanted]
        matches = lambda value: any(option(value) for option in options)
    elif _compares(wanted):
        bounds = [(SIGNS[sign], _number(text)) for sign, text in _COMPARISON.findall(wanted)]
        if _COMPARISON.sub("", wanted.strip()) or any(number is None for _, number in bounds):
            raise ConfigError(f"config.data.where.{field}={wanted!r} is no comparison; write numbers after >=, <=, > "
                              "and <, as '>=5' or '>0.2 <=0.8'")
        matches = lambda value: (number := _number(value)) is not None and all(sign(number, at) for sign, at in bounds)
    elif isinstance(wanted, str) and wanted.endswith(("-", "*")):
        matches = lambda value: isinstance(value, str) and value.startswith(wanted.removesuffix("*"))
    else:
        matches = lambda value: value == wanted
    return lambda value: any(map(matches, value)) if isinstance(value, list) else matches(value)


def _compares(wanted: Any) -> bool:
    return isinstance(wanted, str) and wanted.strip()[:1] in ("<", ">")


def _number(value: Any) -> float | None:
    """A value as a number, also where it is one in words, as the floats of a CSV are."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if number == number else None
