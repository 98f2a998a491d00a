"""PNGs as they are inflated and counted before Pillow reads them."""

import io
import struct
import zlib

import numpy as np
import pytest
from odd_files import chunk
from odd_files import png as file_of
from PIL import Image

from lgm.data import png
from lgm.data.decoding import MOST_PIXELS, decode, picture


def made(colour, depth, interlaced, width=33, height=17, keep=1.0, strategy=0, chunks=3):
    """A PNG of noise, of whose rows a share is there; its stream is whole."""
    rng = np.random.default_rng(depth)
    passes = png.PASSES if interlaced else ((0, 0, 1, 1),)
    columns = lambda x, across: (width - x + across - 1) // across
    rows = [-(-columns(x, across) * depth * png.CHANNELS[colour] // 8) for x, y, across, down in passes
            for _ in range(-(-(height - y) // down))]
    data = b"".join(bytes([number % 5]) + rng.bytes(row) for number, row in enumerate(rows))
    packer = zlib.compressobj(6, 8, 15, 9, strategy)
    stream = packer.compress(data[: int(keep * len(data))]) + packer.flush()
    size = -(-len(stream) // chunks)
    palette = [chunk(b"PLTE", rng.bytes(3 << depth))] if colour == 3 else []
    pixels = [chunk(b"IDAT", stream[at : at + size]) for at in range(0, len(stream), size)]
    return file_of(width, height, *palette, *pixels, depth=depth, colour=colour, interlaced=interlaced)


KINDS = [(colour, depth, interlaced) for colour, depths in ((0, (1, 2, 4, 8, 16)), (2, (8, 16)), (3, (1, 2, 4, 8)),
                                                            (4, (8, 16)), (6, (8, 16)))
         for depth in depths for interlaced in (0, 1)]  # fmt: skip


@pytest.mark.parametrize("large", [False, True])
def test_pixels_are_those_that_pillow_reads(large, monkeypatch):
    monkeypatch.setattr(png, "MOST_STORED", 0 if large else png.MOST_STORED)
    for kind in KINDS:
        for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE, zlib.Z_FIXED):
            content = made(*kind, strategy=strategy)
            found, expected = (Image.open(io.BytesIO(file)) for file in (png.stored(content, MOST_PIXELS), content))
            assert found.mode == expected.mode and found.tobytes() == expected.tobytes(), kind


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("keep", [0, 0.3, 0.9, 0.998])
def test_rows_that_are_not_there_are_no_black_rows(keep, large, monkeypatch):
    monkeypatch.setattr(png, "MOST_STORED", 0 if large else png.MOST_STORED)
    for kind in KINDS:
        with pytest.raises(ValueError, match=r"a.png cannot be decoded \(its pixels end after [\d,]+ of [\d,]+ bytes"):
            decode(made(*kind, keep=keep), (4, 4), "a.png")


def test_pixels_that_their_sum_does_not_fit_are_refused():
    content = made(2, 8, 0)
    stream = bytearray(content)
    stream[content.rindex(b"IEND") - 9] ^= 1  # of Adler-32: then come its CRC and a length
    with pytest.raises(ValueError, match="a.png cannot be decoded"):
        decode(bytes(stream), (4, 4), "a.png")


def test_a_bomb_is_inflated_to_its_size_alone():
    bomb = file_of(9, 9, chunk(b"IDAT", zlib.compress(bytes(1 << 24), 1)), colour=0)
    assert len(png.stored(bomb, MOST_PIXELS)) < 500
    assert np.array_equal(picture(bomb, "bomb"), np.zeros((9, 9, 3), np.uint8))


@pytest.mark.parametrize("form", ["WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG", "AVIF", "JPEG2000"])
def test_files_that_are_cut_are_refused(form):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)).save(buffer, form)
    content = buffer.getvalue()
    for end in np.linspace(0, len(content) - 4, 40).astype(int):  # the pixels are whole without the last two of a GIF
        with pytest.raises(ValueError, match="cannot be decoded"):
            picture(content[:end], "it")


def test_strips_and_frames_that_end_early_are_refused():
    """Streams that are whole, but for less than the picture: of TIFF, GIF and BMP."""
    strip = zlib.compress(bytes(100))
    tags = [(256, 24), (257, 16), (258, 8), (259, 8), (262, 1), (273, 122), (278, 16), (279, len(strip))]
    tiff = (b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for
            tag, value in tags) + bytes(122 - 10 - 12 * len(tags)) + strip)
    frame = b"GIF89a" + struct.pack("<HHBBB", 24, 16, 0x80, 0, 0) + b"abcdef," + struct.pack("<HHHHB", 0, 0, 24, 16, 0)
    gif = frame + b"\x02\x02\x84\x51\0;"  # clear, two pixels, the stream's end
    rows = b"\x18\7\0\0" * 5 + b"\0\1"  # five rows of 24, the picture's end
    bmp = b"BM" + struct.pack("<IIIIiiHHIIiiII", 1078 + len(rows), 0, 1078, 40, 24, 16, 1, 8, 1, len(rows), 0, 0, 256,
                              0) + bytes(1024) + rows
    for content in (tiff, gif, bmp):
        with pytest.raises(ValueError, match="cannot be decoded"):
            picture(content, "it")
