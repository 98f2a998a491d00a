"""WebDataset: tars whose files of one name up to the first dot are one record. Read at random by an index of where each
image lies."""

import functools
import os
import posixpath
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lgm import files
from lgm.data.sources.beside import told
from lgm.data.sources.index import OPEN, check_rows, indexed, mark, opened, with_split
from lgm.data.sources.source import MOST_BYTES, Bad, is_image, is_unicode

MOST_TEXT = 1 << 20  # bytes of a file that is no image


class WebDataset:
    """Tars of NAME.jpg, NAME.txt, NAME.json, NAME.cls: a record is what has one name up to its first dot."""

    kind = "WebDataset tars"

    def __init__(self, shards: Sequence[Path], label: str, bad: Bad):
        self.shards, self.label = shards, label
        self.rows = indexed("tar", shards, bad, lambda: _tar_rows(shards, bad))
        check_rows(self.rows, label, bad)
        self.marks = list(map(mark, shards))
        table = self.rows.table
        self.at = [table[name].to_numpy() for name in ("_shard", "_offset", "_size")]
        self._open = functools.lru_cache(OPEN)(lambda shard: _Ranges(shards[shard]))

    def read(self, i: int) -> bytes:
        """The encoded image of record `i`."""
        shard, offset, size = (int(column[i]) for column in self.at)
        content = self._open(shard).read(offset, size)
        if len(content) != size:
            raise ValueError(f"{self.shards[shard]} has changed or is cut short; index it again")
        return content

    def stamp(self, i: int) -> str:
        """What changes where the shard of record `i` does, and its place there."""
        shard, *place = (int(column[i]) for column in self.at)
        return f"{self.marks[shard]} {place}"


class _Ranges:
    """Pieces of one file, read by several threads at once."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.handle = None if files.is_remote(path) else os.open(path, os.O_RDONLY)
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error.strerror or error})") from None

    def read(self, offset: int, size: int) -> bytes:
        try:
            if self.handle is not None:
                return os.pread(self.handle, size, offset)
            return files.filesystem(self.path).cat_file(str(self.path), start=offset, end=offset + size)
        except OSError as error:
            raise ValueError(f"{self.path} cannot be read ({error.strerror or error})") from None

    def __del__(self):
        if getattr(self, "handle", None) is not None:
            os.close(self.handle)


def _tar_rows(shards: Sequence[Path], bad: Bad) -> Iterator[dict[str, Any]]:
    for number, path in enumerate(shards):
        for key, members in _samples(path, bad):
            row: dict[str, Any] = {}
            label = f"{path}/{key}"
            try:
                pictures = [suffix for suffix in members if is_image(suffix)]
                # a record is what has one name up to the first dot: NAME.mask.png is more of NAME.jpg, while of
                # NAME.0001.jpg and NAME.0002.jpg neither is the image
                plain = [suffix for suffix in pictures if suffix.count(".") == 1] or pictures
                if len(pictures) > 1 and len(plain) > 1:
                    raise ValueError(f"{', '.join(plain[:2])} are images of one record, which has its name up to the "
                                     "first dot; give each image such a name of its own")
                for suffix, (offset, size, content) in members.items():
                    if suffix in plain:
                        row |= {"file_name": f"{path.name}/{key}{suffix}", "_shard": number, "_offset": offset,
                                "_size": size}
                    elif content is not None:
                        row = {**told(suffix, content), **row} if suffix == ".json" else row | told(suffix, content)
            except ValueError as error:
                bad.add(label, f"{label}: {error}")
                continue
            if "_shard" not in row or row["_size"] > MOST_BYTES:
                bad.add(label, f"{label} has no image of at most {MOST_BYTES:,} bytes; add one or remove it")
                continue
            yield with_split({**row, "text": row.get("text") or row.get("cls", "")}, path.name)


def _samples(path: Path, bad: Bad) -> Iterator[tuple[str, dict[str, tuple[int, int, bytes | None]]]]:
    """(name, {suffix: (offset, size, content of what is no image)}) of a tar's records, in order; what is no plain file
    (a link, a device) is passed over, and of a tar that breaks off those before."""
    key, members = None, {}
    try:
        with opened(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            length = file.seek(0, os.SEEK_END)
            file.seek(0)
            for member in archive:
                folder, name = posixpath.split(member.name)
                stem, dot, suffix = name.partition(".")
                if not member.isreg() or not stem or member.sparse is not None:
                    continue
                if not is_unicode(member.name):
                    label = f"{path}/{ascii(member.name)}"
                    if is_image(member.name):
                        bad.add(label, f"{label}: its name is no Unicode text; rename it")
                    continue
                if member.offset_data + member.size > length:
                    raise tarfile.ReadError("unexpected end of data")
                suffix = f".{suffix.lower()}"
                if posixpath.join(folder, stem) != key:
                    if members:
                        yield key, members
                    key, members = posixpath.join(folder, stem), {}
                text = suffix in (".txt", ".caption", ".json", ".cls")
                if text and member.size > MOST_TEXT:
                    bad.add(f"{path}/{member.name}", f"{path}/{member.name} is no caption: {member.size:,} bytes")
                    continue
                content = archive.extractfile(member).read() if text else None
                if dot:
                    members[suffix] = member.offset_data, member.size, content
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError, RecursionError) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        bad.add(str(path), f"{path} is no whole tar ({line}); write it anew, not compressed")
    if members:
        yield key, members
