"""Things made by name from config values: `make(kind, table, name, options)`; and names for things of one's own."""

import ast
import dataclasses
import importlib
import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

from lgm.parsing import near_miss

KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a name"}  # of options, by their default
# kind -> the module of its table of names, that table, and the record that it holds; without one, what makes the thing
TABLES = {
    "family": ("lgm.models.records", "FAMILIES", "Family"),
    "loss": ("lgm.losses.records", "LOSSES", "Loss"),
    "density": ("lgm.losses.densities", "DENSITIES", None),
    "weighting": ("lgm.losses.weightings", "WEIGHTINGS", None),
    "process": ("lgm.gaussian", "PROCESSES", None),
    "solver": ("lgm.sampling.solvers", "SOLVERS", None),
    "source": ("lgm.data.sources.finding", "SOURCES", None),
}
_own: set[tuple[str, str]] = set()  # (kind, name) of what was registered


def register(kind: str, name: str, thing: Any) -> None:
    """Give something of one's own a name, by which configs and the command line know it as they know the package's.

    A module that does so is named in `config.imports`. Registering a name again replaces what it stood for.

    Args:
      kind: "family", "loss", "density", "weighting", "process", "solver" or "source".
      name: a word, as in config.loss.name.
      thing: of a family an `lgm.models.Family`, of a loss an `lgm.losses.Loss`. Otherwise what is called with the
        options that stand beside the name in a config: it returns a `gaussian.Process`, a `sampling.Solver`, a density
        `draw(key, shape)` of t, or a weighting, as the package's own of that kind do. A source is called as
        `thing(rest, caption, bad)` for config.data.source="NAME:rest" and returns an `lgm.data.sources.Source`.

    Raises:
      ValueError: one line, for a kind that there is not, a name that is no word or the package's own, and a thing that
        is no such record or cannot be called.
    """
    known("kind of thing to register", TABLES, kind)
    module, table, record = TABLES[kind]
    owner = importlib.import_module(module)
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"{kind} {name!r} cannot be written in a config; give a name of letters, digits and _")
    names = getattr(owner, table)
    if name in names and (kind, name) not in _own:
        raise ValueError(f"{kind} {name!r} is lgm's own; give yours another name")
    if record is not None:
        if not isinstance(thing, getattr(owner, record)):
            raise ValueError(f"{kind} {name!r} must be an {'.'.join(module.split('.')[:2])}.{record}, not {thing!r}")
        thing = dataclasses.replace(thing, name=name)
    elif not callable(thing):
        raise ValueError(f"{kind} {name!r} must be what makes one when it is called, not {thing!r}")
    _own.add((kind, name))
    names[name] = thing


def make(kind: str, table: Mapping[str, Callable], name: str, options: Mapping[str, Any]):
    """`table[name](**options)`; raises ValueError in one line for an unknown name or option, a missing one, or one of
    another kind than its default."""
    known(kind, table, name)
    check_options(kind, table[name], name, options)
    return table[name](**options)


def check_options(kind: str, act: Callable, name: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError, one line, for options that `act`, called `name`, does not take, as `make` does."""
    parameters = inspect.signature(act).parameters
    for key in options:
        if key not in parameters:
            there_are = near_miss(key, parameters) if parameters else "; it takes none"
            raise ValueError(f"{kind} {name!r} has no option {key!r}{there_are}")
        default = parameters[key].default
        if type(default) in KINDS and not _is(options[key], type(default)):
            raise ValueError(f"{kind} {name!r}: {key}={options[key]!r} must be {KINDS[type(default)]}")
        endless = lambda value: isinstance(value, float) and math.isinf(value)
        if endless(options[key]) and not endless(default):
            raise ValueError(f"{kind} {name!r}: {key}={options[key]!r} must be finite")
    for key, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and key not in options:
            raise ValueError(f"{kind} {name!r} needs option {key!r}")


def located(kind: str, name: str, places: Mapping[str, Any], cls: type) -> Any:
    """The record of a name among `places`, "package.module:RECORD" each or a record that was registered, or of such a
    place itself, which imports that module. Raises ValueError, one line, where there is none of the class `cls`."""
    place = places.get(name, name)
    if isinstance(place, cls):
        return place
    module, colon, attribute = place.partition(":")
    if not colon:
        raise ValueError(f"unknown{near_miss(name, places)}; of a {kind} of your own give package.module:RECORD, "
                         f"or a name that a module of config.imports registers")
    try:
        record = getattr(importlib.import_module(module), attribute, None)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{module} cannot be imported ({error})") from None
    if not isinstance(record, cls):
        public = ".".join(cls.__module__.split(".")[:2])
        raise ValueError(f"{attribute} of {module} is no {public}.{cls.__name__}")
    return record


def known(kind: str, table: Mapping[str, Any], name: str) -> None:
    """Raise ValueError, one line, for a name that is not in the table."""
    if not isinstance(name, str) or name not in table:
        raise ValueError(f"unknown {kind} {name!r}{near_miss(name, table)}")


def _is(value: Any, kind: type) -> bool:
    if kind in (bool, str):
        return isinstance(value, kind)
    number = numbers.Integral if kind is int else numbers.Real
    return isinstance(value, number) and not isinstance(value, bool) and value == value  # a NaN is no number


def section(value: str | Mapping[str, Any], what: str) -> dict[str, Any]:
    """{"name": ..., **options} of such a section or of its short form "NAME" or "NAME:OPTION=VALUE,OPTION=VALUE", whose
    values are Python's literals or bare words. Raises ValueError, one line, for what is neither."""
    if isinstance(value, Mapping):
        if "name" not in value:
            raise ValueError(f"{what}: {dict(value)!r} has no name; give one, and that one's options")
        return dict(value)
    name, _, words = value.partition(":")
    options = {}
    for word in words.split(",") if words else ():
        key, equals, text = word.partition("=")
        if not (key.strip() and equals):
            raise ValueError(f"{what}: {value!r} should read NAME or NAME:OPTION=VALUE,OPTION=VALUE")
        try:
            options[key.strip()] = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError):
            options[key.strip()] = text.strip()
    return {"name": name.strip(), **options}
