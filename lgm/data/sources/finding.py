"""Which kind of collection lies at a path."""

import fnmatch
import posixpath
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

from lgm import files
from lgm.data.sources.array_record import ArrayRecord
from lgm.data.sources.beside import Beside
from lgm.data.sources.metadata import Metadata, tables_of
from lgm.data.sources.parquet import Parquet
from lgm.data.sources.places import Folder, Store, Zip
from lgm.data.sources.source import Bad, Source, is_image
from lgm.data.sources.tars import WebDataset
from lgm.data.sources.tfds import TensorFlowDataset
from lgm.files import place
from lgm.parsing import ConfigError

SHIPPED = {"emoji64": "emoji64/emoji64.zip", "flags": "flags/flags.zip"}
SHARDS: dict[str, Callable[..., Source]] = {"webdataset": WebDataset, "parquet": Parquet, "array_record": ArrayRecord}
# kind -> what opens KIND:REST, called with (REST, caption, bad); None where looking at the path REST says how
SOURCES: dict[str, Callable[..., Source] | None] = {
    **dict.fromkeys(("metadata", "images", *SHARDS)),
    "tfds": lambda rest, caption, bad: TensorFlowDataset(rest),
}
ENDINGS = {".tar": "webdataset", ".parquet": "parquet", ".arrayrecord": "array_record", ".array_record": "array_record"}
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".7z", ".rar")
UNPACK = " is packed as a whole, and images are read at random: unpack it to a folder or a .tar"
WHAT = f"give {', '.join(SHIPPED)}, a folder, a zip, shards (.tar, .parquet, .arrayrecord), or tfds:NAME"


def open_source(spec: str, caption: str | tuple[str, ...] = "text", bad: Bad | None = None) -> Source:
    """The collection at `spec`: a shipped name, a path, a pattern of shards (data-*.tar), or KIND:path, KIND being one
    of `SOURCES`, where looking would find another or there is nothing to look at.

    Records of which no image can be made are left out and noted in `bad`; by default any is an error. `caption` are
    the fields that are wanted as captions. Raises ValueError, one line, for what is no collection.
    """
    bad = Bad() if bad is None else bad
    kind, colon, rest = spec.partition(":")
    if colon and kind in SOURCES and not rest.startswith("//"):
        if (opened := SOURCES[kind]) is not None:
            return opened(rest, caption, bad)
        spec = rest
    else:
        kind = ""
    if spec in SHIPPED and not kind:
        path = Path(str(resources.files("lgm.data") / SHIPPED[spec]))
    else:
        path = place(spec, "config.data.source")
    if "*" in path.name:
        matching = [child for child in files.folders(path.parent) if fnmatch.fnmatchcase(child.name, path.name)]
        if not matching:
            raise ValueError(f"config.data.source={str(path)!r}: no file is so named; {WHAT}")
        return _shards(kind, matching, str(path), bad)
    try:
        folder, file = path.is_dir(), path.is_file()
    except OSError:  # a name that is too long
        folder = file = False
    if not folder and not file:
        raise ValueError(f"config.data.source={spec!r} is not there; {WHAT}")
    if file and (kind in SHARDS or _kind_of(path.name)):
        return _shards(kind, [path], str(path), bad)
    if file and path.name.lower().endswith(PACKED):
        raise ConfigError(f"{path}{UNPACK}")
    where = Zip(path) if not folder else Store(path) if files.is_remote(path) else Folder(path)
    names = where.names()
    if folder and (not tables_of(names) or kind in SHARDS):
        inside = getattr(where, "inside", lambda name: path / name)
        shards = [path / name for name in names if _kind_of(name) and inside(name)]
        if shards and kind in ("", *SHARDS):
            return _shards(kind, shards, str(path), bad)
    if tables_of(names) and kind != "images":
        return Metadata(where, names, caption, bad)
    if any(map(is_image, names)) and kind != "metadata":
        return Beside(where, names, bad)
    some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    holds = f"it holds {some}" if names else "it is empty"
    if packed := [name for name in names if name.lower().endswith(PACKED)]:
        holds += f"; {packed[0]}{UNPACK}"
    if zips := [name for name in names if name.lower().endswith(".zip")]:
        holds += f"; of zips give one, {where.label}/{zips[0]}, or several as a list of sources"
    raise ValueError(f"{where.label} has no metadata.jsonl, .csv or .parquet, no images and no shards: {holds}; {WHAT}")


def _kind_of(name: str) -> str | None:
    if posixpath.basename(name).startswith("metadata."):
        return None
    for ending, kind in ENDINGS.items():  # those of TensorFlow Datasets are followed by -00000-of-00004
        if name.endswith(ending) or f"{ending}-" in posixpath.basename(name):
            return kind
    return None


def _shards(kind: str, paths: Sequence[Path], label: str, bad: Bad) -> Source:
    kinds = {_kind_of(path.name) for path in paths} - {None}
    if kind and kind in kinds:
        paths = [path for path in paths if _kind_of(path.name) == kind]
    elif len(kinds) > 1:
        raise ConfigError(f"{label} holds shards of several kinds ({', '.join(sorted(kinds))}); write KIND:{label}")
    elif not kind and not kinds:
        raise ConfigError(f"{label} is of no kind of shards that is known; {WHAT}")
    return SHARDS[kind or kinds.pop()](paths, label, bad)
