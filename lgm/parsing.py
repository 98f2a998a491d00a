"""Strict parsing: config files and plain dicts into frozen dataclasses, with errors of one line."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import json
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

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
        check_bounds(cls.__name__, values, f"{path}.")
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
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        others = [a for a in args if a is not type(None)]
        for option in others:
            try:
                return _value(option, value, path)
            except ConfigError:
                if len(others) == 1:
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
    if dataclasses.is_dataclass(hint):
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


def first_difference(ours: Any, theirs: Any, name: str = ""):
    """(key, ours, theirs) of the first value in which two plain nested dicts differ; None where they are the same."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in {**ours, **theirs}:
            found = first_difference(ours.get(key), theirs.get(key), f"{name}.{key}" if name else key)
            if found:
                return found
        return None
    return None if ours == theirs else (name, ours, theirs)


def read_config_file(spec: str, overrides: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """Run `get_config(arg)` of `path.py[:arg]` or read a run's config.json, and apply overrides; plain nested dicts.

    The file may lie in a store (gs://, s3://).
    """
    from lgm import files  # which says what is wrong with a name as this module does

    if "\0" in spec or any("\ud800" <= letter <= "\udfff" for letter in spec):
        raise ConfigError(f"--config={ascii(spec)} is no text that can name a file; give another name")
    scheme = spec[: spec.find("://") + 3] if files.is_remote(spec) else ""
    name, _, arg = spec[len(scheme) :].partition(":")
    file = scheme + name
    path = files.local(file, "--config") if scheme else Path(file)
    if not scheme and not path.exists() and path.parts[:1] == ("configs",):
        path = files.shipped(file) or path
    if path.suffix == ".json" and path.is_file():
        return _with_overrides(_read_json(path), overrides)
    if path.suffix != ".py" or not path.is_file():
        raise ConfigError(f"--config={spec}: {file} is not a config file; give a .py file with get_config(), or a "
                          "run's config.json")
    module_spec = importlib.util.spec_from_file_location(f"lgm_config_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise ConfigError(f"--config={spec}: {file} has no get_config()")
        config = module.get_config(arg) if arg else module.get_config()
    except ConfigError:
        raise
    except Exception as error:
        line = str(error).splitlines()[0] if str(error) else ""
        raise ConfigError(f"--config={spec}: {file} failed with {type(error).__name__}: {line}") from error
    return _with_overrides(config.to_dict() if isinstance(config, ConfigDict) else config, overrides)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (ValueError, RecursionError):
        raise ConfigError(f"--config={path} is not JSON; give a run's config.json or a .py file") from None
    if not isinstance(values, dict):
        raise ConfigError(f"--config={path} is no run's config.json; it must hold an object")
    return values


def _with_overrides(config: dict[str, Any], overrides: Sequence[tuple[str, str]]) -> dict[str, Any]:
    for key, text in overrides:
        _override(config, key, text)
    return config


def _override(config: dict, key: str, text: str) -> None:
    """Set `a.b.c` to a Python literal (or the bare text where it is none), creating a section that is only implied."""
    *sections, last = key.split(".")
    node = config
    for depth, section in enumerate(sections):
        if node.get(section) is None:
            node[section] = {}
        node = node[section]
        if not isinstance(node, dict):
            raise ConfigError(f"--config.{key}: config.{'.'.join(sections[: depth + 1])} is not a section")
    try:
        node[last] = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        node[last] = text
