"""What the numbers of a configuration may be, said in their types: `width: Count = 1024`.

Numbers are finite everywhere; what holds between fields stands in the records and in `lgm.config`.
"""

import dataclasses
import functools
import math
import typing
from collections.abc import Mapping
from typing import Annotated, Any


@dataclasses.dataclass(frozen=True)
class Bound:
    """low <= value <= high, or with `above` and `below` without equality."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def holds(self, value: float) -> bool:
        """Whether a finite value lies within."""
        return (self.low < value if self.above else self.low <= value) and (
            value < self.high if self.below else value <= self.high)  # fmt: skip

    def __str__(self) -> str:
        if self.high < math.inf and self.low > -math.inf:
            return f"lie in {'(' if self.above else '['}{self.low:.10g}, {self.high:.10g}{')' if self.below else ']'}"
        if self.low > -math.inf:
            return f"be {'above' if self.above else 'at least'} {self.low:g}"
        return "be finite"


Count = Annotated[int, Bound(1)]  # of things there must be at least one of
Several = Annotated[int, Bound(2)]
Whole = Annotated[int, Bound(0)]  # of things there may be none of
NonNegative = Annotated[float, Bound(0)]
Positive = Annotated[float, Bound(0, above=True)]
Share = Annotated[float, Bound(0, 1)]
Proper = Annotated[float, Bound(0, 1, below=True)]  # a share that is not all
Within = Annotated[float, Bound(0, 1, above=True, below=True)]  # a share that is neither none nor all
Finite = Annotated[float, Bound()]
FINITE = Bound()


@functools.cache
def bounds_of(record: type) -> dict[str, Bound]:
    """The bounds of a dataclass's fields, as their annotations say them, those of a list's items too."""
    hints = typing.get_type_hints(record, include_extras=True)
    return {name: bound for name, hint in hints.items() if (bound := _bound(hint)) is not None}


def _bound(hint: Any) -> Bound | None:
    if typing.get_origin(hint) is Annotated:
        return next((extra for extra in hint.__metadata__ if isinstance(extra, Bound)), None)
    return next((found for part in typing.get_args(hint) if (found := _bound(part)) is not None), None)


def check_bounds(record: type, values: Mapping[str, Any], path: str = "") -> None:
    """Raise ValueError, one line, for the first of a record's values, or of a list's items, that cannot be."""
    bounds = bounds_of(record)
    for name, value in values.items():
        bound = bounds.get(name, FINITE)
        for item in value if isinstance(value, (list, tuple)) else (value,):
            number = isinstance(item, (int, float)) and not isinstance(item, bool)
            if number and not (is_finite(item) and bound.holds(item)):
                every = " everywhere" if isinstance(value, (list, tuple)) else ""
                text = str(value) if len(str(value)) < 80 else f"{str(value)[:40]}..."
                finite = "" if is_finite(item) or bound.high < math.inf or bound == FINITE else " and finite"
                raise ValueError(f"{path}{name}={text} must {bound}{finite}{every}")


def is_finite(value: float) -> bool:
    """Whether a float holds a number's value."""
    try:
        return math.isfinite(value)
    except OverflowError:  # of a whole number
        return False
