"""Image files as pixels, read in one way wherever they come from: training images, pictures to start from, masks.

The first frame, turned as its EXIF orientation says; colours by the embedded profile, in sRGB; 16 bits scaled to 8;
transparency laid on white.
"""

import functools
import io
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, ImageCms, ImageOps

from lgm.data import png
from lgm.data.resizing import covering

ORIENTATION, WIDTH, LENGTH = 0x0112, 0x0100, 0x0101  # tags of EXIF and TIFF
SIDEWAYS = range(5, 9)  # orientations that swap height and width
_TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
          5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
          8: Image.Transpose.ROTATE_90}  # fmt: skip
# those of lgm.data.sources.IMAGES; Pillow reads more, some by a program (PostScript by Ghostscript)
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF", "PPM")
_TURNING = (b"eXIf", b"Raw profile type", b"adobe:ns:meta", b"adobe.xmp")  # what a PNG with an orientation holds
MOST_PIXELS = 1 << 27  # of an image that is decoded: 400 MB in RGB
_CUT = ("premature end", "found marker 0xd9 instead")  # what libjpeg says of a JPEG that ends before its last row
_PROFILED = {"RGB": "RGB", "CMYK": "CMYK", "L": "GRAY"}  # colour spaces of profiles


def decode(content: bytes, size: tuple[int, int], name: str, centre: tuple[float, float] = (0.5, 0.5)) -> np.ndarray:
    """An image file's bytes as uint8 [*size, 3], scaled to cover `size` = (height, width) and cut at `centre`, the
    (down, right) shares of what is to spare.

    Raises ValueError, one line with `name`, for what cannot be read.
    """
    return fitted(_read(content, name, size), size, centre)


def fitted(image: Image.Image | np.ndarray, size: tuple[int, int], centre: tuple[float, float] = (0.5, 0.5),
           by: str | None = None) -> np.ndarray:
    """uint8 [*size, ...]: an image, Pillow's or uint8 [H, W, 3], scaled to cover `size` = (height, width) and cut at
    `centre`, (down, right); `by` is one of Pillow's filters, by default Lanczos as `covering` has it."""
    height, width = size
    if isinstance(image, Image.Image) and (by or image.mode != "RGB"):
        if image.size != (width, height):
            filtered = Image.Resampling[(by or "lanczos").upper()]
            image = ImageOps.fit(image, (width, height), filtered, centering=centre[::-1])
        return np.asarray(image)
    there = image.size[::-1] if isinstance(image, Image.Image) else image.shape[:2]
    return np.asarray(image) if there == (height, width) else covering(image, size, centre)


def picture(content: bytes, name: str, size: tuple[int, int] | None = None) -> Image.Image:
    """An image file's bytes, of one of FORMATS, in RGB; a file larger than `size` may come out smaller, but not below
    it.

    Raises ValueError, one line with `name`, for what cannot be read.
    """
    image = _read(content, name, size)
    return image if isinstance(image, Image.Image) else Image.fromarray(image)


def _read(content: bytes, name: str, size: tuple[int, int] | None = None) -> Image.Image | np.ndarray:
    """`picture`, or its pixels: uint8 [H, W, 3]."""
    try:
        if content.startswith(png.SIGNATURE):
            content = png.stored(content, MOST_PIXELS)
        with Image.open(io.BytesIO(content), formats=_formats()) as image:
            # of others than JPEG nothing is asked before they are read: a PNG is read to find its EXIF, and says only
            # once that it is damaged; a TIFF is turned by Pillow as it is read
            jpeg = image.format in ("JPEG", "MPO")
            turn = _orientation(image) if jpeg else None
            whole = image.size
            if size is not None and jpeg:
                # a large one is decoded at the smallest scale that covers the size: 12 MP to 512 px in 65 ms, not 360
                image.draft(None, size if turn in SIDEWAYS else size[::-1])
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"it has {image.width} x {image.height} pixels, more than {MOST_PIXELS:,}")
            profile = image.info.get("icc_profile")
            pixels = _jpeg(content, image.size, whole) if jpeg and image.mode == "RGB" else None
            if pixels is None:
                image.load()
                profile = image.info.get("icc_profile")
            elif turn not in _TURNS and not (profile and _to_srgb(profile, "RGB")):
                return pixels
            else:
                image = Image.fromarray(pixels)
            turn = _TURNS.get(turn if jpeg else _orientation(image))
            image = _in_rgb(_eight_bits(image), profile)
            # not ImageOps.exif_transpose, which writes the EXIF anew and fails where any of it is malformed
            return image if turn is None else image.transpose(turn)
    except Exception as error:  # Pillow raises whatever its readers meet in a damaged file
        raise _undecodable(name, error) from None


def _jpeg(content: bytes, size: tuple[int, int], whole: tuple[int, int]) -> np.ndarray | None:
    """A colour JPEG of `whole` = (width, height), scaled as it is decoded to `size`: uint8 [H, W, 3], of the same
    values as Pillow's in two thirds of the time. None where Pillow must read it.

    Raises ValueError where its data ends before its last row, which Pillow takes for grey.
    """
    width, height = size if size != whole else (0, 0)
    try:
        pixels = simplejpeg.decode_jpeg(content, min_height=height, min_width=width)
    except ValueError as error:
        if any(words in str(error).lower() for words in _CUT):
            raise
        return None  # damage that leaves pixels, or a kind of JPEG that libjpeg's own interface alone reads
    return pixels if pixels.shape[1::-1] == size else None


def stored_size(content: bytes, name: str) -> tuple[int, int]:
    """(height, width) that a file's header says, as it is turned. Raises ValueError, one line with `name`."""
    try:
        with Image.open(io.BytesIO(content), formats=_formats()) as image:
            # Pillow may give a TIFF's size as it will be once that is read, and turned
            tiff: Any = image
            width, height = image.size if image.format != "TIFF" else (tiff.tag_v2[WIDTH], tiff.tag_v2[LENGTH])
            # a PNG is decoded to find what may turn it behind its pixels: 35 ms for 640 px where nothing does
            turned = image.format != "PNG" or any(mark in content for mark in _TURNING)
            return (width, height) if turned and _orientation(image) in SIDEWAYS else (height, width)
    except Exception as error:
        raise _undecodable(name, error) from None


@functools.cache
def _formats() -> tuple[str, ...]:
    """Of FORMATS those that this Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # EXIF that is not whole says nothing; the pixels are there all the same
        return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image in 8 bits; one of integers in grey is scaled from 16, which Pillow would clip."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of no known range; save it in 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    values, clear = np.asarray(image, np.int64), image.info.get("transparency")
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError("its pixels exceed 16 bits; save it in 8 or 16 bits")
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _in_rgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Colours as sRGB has them, on white."""
    if image.mode in ("RGBa", "La"):  # colours multiplied by their opacity
        image = image.convert(image.mode.upper())
    alpha = None
    clear = image.info.get("transparency")
    if isinstance(clear, tuple) and max(clear) > 0xFF:  # of a PNG of 16 bits, whose colours Pillow has in 8
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    if "A" in image.getbands() or "transparency" in image.info:
        image = image if image.mode == "LA" else image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.getchannel("L") if image.mode == "LA" else image.convert("RGB")
    if image.mode in ("P", "1"):
        image = image.convert("RGB")
    change = _to_srgb(profile, image.mode) if profile else None
    image = ImageCms.applyTransform(image, change) if change else image
    image = image if image.mode == "RGB" else image.convert("RGB")  # which would copy it
    if alpha is not None:
        image = Image.composite(image, Image.new("RGB", image.size, "white"), alpha)
    return image


@functools.lru_cache(maxsize=32)
def _to_srgb(profile: bytes, mode: str):
    """What turns pixels of a profile into sRGB; None where they are so already or the profile is of no use."""
    try:
        theirs = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if theirs.profile.xcolor_space.strip() != _PROFILED.get(mode):
            return None
        if "srgb" in ImageCms.getProfileDescription(theirs).lower():
            return None
        return ImageCms.buildTransform(theirs, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError):
        return None


def _undecodable(name: str, error: Exception) -> ValueError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ValueError(f"{name} cannot be decoded ({reason.split(' <')[0]}); give a whole PNG, JPEG or WebP")
