"""Modules of one's own that a config names, `config.imports`: what they register is known before the rest is read."""

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lgm import files
from lgm.parsing import ConfigError

NEEDS = 'give a list of modules or of .py files, as ["mylib", "own.py"]'


def resolve(values: dict[str, Any], folder: str | Path) -> None:
    """Write the files of the `imports` of a config, or of a sweep's base, as they lie in the config's `folder`: whole
    paths, so that a run's config.json finds them from anywhere."""
    for section in (values, values.get("base")):
        if isinstance(section, dict) and section.get("imports"):
            section["imports"] = [_whole(name, folder) for name in _listed(section["imports"])]


def load_imports(values: Mapping[str, Any]) -> None:
    """Import what a config's values name. Raises ConfigError, one line, for what cannot be."""
    for name in _listed(values.get("imports") or ()):
        try:
            if name.endswith(".py"):
                _load_file(name)
            else:
                importlib.import_module(name)
        except ConfigError:
            raise
        except Exception as error:
            line = str(error).splitlines()[0] if str(error) else ""
            hint = ""
            if isinstance(error, ModuleNotFoundError) and error.name == name.partition(".")[0]:
                hint = f"; install it, put its folder in PYTHONPATH, or name its file, {name.rpartition('.')[2]}.py"
            raise ConfigError(f"config.imports: {name} cannot be imported ({type(error).__name__}: {line}){hint}"
                              ) from error


def _listed(names: Any) -> list[str]:
    if isinstance(names, str) or not isinstance(names, (list, tuple)) or not all(
            isinstance(name, str) and name for name in names):
        raise ConfigError(f"config.imports={names!r} has the wrong type; {NEEDS}")
    return list(names)


def _whole(name: str, folder: str | Path) -> str:
    if not name.endswith(".py") or files.is_remote(name):
        return name
    return f"{folder}/{name}" if files.is_remote(str(folder)) else str(Path(folder, name).absolute())


def _load_file(name: str) -> None:
    """Import a file under its own name; what lies beside it can be imported from there, after all that is installed."""
    path = files.local(name, "config.imports") if files.is_remote(name) else Path(name)
    if not path.is_file():
        raise ConfigError(f"config.imports: {name} is not there; give the file's path from the config's folder")
    module = path.stem
    if (loaded := sys.modules.get(module)) is not None:
        if (place := getattr(loaded, "__file__", None)) and Path(place).resolve() == path.resolve():
            return
        raise ConfigError(f"config.imports: {name} cannot be imported, for there is another module {module!r}; give "
                          "the file another name")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(module, path)
    sys.modules[module] = found = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(found)
    except BaseException:
        del sys.modules[module]
        raise
