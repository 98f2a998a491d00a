"""Hundreds of files and collections that are no good: each is one line or a noted record, whatever is wrong with it.

Nothing outside a collection is read: what lies there is a picture of one colour, which must never be seen.
"""

import gzip
import io
import json
import os
import random
import signal
import struct
import tarfile
import warnings
import zipfile
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from formats import array_record, jsonl, parquet, tars, zipped
from odd_files import encoded, odd_files
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from lgm.data import Bad, open_images
from lgm.data.decoding import decode

OUTSIDE = (1, 254, 3)
pytestmark = pytest.mark.slow


def header(width, height):
    """A PNG that says it is so large, and holds next to nothing."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    size = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + size + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def damaged(content, count, seed=0):
    """Copies cut short at `count` places, and with bytes changed at as many."""
    rng = random.Random(seed)
    for place in np.linspace(0, len(content) - 1, count).astype(int):
        yield content[:place]
    for _ in range(count):
        broken = bytearray(content)
        for _ in range(rng.choice((1, 3, 20))):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        yield bytes(broken)


def pictures():
    forms = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")
    for form in forms:
        yield from damaged(encoded(form), 12)
    yield from (b"", b"\0" * 1000, b"hello", b"\xff\xd8\xff", b"GIF89a", b"RIFF\0\0\0\0WEBP", b"<svg/>", b"%PDF-1.4")
    yield from (header(*size) for size in ((1 << 31, 1 << 31), (100_000, 100_000), (12_000, 12_000), (0, 5), (5, 0)))
    bomb = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(bomb, "PNG")
    yield bomb.getvalue()
    for profile in (b"", b"x", b"\0" * 128, os.urandom(400)):
        yield encoded("PNG", icc_profile=profile)
        yield encoded("JPEG", "CMYK", icc_profile=profile)
    for exif in (b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*" + os.urandom(200)):
        yield encoded("JPEG", exif=exif)
    for mode in ("F", "I", "LAB", "YCbCr", "CMYK", "LA", "1", "P"):
        yield encoded("TIFF", mode)


def bounded(act):
    """What `act()` gives; ValueErrors must be one line, anything else fails, and so does half a minute."""
    def late(*_):
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(30)
    try:
        return act()
    except ValueError as error:
        assert "\n" not in str(error) and str(error), error
        return None
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def look(path):
    """(images that could be read, bad records) of a collection."""
    bad, seen = Bad(share=1.0), 0
    images = bounded(lambda: open_images(str(path), bad=bad, threads=1))
    for i in range(len(images) if images is not None else 0):
        picture = bounded(lambda i=i: images.image(i, (4, 4)))
        seen += picture is not None
        assert picture is None or tuple(picture[0, 0]) != OUTSIDE, f"{images.name(i)} lies outside"
    texts = [] if images is None else images.captions
    assert all("secret" not in text and "\0" not in text and text.encode() is not None for text in texts)
    assert all("\n" not in reason for _, reason in bad.found)
    return seen, len(bad.found)


@pytest.fixture
def records():
    return [(f"{i:02d}.png", encoded("PNG"), f"caption {i}", "kind") for i in range(16)]


@pytest.fixture
def outside(tmp_path):
    path = tmp_path / "outside.png"
    Image.new("RGB", (8, 8), OUTSIDE).save(path)
    (tmp_path / "secret.txt").write_text("secret")
    return path


def test_damaged_pictures(tmp_path):
    odd = odd_files()
    corpus = [*pictures(), *odd.values()]
    assert len({*corpus}) > 300
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        good = sum(bounded(lambda content=content: decode(content, (8, 8), "it")) is not None for content in corpus)
        for number, content in enumerate(corpus):
            (tmp_path / f"{number:03d}.{('png', 'jpg', 'webp', 'tiff', 'avif')[number % 5]}").write_bytes(content)
        seen, noted = look(tmp_path)
        unread = [name for name, content in odd.items() if bounded(lambda c=content: decode(c, (8, 8), "it")) is None]
    assert noted == 0 and seen == good and 50 < good < len(corpus) - 150
    assert {"PNG of no zlib", "PNG of too few rows", "PNG interlaced, of too few rows", "PNG of two streams",
            "JPEG of 65,500 x 65,500", "PostScript", "HTML", "TIFF of a strip of 4 GB"} <= {*unread}


LINES = [b"", b"null", b"[]", b"3", b'"x"', b"{", b"}", b'{"file_name"}', b"{'file_name': 'a'}", b"\xff\xfe", b"\0",
         b"[" * 5000,
         b'{"file_name": 3, "text": "x"}', b'{"file_name": null, "text": "x"}', b'{"file_name": "", "text": "x"}',
         b'{"file_name": "00.png"}', b'{"file_name": "00.png", "text": ""}', b'{"file_name": "00.png", "text": null}',
         b'{"file_name": "00.png", "text": ["x"]}', b'{"file_name": "00.png", "text": "a\\u0000b"}',
         b'{"file_name": "00.png", "text": "\\ud800"}', b'{"file_name": "\\udfff.png", "text": "x"}',
         b'{"file_name": "00.png\\u0000", "text": "x"}', b'{"file_name": "00.png", "text": "\xe9"}',
         b'{"file_name": "' + b"a" * 5000 + b'.png", "text": "x"}', b'{"file_name": ".", "text": "x"}',
         b'{"file_name": "/", "text": "x"}', b'{"file_name": "../", "text": "x"}',
         b'{"image": {"path": 3}, "text": "x"}']  # fmt: skip
WAYS = ["../outside.png", "a/../../outside.png", "./../outside.png", "{root}/outside.png", "file://{root}/outside.png",
        "..\\outside.png", "link.png", "folder/outside.png", "%2e%2e/outside.png", "//{root}/outside.png", "pipe.png"]


def test_metadata_that_is_no_good_or_leads_outside(tmp_path, outside, records):
    root = jsonl(tmp_path / "set", records)
    (root / "link.png").symlink_to(outside)
    (root / "folder").symlink_to(tmp_path)
    os.mkfifo(root / "pipe.png")
    ways = [json.dumps({"file_name": way.format(root=tmp_path), "text": "x"}).encode() for way in WAYS]
    whole = (root / "metadata.jsonl").read_bytes()
    for line in (*LINES, *ways):
        (root / "metadata.jsonl").write_bytes(whole + line + b"\n")
        seen, _ = look(root)
        assert seen == 16 + (b'["x"]' in line), line  # a list of captions is one of several
    (root / "metadata.jsonl").unlink()
    table = "file_name,text\n" + "".join(f"{name},{text}\n" for name, _, text, _ in records)
    rows = [b"x", b"x,y,z,a", b'"', b'"00.png,x', b"00.png,", b"00.png,\xff", b"00.png,a\0b", b",", b'""""',
            b"a" * 200_000 + b",x"]
    for line in (*rows, *(f"{way.format(root=tmp_path)},x".encode() for way in WAYS)):
        (root / "metadata.csv").write_bytes(table.encode() + line + b"\n")
        seen, _ = look(root)
        assert seen == 16, line
    (root / "metadata.csv").unlink()
    for content in damaged(whole, 10):
        (root / "metadata.jsonl").write_bytes(content)
        assert look(root)[0] <= 16
    (root / "metadata.jsonl").unlink()
    (tmp_path / "metadata.jsonl").write_bytes(b'{"file_name": "00.png", "text": "secret"}')
    (root / "metadata.jsonl").symlink_to(tmp_path / "metadata.jsonl")
    assert look(root) == (0, 0)


def test_captions_beside_images(tmp_path, outside, records):
    root = tmp_path / "set"
    root.mkdir()
    for number, (name, content, _, _) in enumerate(records):
        (root / name).write_bytes(content)
        beside = [b"good", b"", b"\xff\xfe\x00", b"a\0b", b"  \n"][number % 5]
        (root / name).with_suffix(".txt").write_bytes(beside)
    (root / "15.txt").unlink()
    (root / "15.txt").symlink_to(tmp_path / "secret.txt")
    (root / "14.json").write_bytes(b"[" * 3000)
    (root / "13.json").write_bytes(b"{}")
    (root / "out.png").symlink_to(outside)
    (root / "out.txt").write_text("out")
    os.mkfifo(root / "pipe.png")
    (root / "pipe.txt").write_text("pipe")
    assert look(root)[0] == 3


def test_archives_that_lead_outside(tmp_path, outside, records):
    image = records[0][1]
    names = ["../outside.png", str(outside), "a/../../outside.png", "/outside.png", "", ".", "..", "a" * 300 + ".png"]
    rows = "".join(json.dumps({"file_name": name, "text": "x"}) + "\n" for name in (*names, "00.png"))
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("metadata.jsonl", rows)
        for name in (*names[:4], "00.png"):
            archive.writestr(name, image)
        archive.writestr("zeros.png", bytes(300 << 20))
    assert look(tmp_path / "set.zip")[0] >= 1
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        for name in (*names[:4], "00.png"):
            info = tarfile.TarInfo(name)
            info.size = len(image)
            archive.addfile(info, io.BytesIO(image))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo(f"link{kind.decode()}.png")
            info.type, info.linkname = kind, str(outside)
            archive.addfile(info)
    assert look(tmp_path / "set.tar")[0] == 5
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "1.tar").symlink_to(tmp_path / "set.tar")
    assert look(tmp_path / "shards") == (0, 0)


@pytest.mark.parametrize("write", [zipped, parquet, tars, array_record])
def test_damaged_archives(tmp_path, records, write):
    (tmp_path / "set").mkdir()
    path = write(tmp_path / "set", records)
    target = path if path.is_file() else sorted(path.iterdir())[-1]
    content = target.read_bytes()
    assert look(path) == (16, 0)
    for number, broken in enumerate(damaged(content, 15)):
        target.write_bytes(broken)
        os.utime(target, (number, number))
        assert look(path)[0] <= 16


def test_parquet_of_another_kind(tmp_path, records):
    image = records[0][1]
    tables = [{"text": ["x"]}, {"image": [image], "text": ["a\0b"]}, {"image": [image], "text": [None]},
              {"image": [None], "text": ["x"]},
              {"image": pa.nulls(1)},
              {"image": [{"bytes": None, "path": "/etc/hostname"}]}, {"image": [{"path": "x"}]}, {"image": [[image]]},
              {"image": ["text"]}, {"image": [b"x"], "text": [b"\xff"]}, {"image": pa.array([], pa.binary())}]
    for table in tables:
        pq.write_table(pa.table(table), tmp_path / "x.parquet")
        assert look(tmp_path)[0] <= 1


def test_zips_with_odd_entries(tmp_path, outside, records):
    image, path = records[0][1], tmp_path / "set.zip"
    link = zipfile.ZipInfo("link.png")
    link.external_attr = 0o120777 << 16
    within = io.BytesIO()
    with zipfile.ZipFile(within, "w") as archive:
        archive.writestr("a.png", image)
    names = ["a.png\0.png", "a\\b.png", "C:\\x.png", "//x/y.png", "./a.png", "a/./b.png", "a//b.png", " .png", ".png",
             "a\nb.png", "\u202egnp.png", "e\u0301.png", "\u00e9.png", "con.png", "a" * 60_000 + ".png", "-rf.png",
             "a.png/", "a.png/b.png", "../" * 500 + "outside.png", "~/outside.png", "$HOME/outside.png"]
    for number, entry in enumerate([link, *names, *names[:3]]):
        with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
            warnings.simplefilter("ignore")  # of a name that is there twice
            archive.writestr(entry, str(outside) if entry is link else image)
            archive.writestr("inner.zip", within.getvalue())
            archive.writestr("good.png", image)
            archive.writestr("good.png", image)
        os.utime(path, (number, number))
        assert 1 <= look(path)[0] <= 2, entry
    whole = path.read_bytes()
    for place, value in ((6, 1), (8, 99), (10, 0xFFFF), (18, 1 << 31), (22, 1 << 31), (26, 0xFFFF)):  # of every entry
        broken, start = bytearray(whole), 0
        while (start := broken.find(b"PK\1\2", start + 1)) > 0:
            struct.pack_into("<I" if place in (18, 22) else "<H", broken, start + place + 2, value)
        path.write_bytes(broken)
        assert look(path)[0] <= 2, place


def test_tars_with_odd_members(tmp_path, outside, records):
    image, path = records[0][1], tmp_path / "set.tar"

    def member(name, content=image, **facts):
        info = tarfile.TarInfo(name)
        info.size = len(content)
        for key, value in facts.items():
            setattr(info, key, value)
        return info, io.BytesIO(content)

    pax = lambda **headers: dict(pax_headers={key: str(value) for key, value in headers.items()})
    odd = [member("x.png", type=bytes([kind]), linkname=str(outside)) for kind in b"123467SZ"]
    odd += [member("x.png", **pax(path="../outside.png")), member("x.png", **pax(size=-1)),
            member("x.png", **pax(size=1 << 62)), member("x.png", **pax(linkpath=outside)),
            member("x.png", **pax(**{"GNU.sparse.map": "0,9999999999"})), member("x.png", mtime=-1),
            member("x.json", b"[" * 4000), member("x.json", b'{"image": "' + str(outside).encode() + b'"}'),
            member("x.json", b'{"file_name": "../outside.png", "__key__": "/etc/passwd"}'),
            member("x.txt", b"\xff\xfe"), member("x.txt", b"a\0b"), member("x.json", b'{"text": "a\\u0000b"}'),
            member("x.cls", b"\xff"), member("x.txt", b"a" * (2 << 20)), member("x"),
            member("x.png.png"), member("a" * 300 + ".png"), member("x/" * 120 + "x.png"), member("\udcff.png"),
            member(".png"), member("x.PNG")]
    for number, (info, content) in enumerate(odd):
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, errors="surrogateescape") as archive:
            archive.addfile(member("a.png")[0], io.BytesIO(image))
            archive.addfile(info, content)
            archive.addfile(member("z.png")[0], io.BytesIO(image))
        os.utime(path, (number, number))
        assert 1 <= look(path)[0] <= 3, info.name
    whole = path.read_bytes()
    for number, broken in enumerate((whole[:512], whole[512:], gzip.compress(whole), bytes(10240), whole + whole,
                                     whole.replace(b"ustar", b"xxxxx"), whole[:130] + b"7777777" + whole[137:])):
        path.write_bytes(broken)
        os.utime(path, (99 + number, number))
        assert look(path)[0] <= 6, number


def test_array_records_of_another_kind(tmp_path, records):
    image = records[0][1]

    def example(**features):
        made = tf_example_pb2.Example()
        for key, (kind, values) in features.items():
            getattr(made.features.feature[key], kind).value.extend(values)
        return made.SerializeToString()

    good = example(image=("bytes_list", [image]), text=("bytes_list", [b"good"]))
    odd = [b"", b"\0", b"\xff" * 50, image, good[:-5], good * 2, example(), example(text=("bytes_list", [b"x"])),
           example(image=("int64_list", [1, 2])), example(image=("bytes_list", [])),
           example(image=("bytes_list", [b""])),
           example(image=("bytes_list", [image]), text=("bytes_list", [b"\xff\xfe"])),
           example(image=("bytes_list", [image]), text=("bytes_list", [b"a\0b"])),
           example(image=("bytes_list", [image]), text=("int64_list", [3])),
           example(image=("bytes_list", [image]), file_name=("bytes_list", [b"../../etc/passwd"])),
           example(image=("bytes_list", [image]), _shard=("int64_list", [99]), _row=("int64_list", [-1])),
           example(image=("bytes_list", [image] * 3)), example(image=("float_list", [float("nan")])),
           example(image=("bytes_list", [image]), split=("float_list", [0.5]))]
    path = tmp_path / "x.array_record"
    for number, record in enumerate(odd):
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for content in (good, record, good):
            writer.write(content)
        writer.close()
        os.utime(path, (number, number))
        assert 2 <= look(path)[0] <= 3, number


def test_tables_in_parquet_that_are_no_good(tmp_path, records):
    (tmp_path / "a.png").write_bytes(records[0][1])
    columns = [{}, {"x": [1]}, {"file_name": pa.nulls(1)}, {"file_name": [3], "text": ["x"]},
               {"file_name": [["a.png"]], "text": ["x"]}, {"file_name": [{"a": "a.png"}], "text": ["x"]},
               {"file_name": [b"a.png"], "text": ["x"]}, {"file_name": ["a.png"], "text": [b"\xff"]},
               {"file_name": ["a.png"], "text": [1.5]}, {"file_name": ["a.png"], "text": [["x"]]},
               {"file_name": ["../outside.png"], "text": ["x"]}, {"file_name": ["a.png\0"], "text": ["x"]},
               {"file_name": pa.array([], pa.string()), "text": pa.array([], pa.string())}]
    for table in columns:
        pq.write_table(pa.table(table), tmp_path / "metadata.parquet")
        assert look(tmp_path)[0] <= 1, table
    pq.write_table(pa.table({"file_name": ["a.png"], "text": ["good"]}), tmp_path / "metadata.parquet")
    whole = (tmp_path / "metadata.parquet").read_bytes()
    assert look(tmp_path) == (1, 0)
    for broken in damaged(whole, 15):
        (tmp_path / "metadata.parquet").write_bytes(broken)
        assert look(tmp_path)[0] <= 1
