"""Names of TensorFlow Datasets, read without TensorFlow."""

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from lgm.data.rows import build


class TensorFlowDataset:
    """A prepared TensorFlow Datasets name "NAME" or "NAME:SPLIT" (default split: train), read without TensorFlow.

    A file's name is its number. Images stay encoded until they are asked for.
    """

    kind = "TensorFlow Datasets"

    def __init__(self, name: str):
        name, _, split = name.partition(":")
        self.name, self.split = name, split or "train"
        try:
            tfds = importlib.import_module("tensorflow_datasets")
        except ImportError:
            raise ValueError(f"config.data.source='tfds:{name}' needs TensorFlow Datasets; pip install "
                             "tensorflow-datasets, or give a folder") from None
        try:
            builder = tfds.builder(name)
            features = builder.info.features
            self.image = _feature_of(features, tfds.features.Image, name)
            self.full_name = builder.info.full_name
            self.source = builder.as_data_source(self.split, decoders={self.image: tfds.decode.SkipDecoding()})
        except Exception as error:  # the library raises many kinds, with pages of text
            line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(f"config.data.source='tfds:{name}:{self.split}' cannot be opened ({line})") from None
        self.labels = {k: f for k, f in features.items() if isinstance(f, tfds.features.ClassLabel)}
        self.rows = build(self._rows())

    def _rows(self) -> Iterator[dict[str, Any]]:
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

    def read(self, i: int) -> bytes:
        """The encoded image of record `i`."""
        return self.source[i][self.image]

    def stamp(self, i: int) -> str:
        """The data set's name, which holds its version: a prepared one does not change."""
        return f"{self.full_name}:{self.split}"


def _feature_of(features: Mapping[str, Any], kind: type, name: str) -> str:
    found = [key for key, feature in features.items() if isinstance(feature, kind)]
    if not found:
        raise ValueError(f"{name} has no image feature; it has {', '.join(features)}")
    return found[0]
