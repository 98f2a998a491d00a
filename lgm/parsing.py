"""Strict parsing: plain dicts into frozen dataclasses, with errors of one line."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from lgm.bounds import check_bounds


class ConfigError(ValueError):
    """A config that cannot be: the message is one line with the key, the value and what would do."""

def parse(cls: type, values: Mapping[str, Any], path: str):
    """An instance of dataclass `cls` from `values`; nested dataclasses parse recursively."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path}={values!r} has the wrong type; give a dict")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for key in values:
        if key not in fields:
            raise ConfigError(f"{path}.{key} is an unknown key{near_miss(key, fields)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"{path}.{name} is missing; give it a value of type {describe(hints[name])}")
    values = {key: _value(hints[key], value, f"{path}.{key}") for key, value in values.items()}
    try:
        check_bounds(cls, values, f"{path}.")
    except ValueError as error:
        raise ConfigError(str(error)) from None
    try:
        return cls(**values)
    except ConfigError:
        raise
    except ValueError as error:  # from a model configuration's own checks
        raise ConfigError(f"{path}: {error}") from None


def near_miss(word: str, known) -> str:
    """`; did you mean 'x'?`, or the list of what is known."""
    close = difflib.get_close_matches(str(word), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(sorted(known))}"


def describe(hint) -> str:
    """A type in words a person would use."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(a) for a in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(a) for a in args)
    if origin is tuple:
        return f"a list of {describe(args[0])}"
    if origin is dict or hint is dict or dataclasses.is_dataclass(hint):
        return "a dict"
    return {type(None): "None"}.get(hint, getattr(hint, "__name__", str(hint)))


def _value(hint, value, path: str):
    wrong = ConfigError(f"{path}={value!r} has the wrong type; give {describe(hint)}")
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:  # half of a surrogate pair, as of bytes of a command line that are no UTF-8
            raise ConfigError(f"{path}={ascii(value)} is no Unicode text; write it in UTF-8") from None
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        others = [a for a in args if a is not type(None)]
        for option in others:
            try:
                return _value(option, value, path)
            except ConfigError as error:
                if len(others) == 1 or "no Unicode text" in str(error):
                    raise
        raise wrong
    if origin is typing.Literal:
        if value not in args:
            raise ConfigError(f"{path}={value!r} is not {describe(hint)}")
        return value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise wrong
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_value(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
        if len(args) != len(value):
            raise ConfigError(f"{path}={value!r} must have {len(args)} items")
        return tuple(_value(a, v, f"{path}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True)))
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if isinstance(value, hint):
            return value
        if not isinstance(value, Mapping):
            raise wrong
        return parse(hint, value, path)
    if origin is dict or hint is dict:
        if not isinstance(value, Mapping):
            raise wrong
        return dict(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"{path} has {len(str(value))} digits; give a number that a float holds") from None
    if hint is int and isinstance(value, bool):
        raise wrong
    if not isinstance(value, hint):
        raise wrong
    return value


def as_dict(instance) -> dict[str, Any]:
    """A dataclass as plain values, tuples as lists: what JSON gives back."""

    def plain(value):
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        if isinstance(value, Mapping):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, (tuple, list)):
            return [plain(v) for v in value]
        return value

    return plain(instance)


def differences(ours: Any, theirs: Any, skip: Collection[str] = (), whole: Callable[[str], bool] = lambda key: False,
                name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, ours, theirs) of every value in which two plain nested dicts differ, but for the keys to `skip`; a section
    of which `whole` holds is one value."""
    if name in skip or ours == theirs:
        return
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping) and not whole(name):
        for key in {**ours, **theirs}:
            inner = f"{name}.{key}" if name else key
            yield from differences(ours.get(key), theirs.get(key), skip, whole, inner)
    else:
        yield name, ours, theirs


def numbers(flag: str, words: str | None, example: str = "1e21,1e22") -> tuple[float, ...]:
    """`1e21,1e22` as numbers."""
    try:
        return tuple(float(word) for word in words.split(",")) if words else ()
    except ValueError:
        raise ConfigError(f"{flag}={words} is not a list of numbers, as {example}") from None
