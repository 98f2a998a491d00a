"""One set of records, (name, encoded image, caption, class), written in each of the shapes that people have."""

import csv
import io
import json
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2


def _files(folder, records):
    for name, content, _, _ in records:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def jsonl(folder, records):
    _files(folder, records)
    rows = ({"file_name": name, "text": text, "class": kind} for name, _, text, kind in records)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def comma(folder, records):
    _files(folder, records)
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "text", "class"), *((name, t, k) for name, _, t, k in records)])
    return folder


def metadata_parquet(folder, records):
    _files(folder, records)
    names, _, texts, kinds = zip(*records, strict=True)
    pq.write_table(pa.table({"file_name": names, "text": texts, "class": kinds}), folder / "metadata.parquet")
    return folder


def kohya(folder, records):
    _files(folder, records)
    for name, _, text, _ in records:
        (folder / name).with_suffix(".txt").write_text(text + "\n", encoding="utf-8")
    return folder


def zipped(folder, records):
    jsonl(folder / "set", records)
    with zipfile.ZipFile(folder / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((folder / "set").rglob("*.*")):
            archive.write(path, path.relative_to(folder))
    return folder / "set.zip"


def parquet(folder, records, at=10):
    """Two shards with row groups of four, the image a struct as Hugging Face writes it."""
    for number, part in enumerate((records[:at], records[at:])):
        images = [{"bytes": content, "path": name} for name, content, _, _ in part]
        table = pa.table({"image": images, "text": [r[2] for r in part], "class": [r[3] for r in part]})
        pq.write_table(table, folder / f"data-{number:05d}-of-00002.parquet", row_group_size=4)
    return folder


def tars(folder, records, at=10):
    """Two WebDataset shards."""
    for number, part in enumerate((records[:at], records[at:])):
        with tarfile.open(folder / f"data-{number:05d}.tar", "w") as archive:
            for name, content, text, kind in part:
                stem, _, suffix = name.rpartition(".")
                beside = {"txt": text.encode(), "json": json.dumps({"class": kind}).encode(), "cls": b"3"}
                for ending, data in {suffix: content, **beside}.items():
                    info = tarfile.TarInfo(f"{stem}.{ending}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    return folder


def array_record(folder, records, at=10):
    """Two shards as TensorFlow Datasets names them."""
    for number, part in enumerate((records[:at], records[at:])):
        writer = ArrayRecordWriter(str(folder / f"set-train.array_record-{number:05d}-of-00002"), "group_size:1")
        for _, content, text, kind in part:
            example = tf_example_pb2.Example()
            for key, value in (("image", content), ("text", text.encode()), ("class", kind.encode())):
                example.features.feature[key].bytes_list.value.append(value)
            writer.write(example.SerializeToString())
        writer.close()
    return folder


FORMATS = {f.__name__: f for f in (jsonl, comma, metadata_parquet, kohya, zipped, parquet, tars, array_record)}
