"""Config files: what `get_config` gives, or a run's config.json, with overrides, as plain nested dicts."""

import ast
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lgm import files
from lgm.config import imports
from lgm.parsing import ConfigError


def read_config_file(spec: str, overrides: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """Run `get_config(arg)` of `path.py[:arg]` or read a run's config.json, and apply overrides; plain nested dicts.

    The file may lie in a store (gs://, s3://).
    """
    if "\0" in spec or any("\ud800" <= letter <= "\udfff" for letter in spec):
        raise ConfigError(f"--config={ascii(spec)} is no text that can name a file; give another name")
    scheme = spec[: spec.find("://") + 3] if files.is_remote(spec) else ""
    name, _, arg = spec[len(scheme) :].partition(":")
    file = scheme + name
    path = files.local(file, "--config") if scheme else Path(file)
    if not scheme and not path.exists() and path.parts[:1] == ("configs",):
        path = files.shipped(file) or path
    folder = file.rpartition("/")[0] if scheme else str(path.parent)
    if path.suffix == ".json" and path.is_file():
        return _with_overrides(_read_json(path), overrides, folder)
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
    return _with_overrides(config.to_dict() if isinstance(config, ConfigDict) else config, overrides, folder)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (ValueError, RecursionError):
        raise ConfigError(f"--config={path} is not JSON; give a run's config.json or a .py file") from None
    if not isinstance(values, dict):
        raise ConfigError(f"--config={path} is no run's config.json; it must hold an object")
    return values


def _with_overrides(config: dict[str, Any], overrides: Sequence[tuple[str, str]], folder: str) -> dict[str, Any]:
    for key, text in overrides:
        _override(config, key, text)
    imports.resolve(config, folder)
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
