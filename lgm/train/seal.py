"""What the files of a checkpoint hold, written beside it, so that a bit that has changed since is seen.

The arrays that Orbax writes carry no check sums (a changed bit of a parameter is a changed parameter), and a file
system that lost power or a copy that went wrong says nothing either. A store checks its objects itself.
"""

import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lgm import files
from lgm.untrusted import read_bytes, regular

SEAL = ".sums"  # a checkpoint's folder 7 has its sums in 7.sums
PIECE = 1 << 24  # bytes read at once


def seal(folder: Path) -> None:
    """Write the CRC-32 of every file of a folder beside it."""
    files.write_atomically(folder.with_suffix(SEAL), (json.dumps(_sums(folder)) + "\n").encode())


def check_seal(folder: Path) -> None:
    """Raise ValueError, one line, where a folder's files are not those of its seal, or one is no file at all: a named
    pipe or a device would be read without end. A folder without a seal passes."""
    for path in files.below(folder):
        regular(path)
    try:
        sealed = json.loads(read_bytes(folder.with_suffix(SEAL)))
    except (OSError, ValueError, RecursionError):
        return  # killed before it was written: what Orbax finds wrong is all that is known
    if not isinstance(sealed, dict):
        return
    found = _sums(folder)
    for name in sorted({**sealed, **found}):
        if name not in found:
            raise ValueError(f"{name} is not there")
        if found[name] != sealed.get(name):
            raise ValueError(f"{name} is not what was written")


def _sums(folder: Path) -> dict[str, int]:
    paths = list(files.below(folder))
    with ThreadPoolExecutor(4) as pool:
        return {str(path.relative_to(folder)): value for path, value in zip(paths, pool.map(_sum, paths), strict=True)}


def _sum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            value = zlib.crc32(piece, value)
    return value
