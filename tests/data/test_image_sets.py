import io
import json
import shutil
import sys
import zipfile
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lgm.config import Data
from lgm.data import open_data, open_heldout, open_images
from lgm.data.decoding import decode


def png(array, **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", **options)
    return buffer.getvalue()


def refused(*arguments, **options):
    """The error of opening an image set, which must be one line."""
    with pytest.raises(ValueError) as caught:
        open_images(*arguments, **options).images()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_shipped_set_is_what_its_notes_say():
    images = open_images("emoji64")
    assert len(images) == 6996
    assert len(open_images("emoji64", {"subcategory": "face-"})) == 468
    assert len(open_images("emoji64", {"split": "heldout"})) == 195
    styles = {style: len(open_images("emoji64", {"style": style})) for style in ("twemoji", "fluent-3d", "noto")}
    assert styles == {"twemoji": 1906, "fluent-3d": 1852, "noto": 1644}
    some = images.take(range(0, 6996, 500)).images()
    assert some.shape == (14, 64, 64, 3) and some.dtype == np.uint8
    assert (some[:, 0, 0] > 245).all()  # drawn on white (WebP is lossy)
    assert all(caption.endswith("style") for caption in images.captions)


def test_no_heldout_pair_is_trained_on_but_each_concept_is_seen():
    trained = {(row["codepoints"], row["style"]) for row in open_images("emoji64", {"split": "train"}).rows}
    for row in open_images("emoji64", {"split": "heldout"}).rows:
        assert (row["codepoints"], row["style"]) not in trained
        assert any(concept == row["codepoints"] for concept, _ in trained)


def test_a_folder_and_its_zip_hold_the_same(folder, tmp_path):
    shutil.make_archive(tmp_path / "flat", "zip", folder)
    shutil.make_archive(tmp_path / "nested", "zip", tmp_path, "set")
    expected = open_images(str(folder), resolution=8)
    for name in ("flat.zip", "nested.zip"):
        images = open_images(str(tmp_path / name), resolution=8)
        assert images.rows == expected.rows
        np.testing.assert_array_equal(images.images(), expected.images())
    assert expected.sizes().tolist() == [[8, 8], [8, 12]] * 3
    assert expected.take([3, 1]).captions == ["picture 3", "picture 1"]


@pytest.mark.parametrize("where, numbers", [
    ({"kind": "face-"}, [0, 1, 2, 3]),
    ({"kind": "fl*"}, [4, 5]),
    ({"kind": ["flag", "face-sm*"], "n": [0, 4, 5]}, [0, 4, 5]),
    ({"tags": "odd"}, [1, 3, 5]),
    ({"n": 2}, [2]),
])
def test_filters_by_value_list_prefix_and_item(folder, where, numbers):
    assert [row["n"] for row in open_images(str(folder), where).rows] == numbers


def test_a_filter_that_fits_nothing_says_what_there_is(folder):
    line = refused(str(folder), {"kind": "flags"})
    assert "data.where.kind='flags'" in line and "face-smiling, flag" in line
    line = refused(str(folder), {"kind": "flag", "n": 0})
    assert "kind='flag'" in line and "there are 4, 5" in line
    assert "did you mean 'kind'" in refused(str(folder), {"kinds": "flag"})
    assert "(1905 in all)" in refused("emoji64", {"name": "no such emoji"})


def test_a_picture_is_scaled_to_cover_and_cut_in_the_middle():
    stripes = np.zeros((4, 12, 3), np.uint8)
    stripes[:, 4:8, 0], stripes[:, :4, 1], stripes[:, 8:, 2] = 255, 255, 255
    np.testing.assert_array_equal(decode(png(stripes), (4, 4), "x"), stripes[:, 4:8])
    wide = decode(png(stripes), (8, 24), "x")
    assert wide.shape == (8, 24, 3) and (wide[:, 2, 1] > 240).all() and (wide[:, 12, 0] > 240).all()  # Lanczos rings


def test_transparency_lies_on_white_whatever_the_mode():
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[..., 3], rgba[:2, :, 3] = 255, 0
    expected = np.zeros((4, 4, 3), np.uint8)
    expected[:2] = 255
    np.testing.assert_array_equal(decode(png(rgba), (4, 4), "x"), expected)
    grey_alpha = rgba[..., [0, 3]]
    np.testing.assert_array_equal(decode(png(grey_alpha), (4, 4), "x"), expected)
    palette = Image.fromarray(expected[..., 0] // 255).convert("P")
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", transparency=1)
    np.testing.assert_array_equal(decode(buffer.getvalue(), (4, 4), "x")[:2], expected[:2])


def test_sixteen_bit_grey_is_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 16).astype(np.uint16).reshape(4, 4)
    np.testing.assert_array_equal(decode(png(ramp), (4, 4), "x")[..., 0], ramp >> 8)


def test_a_photograph_taken_sideways_stands_upright(folder):
    upright = np.zeros((4, 8, 3), np.uint8)
    upright[:, :4] = 255
    sideways = Image.fromarray(np.rot90(upright))  # orientation 6: turn clockwise to view
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways.save(folder / "a/0.png", exif=exif)
    images = open_images(str(folder), {"n": 0})
    np.testing.assert_array_equal(images.image(0, size=(4, 8)), upright)
    assert images.sizes().tolist() == [[4, 8]]


def test_large_jpegs_come_out_as_if_decoded_whole():
    # a smooth picture: scaling while decoding may differ from Lanczos by a few grey levels only
    y, x = np.mgrid[:512, :512]
    picture = np.stack([y // 2, x // 2, (x + y) // 4], -1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=95)
    expected = np.asarray(Image.fromarray(picture).resize((64, 64), Image.Resampling.LANCZOS), int)
    assert np.abs(decode(buffer.getvalue(), (64, 64), "x") - expected).max() <= 6


@pytest.mark.parametrize("suffix", ["png", "jpeg", "webp"])
def test_a_truncated_picture_is_named(folder, suffix):
    number = ["png", "jpeg", "webp"].index(suffix)
    path = folder / f"a/{number}.{suffix}"
    path.write_bytes(path.read_bytes()[:-40])
    line = refused(str(folder), {"n": number})
    assert f"a/{number}.{suffix} cannot be decoded" in line
    path.write_bytes(b"")
    assert f"a/{number}.{suffix} cannot be decoded" in refused(str(folder), {"n": number})


def test_an_absent_picture_is_named_before_anything_is_decoded(folder, tmp_path):
    shutil.make_archive(tmp_path / "whole", "zip", folder)
    (folder / "a/3.png").unlink()
    (folder / "a/4.jpeg").unlink()
    line = refused(str(folder), {"n": 0})
    assert "line 4 names a/3.png, which is not there; add the image or remove the line (and 1 more of 6 records" in line
    shutil.make_archive(tmp_path / "part", "zip", folder)
    assert "line 4 names a/3.png" in refused(str(tmp_path / "part.zip"))


def test_a_zip_that_is_not_whole_is_named(folder, tmp_path):
    shutil.make_archive(tmp_path / "set", "zip", folder)
    path = tmp_path / "set.zip"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert f"{path} is not a readable zip" in refused(str(path))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        start = archive.getinfo("metadata.jsonl")
    damaged = bytearray(content)
    damaged[start.header_offset + 50 : start.header_offset + 60] = b"\xff" * 10
    path.write_bytes(bytes(damaged))
    assert "metadata.jsonl cannot be read" in refused(str(path))


@pytest.mark.parametrize("line, problem", [
    ("{not json", "line 7 is not JSON"),
    ('{"file_name": "a/0.png"}', "line 7 has no text"),
    ('{"file_name": "a/0.png", "text": "  "}', "line 7 has an empty text"),
    ('{"file_name": "a/0.png", "text": 3}', "line 7 has no text"),
    ('{"text": "x"}', "line 7 has no file_name"),
    ("[]", "line 7 has no file_name"),
])
def test_bad_metadata_is_named_by_its_line(folder, line, problem):
    with open(folder / "metadata.jsonl", "a") as file:
        file.write(line + "\n")
    assert problem in refused(str(folder))


def test_metadata_may_hold_any_text(folder):
    rows = [{"file_name": "a/0.png", "text": "one\u2028two \u00e9 \U0001f600"}]  # a line separator is no end of a line
    content = "\ufeff" + "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\r\n\r\n"
    (folder / "metadata.jsonl").write_bytes(content.encode())
    assert open_images(str(folder)).captions == [rows[0]["text"]]


def test_sources_that_are_not_there(folder, tmp_path, monkeypatch):
    assert "give emoji64, flags, a folder, a zip" in refused("nowhere")
    (tmp_path / "empty").mkdir()
    assert "no metadata.jsonl, .csv or .parquet, no images and no shards: it is empty" in refused(f"{tmp_path}/empty")
    (folder / "metadata.jsonl").write_text("\n")
    assert "names no image" in refused(str(folder))
    assert "data.resolution=0" in refused("emoji64", resolution=0)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert "pip install tensorflow-datasets" in refused("tfds:cifar10")


def test_a_fingerprint_is_of_captions_choice_and_resolution(folder):
    whole = open_images(str(folder), resolution=8)
    assert whole.fingerprint == open_images(str(folder), resolution=8).fingerprint
    others = [open_images(str(folder)), open_images(str(folder), {"n": 2}, 8), whole.take([1, 0, 2, 3, 4, 5])]
    assert len({whole.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_tensorflow_datasets_are_read_with_their_labels_as_captions(monkeypatch):
    class ImageFeature:
        pass

    class ClassLabel:
        def int2str(self, number):
            return ["red_square", "blue_square"][number]

    pixels = [np.full((6, 8, 3), value, np.uint8) for value in (10, 200, 90)]
    records = [{"picture": png(x), "label": np.int64(i % 2), "id": b"n%d" % i, "bbox": np.zeros(4)}
               for i, x in enumerate(pixels)]
    asked = []

    def as_data_source(split, decoders):
        asked.append((split, set(decoders)))
        return records

    features = {"picture": ImageFeature(), "label": ClassLabel(), "id": object(), "bbox": object()}
    info = SimpleNamespace(full_name="it/1.0.0", features=features)
    builder = SimpleNamespace(info=info, as_data_source=as_data_source)
    library = SimpleNamespace(
        builder=lambda name: builder,
        features=SimpleNamespace(Image=ImageFeature, ClassLabel=ClassLabel),
        decode=SimpleNamespace(SkipDecoding=object),
    )
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", library)
    images = open_images("tfds:shapes:test", {"label": "red square"}, resolution=4)
    assert asked == [("test", {"picture"})]
    assert images.rows[1] == {"file_name": "2", "label": "red square", "id": "n2", "text": "red square"}
    np.testing.assert_array_equal(images.images()[:, 0, 0, 0], [10, 90])
    features.pop("picture")
    assert "tfds:shapes:train' cannot be opened (shapes has no image feature" in refused("tfds:shapes")


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_a_row_of_metadata_takes_its_text_and_eight_bytes_a_value(tmp_path, form):
    count = 20_000
    Image.new("RGB", (4, 4)).save(tmp_path / "0.png")
    texts = [f"caption {number}" for number in range(count)]
    table = pa.table({"file_name": ["0.png"] * count, "text": texts, "width": [640] * count})
    if form == "jsonl":
        (tmp_path / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in table.to_pylist()))
    else:
        {"csv": pa_csv.write_csv, "parquet": pq.write_table}[form](table, tmp_path / f"metadata.{form}")
    images = open_images(str(tmp_path))
    assert images.captions == texts and set(images.rows.values("width")) == {640}
    values = 4 * 8  # offsets of two texts, a number, the row's own
    assert images.rows.nbytes <= sum(map(len, texts)) + count * (len("0.png") + values) + 1000


def test_one_in_twenty_is_held_out_by_name_where_nothing_says_which(tmp_path):
    def split(**values):
        train, heldout = open_data(Data(source=str(tmp_path), resolution=8, **values))
        names = [images.rows.values("file_name") for images in (train, heldout)]
        assert len(heldout) == len(open_heldout(Data(source=str(tmp_path), resolution=8, **values)))
        return names

    def add(numbers):
        for number in numbers:
            (tmp_path / f"{number:03d}.png").write_bytes(png(np.full((8, 8, 3), number, np.uint8)))

    add(range(60))
    train, heldout = split()
    assert len(heldout) == 3 and not set(train) & set(heldout) and len(train) == 57
    add(range(60, 120))
    _, more = split()
    assert len(more) == 6 and len(set(heldout) & set(more)) >= 1
    assert [len(names) for names in split(heldout_share=0.0)] == [120, 120]
    assert [len(names) for names in split(heldout_share=0.5)] == [60, 60]


def test_of_one_image_none_can_be_held_out(tmp_path):
    (tmp_path / "a.png").write_bytes(png(np.zeros((8, 8, 3), np.uint8)))
    with pytest.raises(ValueError, match="has one image, of which none can be held out; set config.data.heldout_"):
        open_data(Data(source=str(tmp_path), resolution=8))
    assert len(open_data(Data(source=str(tmp_path), resolution=8, heldout_share=0.0))[1]) == 1
