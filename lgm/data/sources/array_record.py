"""ArrayRecord shards of tf.train.Examples, read without TensorFlow."""

import functools
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lgm import files
from lgm.data.rows import NO_UTF8
from lgm.data.sources.index import OPEN, check_rows, indexed, mark, with_split
from lgm.data.sources.source import Bad, is_text


class ArrayRecord:
    """Shards whose records are tf.train.Examples with a feature of image bytes, as TensorFlow Datasets writes them."""

    kind = "ArrayRecord shards"

    def __init__(self, shards: Sequence[Path], label: str, bad: Bad):
        self.shards, self.label = [files.local(shard) for shard in shards], label
        self.rows = indexed("array_record", shards, bad, lambda: self._rows(bad))
        check_rows(self.rows, label, bad)
        self.marks = list(map(mark, shards))
        self.at = [self.rows.table[name].to_numpy() for name in ("_shard", "_row")]
        self.lock = threading.Lock()

    def read(self, i: int) -> bytes:
        """The encoded image of record `i`."""
        shard, row = (int(column[i]) for column in self.at)
        try:
            with self.lock:
                record = self._reader(shard).read([row])[0]
        except (RuntimeError, ValueError, IndexError) as error:
            raise ValueError(f"{self.shards[shard]} record {row} cannot be read ({error}); write it anew") from None
        return _image_of(_features(record))[1]

    def stamp(self, i: int) -> str:
        """What changes where the shard of record `i` does, and its place there."""
        shard, *place = (int(column[i]) for column in self.at)
        return f"{self.marks[shard]} {place}"

    @functools.lru_cache(OPEN)  # noqa: B019
    def _reader(self, shard: int):
        from array_record.python.array_record_module import ArrayRecordReader

        return ArrayRecordReader(str(self.shards[shard]))

    def _rows(self, bad: Bad) -> Iterator[dict[str, Any]]:
        for number, path in enumerate(self.shards):
            try:
                reader = self._reader(number)
                count = reader.num_records()
                if not reader.ok():  # which has no records then, as an empty shard has
                    raise ValueError("it is cut short or damaged")
            except (RuntimeError, ValueError) as error:
                bad.add(str(path), f"{path} is no readable ArrayRecord ({str(error).splitlines()[0]}); write it anew")
                continue
            for row in range(count):
                try:
                    features = _features(reader.read([row])[0])
                    image, _ = _image_of(features)
                    values = {name: _plain(value) for name, value in features.items() if name != image}
                    if not is_text([*values.values()]):
                        raise ValueError("it holds text with NUL")
                except (RuntimeError, ValueError, UnicodeDecodeError) as error:
                    line = str(error).splitlines()[0]
                    line = NO_UTF8 if isinstance(error, UnicodeDecodeError) else line
                    bad.add(f"{path} record {row}", f"{path} record {row} is no example with an image ({line})")
                    continue
                values = {name: value for name, value in values.items() if value is not None}
                values.setdefault("file_name", f"{path.name}/{row}")
                yield with_split({**values, "_shard": number, "_row": row}, path.name)


def _features(record: bytes) -> dict[str, list]:
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    try:
        example = tf_example_pb2.Example.FromString(record)
    except DecodeError:
        raise ValueError("it is no tf.train.Example") from None
    lists = ((name, feature.WhichOneof("kind"), feature) for name, feature in example.features.feature.items())
    return {name: list(getattr(feature, kind).value) for name, kind, feature in lists if kind}


def _image_of(features: dict[str, list]) -> tuple[str, bytes]:
    for name in ("image", "image/encoded", "img", "jpg", "png"):
        if features.get(name) and isinstance(features[name][0], bytes):
            return name, features[name][0]
    raise ValueError(f"it has no image, only {', '.join(sorted(features)) or 'nothing'}")


def _plain(values: list) -> Any:
    values = [value.decode() if isinstance(value, bytes) else value for value in values]
    return values[0] if len(values) == 1 else values or None
