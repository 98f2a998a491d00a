"""Every way to read an image file is one: the data set's, --image's and --mask's pixels of the same file are equal."""

import io
import json
import struct
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lgm.cli import main
from lgm.data import Bad, open_images
from lgm.data.decoding import decode
from lgm.pictures import read_image, starting_picture

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 8, 3), np.uint8)
GREY16 = np.linspace(0, 65535, 48).astype(np.uint16).reshape(6, 8)
ALPHA = np.tile(np.uint8([0, 255]), 24).reshape(6, 8)
ON_WHITE = np.where(ALPHA[..., None] == 0, 255, RGB).astype(np.uint8)


def saved(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def linear_light_profile():
    """An ICC profile of sRGB's primaries without its curve, so that v stands for v of the light."""
    fixed = lambda *values: struct.pack(f">{len(values)}i", *(round(v * 65536) for v in values))
    xyz = lambda *values: b"XYZ \0\0\0\0" + fixed(*values)
    text = b"linear\0"
    desc = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(8 + 3 + 67)
    curve = b"curv\0\0\0\0" + struct.pack(">I", 0)
    tags = {b"desc": desc, b"wtpt": xyz(0.9642, 1.0, 0.8249), b"rXYZ": xyz(0.43607, 0.22249, 0.01392),
            b"gXYZ": xyz(0.38515, 0.71687, 0.09708), b"bXYZ": xyz(0.14307, 0.06061, 0.7141),
            b"rTRC": curve, b"gTRC": curve, b"bTRC": curve, b"cprt": b"text\0\0\0\0none\0"}  # fmt: skip
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">II", start + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    header = struct.pack(">I4sI4s4s4s12s4s", start + len(body), b"", 0x02100000, b"mntr", b"RGB ", b"XYZ ", b"",
                         b"acsp")  # fmt: skip
    header += bytes(28) + fixed(0.9642, 1.0, 0.8249)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def srgb(light):
    """The curve of IEC 61966-2-1, of light in [0, 1], in 255ths."""
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def exif_with_text():
    """EXIF as some software writes it: the x resolution is a text, and the picture lies on its side (orientation 6)."""
    entries = struct.pack("<HHI4s", 0x0112, 3, 1, struct.pack("<HH", 6, 0))
    entries += struct.pack("<HHII", 0x011A, 2, 12, 8 + 2 + 3 * 12 + 4)
    entries += struct.pack("<HHI4s", 0x0128, 3, 1, struct.pack("<HH", 2, 0))
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 3) + entries + bytes(4) + b"seventy-two\0"


def frames(*arrays):
    first, *rest = map(Image.fromarray, arrays)
    return saved(first, "PNG", save_all=True, append_images=rest)


def palette(image):
    found = Image.fromarray(image).quantize(256)
    return found, np.asarray(found.convert("RGB"))


PALETTE, PALETTE_RGB = palette(RGB)
CMYK = Image.fromarray(RGB).convert("CMYK")
GREY = RGB[..., 0]
BINARY = Image.fromarray(ALPHA).convert("1")
grey = lambda x: np.repeat(np.asarray(x)[..., None], 3, -1)
# name -> (file, its pixels, by how many 255ths they may be off)
CASES = {
    "rgb": (saved(Image.fromarray(RGB), "PNG"), RGB, 0),
    "grey": (saved(Image.fromarray(GREY), "PNG"), grey(GREY), 0),
    "one bit": (saved(BINARY, "PNG"), grey(ALPHA), 0),
    "16 bits": (saved(Image.fromarray(GREY16), "PNG"), grey(GREY16 >> 8), 0),
    "16 bits, tiff": (saved(Image.fromarray(GREY16), "TIFF"), grey(GREY16 >> 8), 0),
    "32 bits of 16, tiff": (saved(Image.fromarray(GREY16.astype(np.int32)), "TIFF"), grey(GREY16 >> 8), 0),
    "rgba": (saved(Image.fromarray(np.dstack([RGB, ALPHA])), "PNG"), ON_WHITE, 0),
    "rgba, webp": (saved(Image.fromarray(np.dstack([RGB, ALPHA])), "WEBP", lossless=True, exact=True), ON_WHITE, 0),
    "grey and alpha": (saved(Image.fromarray(np.dstack([GREY, ALPHA])), "PNG"),
                       grey(np.where(ALPHA == 0, 255, GREY)), 0),
    "palette": (saved(PALETTE, "PNG"), PALETTE_RGB, 0),
    "palette with a clear colour": (saved(PALETTE, "PNG", transparency=int(np.asarray(PALETTE)[0, 0])),
                                    np.where((np.asarray(PALETTE) == np.asarray(PALETTE)[0, 0])[..., None], 255,
                                             PALETTE_RGB), 0),
    "rgb with a clear colour": (saved(Image.fromarray(RGB), "PNG", transparency=tuple(map(int, RGB[0, 0]))),
                                np.where((RGB == RGB[0, 0]).all(-1)[..., None], 255, RGB), 0),
    "cmyk": (saved(CMYK, "TIFF"), RGB, 1),
    "animated": (frames(RGB, 255 - RGB), RGB, 0),
    "animated gif": (saved(PALETTE, "GIF", save_all=True, append_images=[Image.fromarray(255 - RGB).quantize()]),
                     PALETTE_RGB, 0),
    "linear light": (saved(Image.fromarray(RGB), "PNG", icc_profile=linear_light_profile()), srgb(RGB / 255), 2),
    "linear light and alpha": (saved(Image.fromarray(np.dstack([RGB, ALPHA])), "PNG",
                                     icc_profile=linear_light_profile()),
                               np.where(ALPHA[..., None] == 0, 255, srgb(RGB / 255)), 2),
    "a profile that is none": (saved(Image.fromarray(RGB), "PNG", icc_profile=b"nothing"), RGB, 0),
    # Pillow turns a TIFF as it reads it, and no other format
    **{f"{form}, orientation {k}": (saved(Image.fromarray(RGB), form, exif=turned(k), **options), picture, 0)
       for form, options in {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}.items() for k, picture in {
        2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1], 5: RGB.swapaxes(0, 1),
        6: np.rot90(RGB, -1), 7: np.rot90(RGB.swapaxes(0, 1), 2), 8: np.rot90(RGB)}.items()},  # EXIF 2.3, table 6
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_same_file_is_the_same_pixels_to_all_that_read_it(name, tmp_path):
    content, expected, error = CASES[name]
    (tmp_path / "x.img").write_bytes(content)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "x.img", "text": "x"}\n')
    size = expected.shape[:2]
    images = open_images(str(tmp_path))
    trained, started = images.image(0, size), read_image(tmp_path / "x.img")
    assert images.sizes().tolist() == [list(size)]
    assert started.dtype == np.float32 and np.abs(trained - expected.astype(np.float64)).max() <= error
    np.testing.assert_array_equal(np.round(started * 255), trained)
    assert np.array_equal(starting_picture(tmp_path / "x.img", 0.5, None).image, started)
    resized = starting_picture(tmp_path / "x.img", 0.5, None, (12, 20)).image
    np.testing.assert_array_equal(np.round(resized * 255), images.image(0, (12, 20)))
    masked = starting_picture(tmp_path / "x.img", 0.5, tmp_path / "x.img").mask
    np.testing.assert_array_equal(masked, trained.astype(np.float32).mean(-1) > 127.5)


def test_a_jpeg_whose_exif_has_a_text_for_a_resolution_is_read_as_it_stands(tmp_path):
    wide = np.zeros((16, 32, 3), np.uint8)
    wide[:, :16] = 255
    (tmp_path / "x.jpg").write_bytes(saved(Image.fromarray(wide), "JPEG", quality=95, exif=exif_with_text()))
    read = read_image(tmp_path / "x.jpg")
    assert read.shape == (32, 16, 3) and read[:12].min() > 0.9 and read[20:].max() < 0.1


def test_a_large_jpeg_on_its_side_is_not_read_smaller_than_it_is_wanted(tmp_path):
    """Pillow's JPEG reader halves what is more than twice as large as asked, before the picture is turned."""
    detail = np.tile(np.uint8([[0, 255], [255, 0]]), (128, 256))  # 256 x 512, as stored
    content = saved(Image.fromarray(detail), "JPEG", quality=95, exif=turned(6))
    (tmp_path / "x.jpg").write_bytes(content)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "x.jpg", "text": "x"}\n')
    assert open_images(str(tmp_path)).image(0, (128, 256)).std() > 60  # halved, all of it is grey


@pytest.mark.parametrize("content", [
    saved(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"),
    saved(Image.fromarray(np.full((4, 4), 1 << 20, np.int32)), "TIFF"),
    saved(Image.fromarray(RGB), "PNG")[:60],
    b"\x89PNG\r\n\x1a\n" + bytes(40),
    b"text",
])  # fmt: skip
def test_what_cannot_be_read_is_one_line_with_the_files_name(content, tmp_path):
    (tmp_path / "x.png").write_bytes(content)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "x.png", "text": "x"}\n')
    for read in (lambda: read_image(tmp_path / "x.png"), lambda: open_images(str(tmp_path)).image(0)):
        with pytest.raises(ValueError, match="x.png cannot be decoded") as caught:
            read()
        assert "\n" not in str(caught.value)


def test_a_mask_has_the_shape_of_its_picture_in_any_size(tmp_path):
    save = lambda name, *shape: Image.fromarray(np.full(shape, 255, np.uint8)).save(tmp_path / name)
    save("picture.png", 30, 40)
    for name, shape in {"same.png": (30, 40), "half.png": (15, 20), "odd.png": (100, 133)}.items():
        save(name, *shape)
        start = starting_picture(tmp_path / "picture.png", 0.5, tmp_path / name, (16, 16))
        assert start.mask.shape == (16, 16) and start.mask.all()
    for name, shape in {"turned.png": (40, 30), "square.png": (30, 30), "wider.png": (30, 42)}.items():
        save(name, *shape)
        with pytest.raises(ValueError, match=f"{name} is .* pixels, --image=.*picture.png 40 x 30") as caught:
            starting_picture(tmp_path / "picture.png", 0.5, tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("row", "line"), [
    ({"file_name": "x.png", "text": "half \ud83d of a pair"}, "line 2: its text is no Unicode text"),
    ({"file_name": "x\udfff.png", "text": "x"}, "line 2: its file_name is no Unicode text"),
])  # fmt: skip
def test_half_of_a_surrogate_pair_is_named_by_its_row(row, line, tmp_path):
    (tmp_path / "x.png").write_bytes(CASES["rgb"][0])
    rows = [{"file_name": "x.png", "text": "x"}, row]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=line):
        open_images(str(tmp_path))


NO_TEXT = pa.Array.from_buffers(pa.string(), 2, pa.array([b"caf\xe9", b"x"], pa.binary()).buffers())
ODD_NAME = "caf\udce9.png"  # of a file system whose names are in Latin-1


def shard(**columns):
    return lambda folder: pq.write_table(pa.table({"image": [CASES["rgb"][0]] * 2, **columns}), folder / "a.parquet")


def tarred(folder):
    with tarfile.open(folder / "a.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        for name in ("x.png", ODD_NAME):
            member = tarfile.TarInfo(name)
            member.size = len(CASES["rgb"][0])
            archive.addfile(member, io.BytesIO(CASES["rgb"][0]))


def odd_file(folder):
    for name in ("x.png", ODD_NAME):
        (folder / name).write_bytes(CASES["rgb"][0])


def odd_folder(folder):
    for name in ("x", "caf\udce9"):
        (folder / name).mkdir()
        (folder / name / "x.png").write_bytes(CASES["rgb"][0])


def table(folder):
    (folder / "x.png").write_bytes(CASES["rgb"][0])
    pq.write_table(pa.table({"file_name": ["x.png"] * 2, "text": NO_TEXT}), folder / "metadata.parquet")


@pytest.mark.parametrize(("make", "line"), [
    (shard(text=NO_TEXT), "a.parquet row 0 of group 0: it holds text that is not UTF-8"),
    (shard(text=[b"caf\xe9", b"x"]), "a.parquet row 0 of group 0: it holds text that is not UTF-8"),
    (shard(prompt=NO_TEXT, text=["x", "y"]), "a.parquet row 0 of group 0: it holds text that is not UTF-8"),
    (table, "metadata.parquet row 1: it holds text that is not UTF-8"),
    (odd_file, r"'caf\\udce9.png': its name is no Unicode text"),
    (odd_folder, r"'caf\\udce9/': its name is no Unicode text"),
    (tarred, r"a.tar/'caf\\udce9.png': its name is no Unicode text"),
])  # fmt: skip
def test_what_is_no_unicode_text_is_named_in_every_kind_of_collection(make, line, tmp_path):
    make(tmp_path)
    with pytest.raises(ValueError, match=line):
        open_images(str(tmp_path))
    assert len(open_images(str(tmp_path), bad=Bad(0.7))) == 1  # where so many may be left out


def test_captions_in_bytes_are_text(tmp_path):
    shard(text=["caf\u00e9".encode(), b"x"])(tmp_path)
    assert open_images(str(tmp_path)).captions == ["caf\u00e9", "x"]


def test_captions_of_another_field_need_no_text(tmp_path):
    (tmp_path / "x.png").write_bytes(CASES["rgb"][0])
    rows = [{"file_name": "x.png", "prompt": "a fox", "kind": "a"}, {"file_name": "x.png", "kind": "b"}]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    images = open_images(str(tmp_path), {"kind": "a"}, caption="prompt")
    assert images.captions == ["a fox"] and len(images.fingerprint) == 16
    with pytest.raises(ValueError, match="data.caption='prompt': .*x.png has no such text"):
        open_images(str(tmp_path), caption="prompt")
    with pytest.raises(ValueError, match="line 1 has no text"):
        open_images(str(tmp_path))
    rows = [{"file_name": "x.png", "prompt": "half \udc00"}]
    (tmp_path / "metadata.jsonl").write_text(json.dumps(rows[0]))
    with pytest.raises(ValueError, match="line 1: its prompt is no Unicode text"):
        open_images(str(tmp_path), caption="prompt")


def test_a_prompt_that_is_no_text_is_one_line(tmp_path, capsys):
    """Bytes of a command line that are no UTF-8 arrive as halves of surrogate pairs."""
    assert main(["sample", "--from=nowhere", "--prompt=caf\udce9", f"--out={tmp_path / 'x.png'}"]) == 2
    assert capsys.readouterr().err == "lgm sample: --prompt='caf\\udce9' is no Unicode text; write it in UTF-8\n"


def test_a_png_whose_pixels_are_damaged_is_an_error_not_black():
    content = saved(Image.fromarray(RGB), "PNG")
    start = content.index(b"IDAT") + 4
    with pytest.raises(ValueError, match="it cannot be decoded"):
        decode(content[:start] + b"no zlib" + content[start + 7 :], (4, 4), "it")
