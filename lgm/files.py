"""Files and folders, in a file system or in a store (gs://, s3://); each file is there whole or not at all.

A store has objects and no folders: an object appears whole when its upload ends, so that no temporary name is needed,
and a folder is there as long as something lies in it. What needs a file of the local file system (safetensors, zips,
tokenizers) reads a store through `local`, a copy that is kept.
"""

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import Any

from lgm.parsing import ConfigError

STORES = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}  # scheme: (the package that speaks it, the extra it is in)
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
UNREADABLE = re.compile(r"[][*?\\]")  # what globs and tensorstore's URLs read as something else
LAST = ("config.json", "index.json", "commit_success.txt", "model_index.json")  # what says that a folder is whole


def place(name: str | Path, flag: str = "") -> Path:
    """The path of a file or folder, of the file system or of a store; nothing is made or asked for.

    `flag` is what the user said it with, as "--workdir". Raises ConfigError, one line, for an empty name, one that is
    no text, a scheme that is none of `STORES`, or a store whose package is not installed.
    """
    if isinstance(name, PurePath):
        return name  # it has been through here, or was made by this program
    said = f"{flag}={name}" if flag else repr(name)
    if not name.strip():
        raise ConfigError(f"{flag or 'a path'}={name!r} is empty; give a path")
    if "\0" in name or any("\ud800" <= letter <= "\udfff" for letter in name):
        raise ConfigError(f"{flag or 'a path'}={ascii(name)} is no text that can name a file; give another name")
    found = SCHEME.match(name)
    if found is None:
        return Path(name)
    scheme = found[1]
    if scheme not in STORES:
        known = ", ".join(f"{known}://" for known in STORES)
        raise ConfigError(f"{said}: {scheme}: is no store that lgm knows; give {known} or a local path (./{name} "
                          "names a file here)")
    if not re.match(r"[a-z0-9]+://[A-Za-z0-9][A-Za-z0-9._-]+(/|$)", name):
        raise ConfigError(f"{said} names no bucket; write {scheme}://BUCKET/PATH")
    package, extra = STORES[scheme]
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"{said} needs the package {package}; pip install 'lgm[{extra}]'")
    return _store(name)


def _store(name: str) -> Path:
    """A store's path by etils.epath over fsspec."""
    # one way for all stores, whatever else is installed; buckets with a hierarchy need no extra questions from us
    os.environ.setdefault("EPATH_USE_TF", "false")
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import fsspec.config
    from etils import epath

    for known in ("gs", "gcs", "s3"):  # a listing that is remembered hides what other processes write
        fsspec.config.conf.setdefault(known, {}).setdefault("use_listings_cache", False)
    for library in ("gcsfs", "s3fs", "fsspec", "botocore", "aiobotocore"):
        logging.getLogger(library).setLevel(logging.CRITICAL)  # what fails is raised, and said once
    scheme, _, rest = name.partition("://")
    return epath.Path(f"{scheme}://{re.sub('/+', '/', rest).rstrip('/')}")


def is_remote(path: str | Path) -> bool:
    """Whether a path lies in a store."""
    return str(path).startswith(tuple(f"{scheme}://" for scheme in STORES))


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a whole file: under a temporary name in its folder, then renamed; in a store, as one object.

    Raises ConfigError, one line, for a name that a device, a pipe or a folder has, which a rename would take away.
    """
    path = place(path)
    if is_remote(path):
        path.write_bytes(content)
        return
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path} is a {'folder' if path.is_dir() else 'device or a pipe'}; give a file's name")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def check_writable(path: Path, flag: str) -> None:
    """Raise ConfigError, one line, where nothing can be written at `path`, before what would be is made: under a file,
    or in a folder that takes none. A store is not asked."""
    if is_remote(path):
        return
    above = next(parent for parent in Path(os.path.abspath(path)).parents if parent.exists())
    if not above.is_dir():
        raise ConfigError(f"{flag}={path}: {above} is a file; give a name in a folder")
    try:
        with tempfile.TemporaryDirectory(dir=above, prefix=".lgm-"):
            pass
    except OSError as error:
        raise ConfigError(f"{flag}={path}: nothing can be written in {above} ({error.strerror}); give another place"
                          ) from None  # fmt: skip


def read_json(path: str | Path, instead: str = "the file is damaged") -> Any:
    """What a JSON file holds. Raises ConfigError, one line, where it cannot be read or is no JSON."""
    path = place(path)
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror or error}); {instead}") from None
    except (ValueError, RecursionError):
        raise ConfigError(f"{path} is not JSON; {instead}") from None


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file as `write_atomically` does."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def folders(path: Path) -> list[Path]:
    """What lies in a folder, in order; nothing where there is no such folder."""
    try:
        return sorted(child for child in path.iterdir() if child.name)
    except (FileNotFoundError, NotADirectoryError):
        return []


def below(path: Path) -> Iterator[Path]:
    """Every file under a folder."""
    if is_remote(path):
        scheme, _, root = str(path).partition("://")
        try:
            names = sorted(filesystem(path).find(root))
        except FileNotFoundError:  # no such bucket
            return
        yield from (type(path)(f"{scheme}://{name}") for name in names if not name.endswith("/"))
        return
    for folder, _, names in sorted(os.walk(path)):
        yield from (Path(folder) / name for name in sorted(names))


def remove(path: Path) -> None:
    """Remove a folder and all in it, or a file, if it is there."""
    if not is_remote(path):
        shutil.rmtree(path, ignore_errors=True)
        return
    for file in sorted(below(path), key=_rank, reverse=True):  # so that no half folder looks whole
        file.unlink(missing_ok=True)


def _rank(file: Path) -> int:
    """When a file of a folder is written: those that say that the folder is whole come last."""
    return LAST.index(file.name) + 1 if file.name in LAST else 0


def copy(source: Path, target: Path) -> None:
    """Copy a folder's files to another, here or in a store; those that say it is whole come last."""
    def into(file: Path) -> Path:
        return target / str(file)[len(str(source)) :].lstrip("/")

    for file in sorted(below(source), key=_rank):
        into(file).parent.mkdir(parents=True, exist_ok=True)
        if is_remote(file) and not is_remote(target):
            filesystem(file).get_file(str(file), str(into(file)))
        elif is_remote(target) and not is_remote(file):
            filesystem(target).put_file(str(file), str(into(file)))
        elif is_remote(file):
            into(file).write_bytes(file.read_bytes())
        else:
            shutil.copyfile(file, into(file))


def write_folder(out: str | Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary folder, then give it the name `out`: whole or not at all. In a store the files that
    say what the folder is come last."""
    out = place(out)
    if is_remote(out):
        with tempfile.TemporaryDirectory(prefix="lgm-") as scratch:
            write(Path(scratch))
            copy(Path(scratch), out)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name[:100]}."))
    try:
        write(temporary)
        temporary.chmod(0o755)
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def local(source: str | Path, flag: str = "") -> Path:
    """A path of the file system with what `source` holds: itself, or a copy of a store's file or folder, which is kept
    under ~/.cache/lgm and taken anew when something there changes. What is not there is not there in the copy."""
    path = place(source, flag)
    if not is_remote(path):
        return path
    store, root = filesystem(path), str(path).partition("://")[2]
    files = {name: info for name, info in store.find(root, detail=True).items() if not name.endswith("/")}
    marks = [[name, info.get("size"), str(info.get("etag") or info.get("ETag") or info.get("generation"))]
             for name, info in sorted(files.items())]
    copied = cache("stores") / hashlib.sha256(json.dumps([str(path), marks]).encode()).hexdigest()[:16] / path.name
    if not copied.exists() and files:
        single = list(files) == [root]

        def fetch(folder: Path) -> None:
            if single:
                store.get_file(root, str(folder / path.name))
            else:
                copy(path, folder / path.name)

        try:
            write_folder(copied.parent, fetch)
        except OSError:
            if not copied.exists():  # another process was faster otherwise
                raise
    return copied


def sha256(path: Path) -> str:
    """The hash of a local file's content, kept in this user's cache for as long as the file is not written again."""
    stat = path.stat()
    known = json.dumps([str(path.resolve()), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns])
    kept = cache("hashes") / hashlib.sha256(known.encode()).hexdigest()
    if kept.is_file() and len(text := kept.read_text()) == 64:
        return text
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    with contextlib.suppress(OSError):  # a home that cannot be written costs the time of another reading
        write_atomically(kept, found.encode())
    return found


def cache(kind: str) -> Path:
    """The folder of this user's cache that keeps one kind of thing."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lgm" / kind


def plain(path: Path) -> Path:
    """A name of the same folder that no library misreads: a link, where the name has letters of globs or of URLs."""
    if is_remote(path):
        return path
    path = Path(os.path.abspath(path))
    if not UNREADABLE.search(str(path)):
        return path
    link = cache("names") / hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        try:
            link.symlink_to(path)
        except FileExistsError:
            pass  # another process made it
    return link


def failed_in_a_store(error: Exception) -> bool:
    """Whether what a store's own libraries raise was raised: no credentials, no such bucket, no answer."""
    return type(error).__module__.partition(".")[0] in ("aiobotocore", "aiohttp", "botocore", "gcsfs", "google")


def modified(path: Path) -> float:
    """When a file or folder was written, in seconds since 1970."""
    return filesystem(path).modified(str(path)).timestamp() if is_remote(path) else path.stat().st_mtime


def filesystem(path: Path):
    """fsspec's file system of a store."""
    import fsspec

    return fsspec.filesystem(str(path).partition("://")[0])


def shipped(name: str) -> Path | None:
    """A file or folder that comes with lgm, as "configs/quickstart.py" or "launch": of the checkout, else of the
    installation; None where neither has it."""
    import sysconfig

    checkout = Path(__file__).resolve().parents[1]
    for place in (checkout, Path(sysconfig.get_path("data")) / "share" / "lgm", checkout / "share" / "lgm"):
        if (place / name).exists():
            return place / name
    return None
