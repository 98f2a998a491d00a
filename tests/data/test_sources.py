import functools
import json
import os
import zipfile

import numpy as np
import pyarrow as pa
import pytest
from formats import FORMATS, jsonl, parquet, tars

from lgm.data import batches, open_images
from lgm.data.rows import build
from lgm.data.sources import Bad, open_source


@pytest.fixture(scope="module")
def records():
    """Twenty-four of the shipped pictures."""
    emoji = open_images("emoji64", {"split": "train"}).take(range(0, 6000, 250))
    rows = list(emoji.rows)
    return [(f"{i:04d}.webp", emoji.content(i), row["text"], row["style"]) for i, row in enumerate(rows)]


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    """Indexes are kept in a cache of the test's own."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@functools.cache
def opened(path):
    return open_images(path, resolution=16, threads=1)


@pytest.fixture(scope="module")
def written(records, tmp_path_factory):
    """The path of each format of the records."""
    return {name: write(tmp_path_factory.mktemp(name), records) for name, write in FORMATS.items()}


def served(path, steps, index=0, count=1, start=None, groups=None):
    images = opened(str(path))
    captions = np.array([list(text.encode().ljust(80)) for text in images.captions])
    iterator = batches({"text": captions}, image=images.image, batch_size=8, seed=5, process_index=index,
                       process_count=count, groups=groups)
    if start is not None:
        iterator.set_state(start)
    return [next(iterator) for _ in range(steps)], iterator.get_state()


def same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_serves_the_same_batches(name, written, records):
    """From one, two and four processes, after stopping in mid-epoch, each image once an epoch; the reference is
    decoded here."""
    whole, _ = served(written[name], 6)
    reference, _ = served(written["jsonl"], 6)
    same(whole, reference)
    for epoch in (whole[:3], whole[3:]):
        assert sorted(np.concatenate([batch["index"] for batch in epoch])) == list(range(24))
        for batch in epoch:
            for i, text in zip(batch["index"], batch["text"], strict=True):
                assert bytes(text.tolist()).decode().strip() == records[i][2]
    for count in (2, 4):
        parts = [served(written[name], 4, index, count)[0] for index in range(count)]
        same([{k: np.concatenate([part[n][k] for part in parts]) for k in whole[0]} for n in range(4)], whole[:4])
    _, state = served(written[name], 2)
    same(served(written[name], 4, start=json.loads(json.dumps(state)))[0], whole[2:])


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_says_the_same_of_its_records(name, written, records):
    images = open_images(str(written[name]), resolution=16)  # anew, with its index kept
    assert images.captions == [text for _, _, text, _ in records]
    assert [images.content(i) for i in range(24)] == [content for _, content, _, _ in records]
    if name != "kohya":
        assert images.rows.values("class") == [kind for *_, kind in records]
        wanted = {"class": records[5][3]}
        assert open_images(str(written[name]), wanted).captions == [t for _, _, t, k in records if k == records[5][3]]


def test_class_folders_and_images_alone(records, tmp_path):
    for name, content, _, kind in records:
        (tmp_path / "classes" / "train" / kind).mkdir(parents=True, exist_ok=True)
        (tmp_path / "classes" / "train" / kind / name).write_bytes(content)
        (tmp_path / "bare" / "val").mkdir(parents=True, exist_ok=True)
        (tmp_path / "bare" / "val" / name).write_bytes(content)
    images = open_images(str(tmp_path / "classes"))
    kinds = {name: kind for name, _, _, kind in records}
    assert [kinds[row["file_name"].split("/")[-1]] for row in images.rows] == images.captions
    assert images.rows.values("split") == ["train"] * 24 and images.rows.values("class") == images.captions
    bare = open_images(str(tmp_path / "bare"))
    assert bare.captions == [""] * 24 and bare.rows.values("split") == ["validation"] * 24
    assert bare.content(3) == records[3][1]


def test_tables_in_the_folders_of_splits(records, tmp_path):
    jsonl(tmp_path / "train", records[:16])
    jsonl(tmp_path / "test", records[16:])
    assert open_images(str(tmp_path), {"split": "test"}).captions == [text for _, _, text, _ in records[16:]]
    assert [row["file_name"] for row in open_images(str(tmp_path), {"split": "train"}).take([0]).rows] == \
        ["train/0000.webp"]


def test_a_kind_may_be_said_where_several_lie(records, tmp_path):
    tars(tmp_path, records)
    parquet(tmp_path, records[:12], at=6)
    with pytest.raises(ValueError, match="shards of several kinds"):
        open_source(str(tmp_path))
    assert len(open_source(f"parquet:{tmp_path}").rows) == 12 and len(open_source(f"webdataset:{tmp_path}").rows) == 24
    assert len(open_source(f"{tmp_path}/data-00001.tar").rows) == 14
    assert len(open_source(f"{tmp_path}/data-*.tar").rows) == 24


def test_an_index_is_made_once_and_anew_where_a_shard_changed(records, tmp_path, monkeypatch):
    from lgm.data.sources import tars as module

    tars(tmp_path, records)
    first = open_source(str(tmp_path)).rows
    with monkeypatch.context() as patch:
        patch.setattr(module, "_tar_rows", lambda *_: pytest.fail("indexed again"))
        assert open_source(str(tmp_path)).rows == first
    tars(tmp_path, records[:20])
    os.utime(tmp_path / "data-00000.tar", (1, 1))
    assert len(open_source(str(tmp_path)).rows) == 20


def test_classes_of_hugging_face_have_their_names(records, tmp_path):
    features = {"info": {"features": {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel",
                                                                             "names": ["red fox", "owl"]}}}}
    table = pa.table({"image": [{"bytes": content, "path": None} for _, content, _, _ in records[:4]],
                      "label": [0, 1, 1, 0]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    import pyarrow.parquet as pq

    pq.write_table(table, tmp_path / "test-00000-of-00001.parquet")
    images = open_images(str(tmp_path), {"split": "test"})
    assert images.captions == ["red fox", "owl", "owl", "red fox"]


def test_columns_hold_what_rows_held():
    rows = [{"a": 1, "b": "x", "c": [1, "y"], "d": None}, {"a": 2.5, "b": "é", "e": {"k": True}}, {"b": 3, "f": 2**80}]
    table = build(rows)
    assert list(table) == [{k: v for k, v in row.items() if v is not None} for row in rows]
    many = [{"n": i, "t": f"text {i}"} for i in range(200_000)]
    table = build(iter(many))
    assert table[150_000] == many[150_000] and table.nbytes / len(many) < 60
    assert len(table.where("n", lambda n: n is not None and n % 1000 == 7)[0]) == 200


def test_some_bad_records_are_noted_and_many_are_an_error(records, tmp_path):
    jsonl(tmp_path, records)
    with open(tmp_path / "metadata.jsonl", "a") as file:
        file.write('{"file_name": "../outside.png", "text": "x"}\n{broken\n')
    bad = Bad(share=0.1)
    assert len(open_images(str(tmp_path), bad=bad)) == 24
    assert [place.rpartition(" ")[2] for place, _ in bad.found] == ["25", "26"]
    with pytest.raises(ValueError, match="1 more of 26 records are bad") as caught:
        open_images(str(tmp_path), bad=Bad(share=0.05))
    assert "bad_share=0.05" in str(caught.value) and "\n" not in str(caught.value)


def test_a_zip_of_a_later_version_of_the_format_is_one_line(tmp_path):
    path = tmp_path / "later.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", b"x")
    content = bytearray(path.read_bytes())
    place = content.rfind(b"PK\x01\x02") + 6  # in the directory, the version that is needed to read it
    content[place : place + 2] = (99).to_bytes(2, "little")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"later.zip is not a readable zip \(zip file version 9.9\)") as error:
        open_images(str(path))
    assert "\n" not in str(error.value)
