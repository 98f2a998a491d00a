"""Files that somebody else wrote: read only where they are files, of a size that can be, and of values that can be."""

import json
import math
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lgm.files import local

LARGEST_TEXT = 1 << 28  # bytes of a text file; the largest vocabularies are a tenth of it


def regular(path: str | Path) -> Path:
    """`path` where it is a file with bytes of its own; of a store's file a copy here.

    Raises FileNotFoundError where nothing is, and ValueError, one line, for a folder, a named pipe, a device or a
    socket, which would be read without end.
    """
    path = local(path)
    if "\0" in str(path):
        raise ValueError(f"{str(path)!r} is no path")
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket"}
        raise ValueError(f"{path} is a {kinds.get(stat.S_IFMT(mode), 'device')}; give a regular file")
    return path


def read_bytes(path: str | Path, most: int = LARGEST_TEXT) -> bytes:
    """The bytes of a regular file of at most so many. Raises as `regular` does, and ValueError for a larger one."""
    path = regular(path)
    if (size := path.stat().st_size) > most:
        raise ValueError(f"{path} has {size} bytes, which is no such file; at most {most} are read")
    return path.read_bytes()


def read_text(path: str | Path) -> str:
    """The text of a regular file in UTF-8. Raises as `read_bytes` does."""
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error.reason} at byte {error.start})") from None


def read_object(path: str | Path, infinite: bool = False) -> dict[str, Any]:
    """The JSON object of a regular file. Raises as `regular` does, and ValueError, one line, for any other content.

    infinite: whether a number may be, which is for the caller to check then: diffusers writes a bound that binds
    nothing as -Infinity.
    """
    text = read_text(path)
    try:
        value = parse_object(text, infinite)
    except ValueError as error:
        raise ValueError(f"{path} is no JSON object ({error}); download it again") from None
    return value


def parse_object(text: str | bytes, infinite: bool = False) -> dict[str, Any]:
    """A JSON object in which no key stands twice and every number is finite. Raises ValueError, one line."""
    number = dict(parse_constant=_infinite) if infinite else dict(parse_constant=_refused, parse_float=finite)
    try:
        value = json.loads(text, object_pairs_hook=_once, **number)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__} instead")
    return value


def finite(text: str) -> float:
    """The number that `text` says. Raises ValueError for one that is not finite."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not finite")
    return value


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"{shown(twice)} stands twice")
    return found


def _refused(constant: str):
    raise ValueError(f"{constant} is no number")


def _infinite(constant: str) -> float:
    return _refused(constant) if constant == "NaN" else float(constant)


def shown(value: Any, longest: int = 80) -> str:
    """`value` as it is written, cut to be read in one line."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
