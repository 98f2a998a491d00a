"""Encoded images that are odd one by one: each is a name and the bytes of a file that says one strange thing."""

import gzip
import io
import os
import struct
import zlib

import numpy as np
from PIL import Image


def encoded(form, mode="RGB", size=(24, 16), **options):
    """An image file of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind, data, crc=None):
    """One chunk of a PNG."""
    crc = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def bmp(width, height, depth, packing):
    """The header of a BMP."""
    return b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, width, height, 1, depth, packing, 0, 0, 0, 0, 0)


def png(width, height, *chunks, depth=8, colour=2, method=0, filters=0, interlaced=0):
    """A PNG of these chunks, whatever they say."""
    size = struct.pack(">IIBBBBB", width, height, depth, colour, method, filters, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + b"".join(chunks) + chunk(b"IEND", b"")


def tiff(*entries, order="<"):
    """A TIFF of one directory of (tag, type, count, value), and little behind it."""
    body = b"".join(struct.pack(f"{order}HHII", *entry) for entry in entries)
    return ((b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries)) + body
            + struct.pack(f"{order}I", 8) + bytes(64))  # the directory after it is itself


def exif(*entries):
    """A JPEG whose EXIF is such a directory."""
    return encoded("JPEG", exif=b"Exif\0\0" + tiff(*entries))


def odd_files():
    """{what is odd: bytes}."""
    bomb = zlib.compress(bytes(64 << 20), 1)
    pixels, whole = chunk(b"IDAT", zlib.compress(bytes(16 * 49))), encoded("PNG")
    jpeg, postscript = encoded("JPEG"), b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    odd = {
        "PNG of no rows": png(16, 0, pixels), "PNG of no pixels": png(16, 16),
        "PNG of too few rows": png(16, 4000, pixels), "PNG of other depth": png(16, 16, pixels, depth=3),
        "PNG of no colour type": png(16, 16, pixels, colour=5), "PNG of no method": png(16, 16, pixels, method=9),
        "PNG of no filter": png(16, 16, pixels, filters=7), "PNG interlaced by 3": png(16, 16, pixels, interlaced=3),
        "PNG of no zlib": png(16, 16, chunk(b"IDAT", b"not zlib")),
        "PNG of too few rows in two chunks": png(16, 4000, pixels, chunk(b"IDAT", b"")),
        "PNG interlaced, of too few rows": png(16, 17, pixels, interlaced=1),
        "PNG whose pixels are cut": png(16, 16, chunk(b"IDAT", zlib.compress(os.urandom(784))[:500])),
        "PNG of two streams": png(16, 16, chunk(b"IDAT", zlib.compress(bytes(400)) * 2)),
        "PNG of pixels in two places": png(16, 16, pixels, chunk(b"tEXt", b"a\0b"), pixels),
        "PNG with a chunk before its header": whole[:8] + chunk(b"tEXt", b"a\0b") + whole[8:],
        "PNG with a wrong sum": png(16, 16, chunk(b"IDAT", zlib.compress(bytes(784)), 1)),
        "PNG without a palette": png(16, 16, pixels, colour=3),
        "PNG with an empty palette": png(16, 16, chunk(b"PLTE", b""), pixels, colour=3),
        "PNG with a palette of two": png(16, 16, chunk(b"PLTE", b"123456"), pixels, colour=3),
        "PNG with a text bomb": png(16, 16, chunk(b"zTXt", b"a\0\0" + bomb), pixels),
        "PNG with a profile bomb": png(16, 16, chunk(b"iCCP", b"a\0\0" + bomb), pixels),
        "PNG with a profile of no zlib": png(16, 16, chunk(b"iCCP", b"a\0\0zzzz"), pixels),
        "PNG with an unnamed profile": png(16, 16, chunk(b"iCCP", b""), pixels),
        "PNG with a short gamma": png(16, 16, chunk(b"gAMA", b"\0"), pixels),
        "PNG with short dots": png(16, 16, chunk(b"pHYs", b"\0\0"), pixels),
        "PNG with long transparency": png(16, 16, chunk(b"tRNS", bytes(4000)), pixels),
        "PNG with short transparency": png(16, 16, chunk(b"tRNS", b"\0"), pixels),
        "PNG of frames that are none": png(16, 16, chunk(b"acTL", struct.pack(">II", 1 << 31, 0)), pixels),
        "PNG of a frame outside": png(16, 16, chunk(b"acTL", struct.pack(">II", 2, 0)),
                                      chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 99, 99, 5, 5, 1, 1, 0, 0)), pixels),
        "PNG with bad EXIF": png(16, 16, chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff"), pixels),
        "PNG with text in UTF-8 that is none": png(16, 16, chunk(b"iTXt", b"a\0\0\0\0\0\xff\xfe\xff"), pixels),
        "PNG with a chunk longer than the file": whole[:33] + struct.pack(">I", 1 << 30) + b"IDAT" + whole[41:],
        "PNG twice": whole * 2, "PNG after a line": b"\n" + whole, "PNG with rubbish behind it": whole + b"\0" * 9999,
        "PNG in gzip": gzip.compress(whole), "PNG as text": whole.hex().encode(), "PNG's first eight bytes": whole[:8],
        "PNG with Unix line ends": whole.replace(b"\r\n", b"\n"),
        "JPEG without its first bytes": jpeg[2:], "JPEG without its end": jpeg[:-2],
        "JPEG's two ends": b"\xff\xd8\xff\xd9",
        "JPEG of no rows": jpeg.replace(struct.pack(">HH", 16, 24), struct.pack(">HH", 0, 24)),
        "JPEG of no columns": jpeg.replace(struct.pack(">HH", 16, 24), struct.pack(">HH", 16, 0)),
        "JPEG of 65,535 rows": jpeg.replace(struct.pack(">HH", 16, 24), struct.pack(">HH", 65535, 24)),
        "JPEG of 65,500 x 65,500": jpeg.replace(struct.pack(">HH", 16, 24), struct.pack(">HH", 65500, 65500)),
        "JPEG with a segment of no length": jpeg[:2] + b"\xff\xe1\0\0" + jpeg[2:],
        "JPEG with a segment past its end": jpeg[:2] + b"\xff\xe1\xff\xff" + jpeg[2:],
        "JPEG with half a profile": jpeg[:2] + b"\xff\xe2\0\x12ICC_PROFILE\0\x01\x02xx" + jpeg[2:],
        "JPEG with a profile's piece 0": jpeg[:2] + b"\xff\xe2\0\x12ICC_PROFILE\0\0\0xx" + jpeg[2:],
        "JPEG with Photoshop's rubbish": jpeg[:2] + b"\xff\xed\0\x16Photoshop 3.0\x008BIM\xff\xff" + jpeg[2:],
        "JPEG with a short Adobe segment": jpeg[:2] + b"\xff\xee\0\x07Adobe" + jpeg[2:],
        "JPEG with a multi-picture index": jpeg[:2] + b"\xff\xe2\0\x0aMPF\0II*\0" + jpeg[2:],
        "JPEG of 5,000 comments": jpeg[:2] + b"\xff\xfe\0\x04ab" * 5000 + jpeg[2:],
        "JPEG without tables": jpeg.replace(b"\xff\xdb", b"\xff\xfe"), "JPEG of arithmetic": jpeg.replace(
            b"\xff\xc0", b"\xff\xc9"), "JPEG without loss": jpeg.replace(b"\xff\xc0", b"\xff\xc3"),
        "EXIF turned by 0": exif((274, 3, 1, 0)), "EXIF turned by 9": exif((274, 3, 1, 9)),
        "EXIF turned by text": exif((274, 2, 4, 0x41414141)),
        "EXIF turned by a billion words": exif((274, 3, 1 << 30, 0)),
        "EXIF of a type that is none": exif((274, 99, 1, 1)), "EXIF within itself": exif((34665, 4, 1, 8)),
        "EXIF far outside": exif((34853, 4, 1, 0xFFFFFF00)), "EXIF of 60,000 words": exif(*[(274, 3, 1, 6)] * 5000),
        "TIFF without tags": tiff(), "TIFF whose pixels lie nowhere": tiff(
            (256, 4, 1, 16), (257, 4, 1, 16), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 1 << 31), (279, 4, 1, 256)),
        "TIFF of 2^31 columns": tiff((256, 4, 1, 1 << 31), (257, 4, 1, 1 << 31), (262, 3, 1, 1), (273, 4, 1, 8)),
        "TIFF of no columns": tiff((256, 4, 1, 0), (257, 4, 1, 5), (262, 3, 1, 1), (273, 4, 1, 8), (279, 4, 1, 8)),
        "TIFF of a strip of 4 GB": tiff((256, 4, 1, 16), (257, 4, 1, 16), (258, 3, 1, 8), (262, 3, 1, 1),
                                        (273, 4, 1, 8), (279, 4, 1, 0xFFFFFFFF)),
        "TIFF of a packing that is none": tiff((256, 4, 1, 16), (257, 4, 1, 16), (259, 3, 1, 4242), (262, 3, 1, 1),
                                               (273, 4, 1, 8), (279, 4, 1, 64)),
        "TIFF that turns and has no size": tiff((274, 3, 1, 6), order=">"),
        "TIFF of 64 bits": b"II+\0\x08\0\0\0" + bytes(8),
        "GIF of no frame": b"GIF89a\x10\0\x10\0\0\0\0;",
        "GIF of 65,535 x 65,535": b"GIF89a\xff\xff\xff\xff\0\0\0" + bytes(40),
        "GIF of a frame outside": b"GIF89a\x10\0\x10\0\0\0\0,\xff\0\xff\0\xff\xff\xff\xff\0\x02\x01\0\0;",
        "GIF of extensions without end": b"GIF89a\x10\0\x10\0\0\0\0" + b"!\xfe\xff" * 400,
        "GIF of a code size of 99": b"GIF89a\x10\0\x10\0\x80\0\0" + b"123456,\0\0\0\0\x10\0\x10\0\0c\x01\0\0;",
        "BMP of 2^31 rows": bmp(16, -(1 << 31), 24, 0),
        "BMP of 77 bits": bmp(16, 16, 77, 0),
        "BMP of a packing that is none": bmp(9, 9, 24, 77),
        "BMP of a header of 2 GB": b"BM" + struct.pack("<IIII", 54, 0, 54, 1 << 31) + bytes(40),
        "WebP of nothing": b"RIFF\x04\0\0\0WEBP",
        "WebP longer than its file": b"RIFF\xff\xff\xff\xffWEBPVP8 \xff\xff\xff\xff",
        "WebP of an empty frame": b"RIFF\x0c\0\0\0WEBPVP8X\0\0\0\0", "WebP of 16,384 columns": encoded("WEBP").replace(
            struct.pack("<HH", 24, 16), struct.pack("<HH", 16383, 16383)),
        "PPM of 10^10 columns": b"P6 10000000000 1 255\n" + bytes(30), "PPM of -1 rows": b"P6 4 -1 255\n" + bytes(30),
        "PPM of text": b"P3 4 4 255\n" + b"a " * 48, "PPM of no maximum": b"P6 4 4 0\n" + bytes(48),
        "PPM of a name without end": b"P6 " + b"1" * 100_000, "PGM of 16 bits, cut": b"P5 4 4 65535\n" + bytes(9),
        "JPEG 2000's signature": b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000 of a box of 2^64": b"\0\0\0\x0cjP  \r\n\x87\n"
            + b"\0\0\0\x01jp2h" + b"\xff" * 8, "JPEG 2000's stream, cut": b"\xff\x4f\xff\x51\0\x2f" + bytes(30),
        "AVIF's first box": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf", "AVIF, cut": encoded("AVIF")[:-40],
        "HEIC's first box": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        "PostScript": postscript + b"(/etc/passwd) run showpage\n",
        "PostScript with a preview": b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, 200) + bytes(20) + postscript,
        "SVG of a file outside": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "HTML": b"<!DOCTYPE html><title>404</title>", "JSON": b'{"error": "denied"}', "a pointer of LFS":
            b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n",
        "PDF of a page": b"%PDF-1.7\n1 0 obj <</Type/Catalog>> endobj\n%%EOF",
        "a shell's script": b"#!/bin/sh\nexit 1\n",
        "UTF-16": "picture".encode("utf-16"), "an icon of no size": b"\0\0\1\0\1\0" + bytes(16),
        "Photoshop's header": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 1 << 30, 1 << 30, 8, 3),
        "a FITS header": b"SIMPLE  =                    T".ljust(2880), "a DDS header": b"DDS " + bytes(124),
        "one byte": b"\x89", "a megabyte of 0xFF": b"\xff" * (1 << 20), "a megabyte of newlines": b"\n" * (1 << 20),
    }
    for mode in ("1", "L", "LA", "P", "RGBA", "I;16"):
        grey = Image.fromarray(np.arange(384, dtype=np.uint16).reshape(16, 24)) if mode == "I;16" else None
        buffer = io.BytesIO()
        (grey or Image.open(io.BytesIO(whole)).convert(mode)).save(buffer, "PNG")
        odd[f"PNG of {mode}"] = buffer.getvalue()
        odd[f"PNG of {mode}, cut"] = buffer.getvalue()[:-30]
    for words in ("JPEG L", "JPEG CMYK", "WEBP RGBA", "GIF P", "TIFF CMYK", "TIFF LAB"):
        form, mode = words.split()
        content = encoded(form, mode)
        odd[f"{form} of {mode}"], odd[f"{form} of {mode}, cut"] = content, content[: len(content) * 2 // 3]
    return odd
