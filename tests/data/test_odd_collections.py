"""Collections as people have them: odd headings, separators and names."""

import datetime
import gzip
import io
import json
import struct
import tarfile
import unicodedata
import zipfile
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from odd_files import chunk, encoded, png
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from lgm.data import Bad, open_images
from lgm.data.decoding import decode
from lgm.data.describe import describe


@pytest.mark.parametrize("content", [
    "\ufefffile_name,text\r\na.png,\"one; more\"\r\nb.png,two\r\n", "file_name;text\na.png;\"one; more\"\nb.png;two\n",
    "\ufefffile_name;text\n\"a.png\";\"one; more\"\nb.png;two\n", "file_name\ttext\na.png\tone; more\nb.png\ttwo\n",
    "\n\nfile_name, text\n\na.png,one; more\nb.png,two\n"])  # fmt: skip
def test_a_csv_as_a_spreadsheet_writes_it(content, folder):
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes((folder / "a" / "0.png").read_bytes())
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_text(content, encoding="utf-8", newline="")
    assert open_images(str(folder)).captions == ["one; more", "two"]


@pytest.mark.parametrize("name, content, line", [
    ("csv", "file_name,text\na.png,one".encode("utf-16"), "metadata.csv is UTF-16; save it as CSV in UTF-8"),
    ("jsonl", b'{"path": "a.png", "caption": "x"}', r"has no file_name \(it has path, caption\); every image needs")])
def test_a_table_that_names_no_files_says_what_it_has(name, content, line, folder):
    (folder / "metadata.jsonl").unlink()
    (folder / f"metadata.{name}").write_bytes(content)
    with pytest.raises(ValueError, match=line):
        open_images(str(folder))


def test_folders_named_in_kohyas_way_are_called_what_they_show(tmp_path):
    for name in ("10_a cat", "2_dog", "train/3_fox"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name / "0.png")
    (tmp_path / "2_dog" / "0.txt").write_text("a dog that sleeps")
    assert open_images(str(tmp_path)).captions == ["a cat", "a dog that sleeps", "fox"]
    (tmp_path / "2_dog" / "0.txt").unlink()
    images = open_images(str(tmp_path))
    assert images.captions == ["a cat", "dog", "fox"] and images.rows.values("class") == ["10_a cat", "2_dog", "3_fox"]
    (tmp_path / "bird").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "bird" / "0.png")
    assert open_images(str(tmp_path)).captions == ["10_a cat", "2_dog", "bird", "3_fox"]


def test_a_record_of_a_tar_has_one_image(tmp_path):
    def tar(name, members):
        with tarfile.open(tmp_path / name, "w") as archive:
            for member, content in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return str(tmp_path / name)

    picture, mask = (encoded("PNG", size=size) for size in ((8, 8), (9, 9)))
    images = open_images(tar("mask.tar", {"0.jpg": picture, "0.mask.png": mask, "0.txt": b"one"}))
    assert images.content(0) == picture and images.captions == ["one"]
    with pytest.raises(ValueError, match="img: .0001.jpg, .0002.jpg are images of one record, .*; give each"):
        open_images(tar("dots.tar", {"img.0001.jpg": picture, "img.0002.jpg": picture}))


COLOUR = (200, 30, 90)
PICTURE = encoded("PNG", size=(8, 8))


def plain(form, mode="RGB", colour=COLOUR, **options):
    """A picture of one colour; where there are frames, the others are green."""
    buffer = io.BytesIO()
    frames = {"save_all": True, "append_images": [Image.new("RGB", (16, 16), (0, 255, 0))]} if options.pop(
        "frames", False) else {}
    Image.new("RGB", (16, 16), colour).convert(mode).save(buffer, form, **frames, **options)
    return buffer.getvalue()


def deep(colour, samples, *chunks):
    """A PNG of one colour in 16 bits."""
    row = b"\0" + struct.pack(f">{len(samples)}H", *samples) * 16
    return png(16, 16, *chunks, chunk(b"IDAT", zlib.compress(row * 16)), depth=16, colour=colour)


@pytest.mark.parametrize(("content", "expected"), [
    (plain("JPEG", "CMYK", quality=98), COLOUR), (plain("MPO", frames=True), COLOUR),
    (plain("PNG", frames=True), COLOUR), (plain("WEBP", frames=True, lossless=True), COLOUR),
    (plain("TIFF", frames=True), COLOUR), (plain("TIFF", "YCbCr"), COLOUR), (plain("GIF"), COLOUR),
    (plain("PNG", "1", (0, 0, 0), transparency=0), (255, 255, 255)), (plain("JPEG2000"), COLOUR),
    (deep(6, (0xFFFF, 0, 0, 0x8000)), (255, 127, 127)), (deep(2, (0xFFFF, 0x8000, 0)), (255, 128, 0)),
    (deep(2, (0xFFFF, 0x8000, 0), chunk(b"tRNS", struct.pack(">HHH", 0xFFFF, 0x8000, 0))), (255, 255, 255)),
    (b"BM" + struct.pack("<IIIIiiHHIIiiII", 0, 0, 62, 40, 16, 2, 1, 8, 1, 0, 0, 0, 2, 0) + bytes([0] * 4 + [9, 8, 7, 0])
     + bytes([16, 1, 0, 0, 16, 1, 0, 1]), (7, 8, 9)),
    (b"P6 # c\n2 2\n255\n" + bytes(COLOUR) * 4, COLOUR), (b"P5 2 2 65535\n" + b"\x80\0" * 4, (128,) * 3)])  # fmt: skip
def test_odd_pictures_of_one_colour(content, expected):
    assert np.abs(decode(content, (12, 20), "it") - np.array(expected, int)).max() <= 2


@pytest.mark.parametrize(("there", "named"), [
    ("sub/b.png", "sub\\b.png"), ("sub/b.png", ".\\sub\\b.png"), ("sub/b.png", "sub/../sub/b.png"),
    (unicodedata.normalize("NFD", "caf\u00e9.png"), "caf\u00e9.png"), ("caf\u00e9.png", "cafe\u0301.png")])
def test_tables_name_files_as_other_systems_do(there, named, tmp_path):
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).write_bytes(PICTURE)
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": named, "text": "x"}))
    images = open_images(str(tmp_path))
    assert images.content(0) == PICTURE and images.rows[0]["file_name"] == there


@pytest.mark.parametrize("named", ["../a.png", "..\\a.png", "/etc/hostname", "A.PNG", "a%2Epng", "sub\\..\\..\\a.png"])
def test_tables_name_nothing_else(named, tmp_path):
    (tmp_path / "in").mkdir()
    for folder in (tmp_path, tmp_path / "in"):
        (folder / "a.png").write_bytes(PICTURE)
    (tmp_path / "in" / "metadata.jsonl").write_text(json.dumps({"file_name": named, "text": "x"}))
    with pytest.raises(ValueError, match="which is not there"):
        open_images(str(tmp_path / "in"))


def test_a_quote_that_is_not_closed_takes_no_other_lines(folder):
    (folder / "metadata.jsonl").unlink()
    names = [f"a/{number}.png" for number in range(3)]
    lines = [f'{names[0]},a 12" ruler', f'{names[1]},"an ""odd"" one', f"{names[2]},lost"]
    (folder / "metadata.csv").write_text("\n".join(["file_name,text", *lines[:1]]))
    assert open_images(str(folder)).captions == ['a 12" ruler']  # it is odd as well, and of no harm
    (folder / "metadata.csv").write_text("\n".join(["file_name,text", "a/0.png,fine", *lines[1:]]))
    with pytest.raises(ValueError, match=r"line 4 is no CSV \(unexpected end of data\)"):
        open_images(str(folder))


def test_dates_are_told_as_text(tmp_path):
    day = datetime.date(2024, 2, 29)
    pq.write_table(pa.table({"image": [PICTURE], "text": ["x"], "day": [day]}), tmp_path / "a.parquet")
    assert open_images(str(tmp_path)).rows[0]["day"] == "2024-02-29"


def test_a_shard_that_is_cut_is_named_though_it_seems_empty(tmp_path):
    example = tf_example_pb2.Example()
    example.features.feature["image"].bytes_list.value.append(PICTURE)
    for name, count in {"a": 3, "b": 3, "empty": 0}.items():
        writer = ArrayRecordWriter(str(tmp_path / f"{name}.array_record"), "group_size:1")
        for _ in range(count):
            writer.write(example.SerializeToString())
        writer.close()
    assert len(open_images(str(tmp_path))) == 6
    shard = tmp_path / "b.array_record"
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"b.array_record is no readable ArrayRecord \(it is cut short or damaged\)"):
        open_images(str(tmp_path))
    bad = Bad(0.5)
    assert len(open_images(str(tmp_path), bad=bad)) == 3 and len(bad.found) == 1


def test_what_is_no_collection_says_what_to_do(tmp_path):
    packed = tmp_path / "a.tar.gz"
    packed.write_bytes(gzip.compress(b"tar"))
    for place in (tmp_path, packed):
        with pytest.raises(ValueError, match="is packed as a whole, .*: unpack it to a folder or a .tar"):
            open_images(str(place))
    packed.unlink()
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("a.png", PICTURE)
    with pytest.raises(ValueError, match="of zips give one, .*b.zip, or several as a list of sources"):
        open_images(str(tmp_path))
    (tmp_path / "a.png").write_bytes(PICTURE)
    for name in ("x.HEIC", "y.heic", "Thumbs.db", ".DS_Store"):
        (tmp_path / name).write_bytes(b"x")
    assert any(line.startswith("left out  .heic 2, .zip 1 ") for line in describe(str(tmp_path), step=64))
    (tmp_path / "metadata.csv").write_text("file_name,text\nb.png,x\n")
    with pytest.raises(ValueError, match="line 2 names b.png, which is not there; .* names no image"):
        describe(str(tmp_path))
