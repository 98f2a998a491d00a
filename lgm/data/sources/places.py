"""Where files lie: a folder, a store or a zip. Each lists its files' names once and reads one by its name.

Nothing outside is read: a name must be one of those listed, and a link must end inside.
"""

import os
import stat
import threading
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from lgm import files
from lgm.data.sources.source import MOST_BYTES, is_unicode, split_of
from lgm.parsing import ConfigError


class Place(Protocol):
    """Named files. `label` is what errors call the place; `odd` are the names that `names` leaves out as no Unicode
    text, a folder's with a "/" at its end."""

    label: str
    odd: list[str]

    def names(self) -> list[str]:
        """The names of all files, sorted, with "/" between folders."""

    def read(self, name: str) -> bytes:
        """The content of one file. Raises ValueError, one line."""

    def stamp(self, name: str) -> str:
        """What changes where a file does, "" if nothing is known."""


class Folder:
    """Files under a folder of the file system; those that begin with a dot and folders that are links are left out."""

    def __init__(self, path: Path):
        self.path, self.label, self.odd = path, str(path), []
        self.root = os.path.realpath(path)

    def names(self) -> list[str]:
        """The names of all files, sorted."""
        found = sorted(self._below(""))
        self.odd = [name for name in found if not is_unicode(name)]
        return [name for name in found if is_unicode(name)]

    def _below(self, folder: str) -> Iterator[str]:
        try:
            entries = list(os.scandir(os.path.join(self.root, folder)))
        except OSError as error:
            raise ConfigError(f"{self.path / folder} cannot be listed ({error.strerror or error})") from None
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                below = f"{folder}{entry.name}/"
                yield from self._below(below) if is_unicode(below) else [below]
            elif entry.is_symlink() or entry.is_file(follow_symlinks=False):
                yield f"{folder}{entry.name}"

    def inside(self, name: str) -> str:
        """The path of a file, links followed. Raises ValueError, one line, for one that leads out of the folder."""
        real = os.path.realpath(os.path.join(self.root, name))
        if not real.startswith(os.path.join(self.root, "")):
            raise ValueError(f"{self.label}/{name} leads out of the folder; put the file itself there")
        return real

    def read(self, name: str) -> bytes:
        """The content of one file."""
        try:  # a pipe is not waited for
            handle = os.open(self.inside(name), os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
            with os.fdopen(handle, "rb") as file:
                facts = os.fstat(handle)
                if not stat.S_ISREG(facts.st_mode):
                    raise ValueError(f"{self.label}/{name} is no regular file; put an image there")
                _check_size(f"{self.label}/{name}", facts.st_size)
                return file.read()
        except OSError as error:
            raise ValueError(f"{self.label}/{name} cannot be read ({error.strerror or error})") from None

    def stamp(self, name: str) -> str:
        """Size and time of a file."""
        try:
            facts = os.stat(os.path.join(self.root, name))
        except OSError:  # reading it says so
            return ""
        return f"{facts.st_size} {facts.st_mtime_ns}"


class Store:
    """Files under a folder of a store (gs://, s3://)."""

    def __init__(self, path: Path):
        self.path, self.label, self.odd = path, str(path), []

    def names(self) -> list[str]:
        """The names of all files, sorted."""
        start = len(str(self.path).rstrip("/")) + 1
        return sorted(str(path)[start:] for path in files.below(self.path))

    def read(self, name: str) -> bytes:
        """The content of one file."""
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise ValueError(f"{self.label}/{name} cannot be read ({error.strerror or error})") from None

    def stamp(self, name: str) -> str:
        """Where a file lies: asking for more would be a request for each."""
        return f"{self.label}/{name}"


class Zip:
    """Files in a zip. Safe to read from several threads; nothing is unpacked to disk."""

    def __init__(self, path: Path):
        self.path, self.label, self.odd, self.lock = path, str(path), [], threading.Lock()
        try:
            self.archive = zipfile.ZipFile(files.local(path))
        # RuntimeError: it is of a later version of the format than Python's zipfile reads
        except (zipfile.BadZipFile, OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path} is not a readable zip ({error}); give a whole zip or a folder") from None

        hidden = lambda name: any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
        names = {info.filename for info in self.archive.infolist() if not info.is_dir()}
        names = {name for name in names if is_unicode(name) and not hidden(name)}
        tops = {name.partition("/")[0] for name in names}
        single = len(tops) == 1 and all("/" in name for name in names) and split_of(f"{min(tops)}/x") is None
        self.root = f"{min(tops)}/" if single else ""  # a zip of one folder is that folder's
        self.found = sorted(name.removeprefix(self.root) for name in names)

    def names(self) -> list[str]:
        """The names of all files, sorted."""
        return self.found

    def read(self, name: str) -> bytes:
        """The content of one file."""
        try:
            _check_size(f"{self.label}/{name}", self.archive.getinfo(self.root + name).file_size)
            return self.archive.read(self.root + name)
        except KeyError:
            raise ValueError(f"{self.label} has no {name}") from None
        # RuntimeError: it is encrypted, or packed in a way that Python's zipfile has not
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
            raise ValueError(f"{self.label}/{name} cannot be read ({error}); the zip is damaged or locked") from None

    def stamp(self, name: str) -> str:
        """Size and sum of a file."""
        info = self.archive.NameToInfo.get(self.root + name)
        return f"{info.file_size} {info.CRC}" if info else ""


def _check_size(name: str, size: int) -> None:
    if size > MOST_BYTES:
        raise ValueError(f"{name} has {size:,} bytes, more than the {MOST_BYTES:,} of an image; remove it")
