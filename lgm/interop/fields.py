"""Options of other libraries' configurations: of what kind each is, and what becomes of it here.

Every option that a class of theirs has stands in its table as one of five:

    a kind (COUNT, NUMBER, ...)   it is read here, and may be anything of that kind
    KIND.of("width", 512)         it is our field of that name as it stands, with that value where it is absent
    Fixed(...)                    it has one possible value here, or a few; another is refused
    CARRIED                       it changes no result here, or none of what is computed: written again as it was read
    a table                       it is an object, or null, whose options stand in that table

Options in no table are unknown to the class too, which ignores them: they are carried as well.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from lgm.untrusted import shown

LARGEST = 1 << 24  # of a width, a vocabulary or a number of layers
LARGEST_SIDE = 1 << 10  # of an image in latent pixels, where no weights say how large it may be
# of the files, and so written anew with them
STORED = ("_class_name", "_diffusers_version", "_name_or_path", "architectures", "dtype", "torch_dtype",
          "transformers_version")  # fmt: skip


class WrongKind(ValueError):
    """An option whose value is of another kind than any of its class has."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """What values an option may have, in words and as a check; which field of ours it is, if it is one."""

    words: str
    holds: Callable[[Any], bool]
    ours: str | None = None
    default: Any = None

    def of(self, ours: str, default: Any) -> Kind:
        """The option that is our field `ours`, and `default` where it is absent."""
        return dataclasses.replace(self, ours=ours, default=default)


@dataclasses.dataclass(frozen=True)
class Fixed:
    """The values that an option may have here; the first is what it is where it is absent."""

    allowed: tuple[Any, ...]


def fixed(*allowed: Any) -> Fixed:
    """An option of one possible value, or of a few."""
    return Fixed(allowed)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30


def _or_none(kind: Kind) -> Kind:
    return Kind(f"{kind.words} or null", lambda value: value is None or kind.holds(value))


def _each(kind: Kind, least: int = 1) -> Kind:
    holds = lambda value: isinstance(value, (list, tuple)) and least <= len(value) <= 64 and all(map(kind.holds, value))
    return Kind(f"a list of {kind.words}", holds)


def either(first: Kind, second: Kind) -> Kind:
    """A kind that two others make."""
    return Kind(f"{first.words} or {second.words}", lambda value: first.holds(value) or second.holds(value))


COUNT = Kind("a whole number of at least 1", _is_count)
NATURAL = Kind("a whole number of at least 0", lambda value: _is_count(value) or value == 0 and type(value) is int)
SIDE = Kind(f"a whole number of 1 to {LARGEST_SIDE}", lambda value: _is_count(value) and value <= LARGEST_SIDE)
NUMBER = Kind("a finite number", _is_number)
POSITIVE = Kind("a finite number above 0", lambda value: _is_number(value) and value > 0)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
NAME = Kind("a text", lambda value: isinstance(value, str))
COUNTS, NATURALS, NUMBERS, NAMES = _each(COUNT), _each(NATURAL, 0), _each(NUMBER), _each(NAME)
COUNT_OR_NONE, NUMBER_OR_NONE, SIDE_OR_NONE = _or_none(COUNT), _or_none(NUMBER), _or_none(SIDE)
FLAG_OR_NONE, POSITIVE_OR_NONE = _or_none(FLAG), _or_none(POSITIVE)
COUNTS_OR_NONE, NUMBERS_OR_NONE, NATURALS_OR_NONE = _or_none(COUNTS), _or_none(NUMBERS), _or_none(NATURALS)
CARRIED = Kind("anything", lambda value: True)

Table = Mapping[str, "Kind | Fixed | Table"]


def check(config: Mapping[str, Any], table: Table, name: str = "config.json") -> None:
    """Raise ValueError, one line, for an option of another kind than its table says, or without an equal here."""
    for key, kind in table.items():
        if key not in config:
            continue
        value = config[key]
        if isinstance(kind, Fixed):
            _allowed(key, value, kind.allowed, name)
        elif isinstance(kind, Mapping):
            if not isinstance(value, dict | None):
                raise WrongKind(f"{name}: {key}={shown(value)} is not an object or null")
            check(value or {}, kind, f"{name}: {key}")
        elif not kind.holds(value):
            raise WrongKind(f"{name}: {key}={shown(value)} is not {kind.words}")


def read_fields(config: Mapping[str, Any], table: Table) -> dict[str, Any]:
    """The fields of ours that are options of theirs as they stand, after `check`."""
    check(config, table)
    as_ours = lambda value: tuple(value) if isinstance(value, list) else value
    return {kind.ours: as_ours(config.get(key, kind.default)) for key, kind in _fields(table)}


def written_fields(ours: Any, table: Table) -> dict[str, Any]:
    """The options of theirs that `read_fields` reads, from a configuration of ours."""
    as_theirs = lambda value: list(value) if isinstance(value, tuple) else value
    return {key: as_theirs(getattr(ours, kind.ours)) for key, kind in _fields(table)}


def _fields(table: Table) -> list[tuple[str, Kind]]:
    return [(key, kind) for key, kind in table.items() if isinstance(kind, Kind) and kind.ours]


def carried(config: Mapping[str, Any], table: Table) -> dict[str, Any]:
    """The options of `config` that are to be written again as they are."""
    kept = {}
    for key, value in config.items():
        kind = table.get(key, CARRIED)
        if isinstance(kind, Mapping):
            kept[key] = carried(value or {}, kind)
        elif kind is CARRIED and key not in STORED:
            kept[key] = value
    return kept


def joined(written: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the options of `carried` in place; objects are joined option by option."""
    both = lambda a, b: joined(a, b) if isinstance(a, dict) and isinstance(b, dict) else b
    return {**written, **{key: both(written.get(key), value) for key, value in kept.items()}}


def expect(config: Mapping[str, Any], key: str, *allowed: Any) -> Any:
    """The option `key`, or the first of `allowed` where it is absent.

    Raises ValueError, one line, for a value that has no equal here.
    """
    return _allowed(key, config.get(key, allowed[0]), allowed, "config.json")


def _allowed(key: str, value: Any, allowed: tuple[Any, ...], name: str) -> Any:
    if not any(_same(value, other) for other in allowed):
        words = ", ".join(map(shown, allowed))
        raise ValueError(f"{name}: {key}={shown(value)} has no equal here; supported: {words}")
    return value


def _same(value: Any, other: Any) -> bool:
    """Equal, and not as True is to 1."""
    if isinstance(value, bool) != isinstance(other, bool):
        return False
    if isinstance(value, float) and not math.isfinite(value):
        return False
    listed = lambda x: list(x) if isinstance(x, tuple) else x
    return listed(value) == listed(other)


def a_level(value: Any, levels: int) -> tuple:
    """A value for each level, where a configuration may give one for all. Raises ValueError for another number."""
    if not isinstance(value, (list, tuple)):
        return (value,) * levels
    if len(value) != levels:
        raise ValueError(f"config.json: {shown(value)} should be {levels} values, one a level")
    return tuple(value)
