"""Where the files of an image set lie: a folder, a zip or a TensorFlow Datasets name; each reads a file by its name."""

from __future__ import annotations

import importlib
import threading
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np

from lgm import files

METADATA = "metadata.jsonl"


class Storage(Protocol):
    """What an image set needs of the place its files lie in. Every error is a ValueError of one line."""

    def read(self, name: str) -> bytes:
        """The content of one file."""

    def missing(self, names: Iterable[str]) -> set[str]:
        """Those of `names` that are not there."""


class Folder:
    """Files under a folder of the file system."""

    def __init__(self, path: Path):
        self.path = path
        if not (path / METADATA).is_file():
            raise ValueError(f"{path} has no {METADATA}; an image folder has one, beside its images")

    def read(self, name: str) -> bytes:
        """The content of one file."""
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise ValueError(f"{self.path / name} cannot be read ({error.strerror or error})") from None

    def missing(self, names: Iterable[str]) -> set[str]:
        """Those of `names` that are not there; each folder is listed once, which on a network is far cheaper than
        asking for each file."""
        listed: dict[Path, set[str]] = {}
        absent = set()
        for name in names:
            path = self.path / name
            if path.parent not in listed:
                listed[path.parent] = {child.name for child in files.folders(path.parent)}
            if path.name not in listed[path.parent]:
                absent.add(name)
        return absent


class Zip:
    """Files in a zip, at its root or in the one folder that holds the metadata. Safe to read from several threads."""

    def __init__(self, path: Path):
        self.path, self.lock = path, threading.Lock()
        try:
            self.archive = zipfile.ZipFile(files.local(path))
        except (zipfile.BadZipFile, OSError) as error:
            raise ValueError(f"{path} is not a readable zip ({error}); give a whole zip or a folder") from None
        self.names = set(self.archive.namelist())
        roots = [PurePosixPath(name).parent for name in self.names if PurePosixPath(name).name == METADATA]
        if not roots:
            raise ValueError(f"{path} has no {METADATA}; a zipped image folder has one, beside its images")
        if len(roots) > 1 and PurePosixPath(".") not in roots:
            raise ValueError(f"{path} has several {METADATA} ({', '.join(sorted(map(str, roots)))}); zip one set alone")
        self.root = min(roots, key=lambda root: len(root.parts))

    def read(self, name: str) -> bytes:
        """The content of one file."""
        try:
            return self.archive.read(str(self.root / name))
        except KeyError:
            raise ValueError(f"{self.path} has no {name}") from None
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:  # RuntimeError: encrypted
            raise ValueError(f"{self.path}/{name} cannot be read ({error}); the zip is damaged or locked") from None

    def missing(self, names: Iterable[str]) -> set[str]:
        """Those of `names` that are not there."""
        return {name for name in names if str(self.root / name) not in self.names}


class TensorFlowDataset:
    """A prepared TensorFlow Datasets name "NAME" or "NAME:SPLIT" (default split: train), read without TensorFlow.

    A file's name is its number. Images stay encoded until they are asked for.
    """

    def __init__(self, name: str):
        name, _, split = name.partition(":")
        self.name, self.split = name, split or "train"
        try:
            tfds = importlib.import_module("tensorflow_datasets")
        except ImportError:
            raise ValueError(
                f"config.data.source='tfds:{name}' needs TensorFlow Datasets; pip install 'lgm[tfds]' or give a folder"
            ) from None
        try:
            builder = tfds.builder(name)
            features = builder.info.features
            self.image = _feature_of(features, tfds.features.Image, name)
            self.source = builder.as_data_source(self.split, decoders={self.image: tfds.decode.SkipDecoding()})
        except Exception as error:  # the library raises many kinds, with pages of text
            line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(f"config.data.source='tfds:{name}:{self.split}' cannot be opened ({line})") from None
        self.labels = {k: f for k, f in features.items() if isinstance(f, tfds.features.ClassLabel)}

    def rows(self) -> Iterator[dict[str, Any]]:
        """Metadata of every record: its plain features, labels by their names, and "text", which is the feature
        "text" or "caption" or else the label's name."""
        for number in range(len(self.source)):
            record = self.source[number]
            row: dict[str, Any] = {"file_name": str(number)}
            for name, value in record.items():
                if name in self.labels:
                    row[name] = self.labels[name].int2str(int(value)).replace("_", " ")
                elif name != self.image and np.ndim(value) == 0:
                    text = isinstance(value, bytes)
                    row[name] = self._text(value, name, number) if text else np.asarray(value).item()
            row["text"] = row.get("text") or row.get("caption") or next((row[name] for name in self.labels), "")
            yield row

    def _text(self, value: bytes, feature: str, number: int) -> str:
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise ValueError(f"tfds:{self.name}:{self.split} record {number}: its {feature} is no UTF-8 text") from None

    def read(self, name: str) -> bytes:
        """One record's encoded image."""
        return self.source[int(name)][self.image]

    def missing(self, names: Iterable[str]) -> set[str]:
        """None: records are counted, not named."""
        return set()


def _feature_of(features: Mapping[str, Any], kind: type, name: str) -> str:
    found = [key for key, feature in features.items() if isinstance(feature, kind)]
    if not found:
        raise ValueError(f"{name} has no image feature; it has {', '.join(features)}")
    return found[0]
