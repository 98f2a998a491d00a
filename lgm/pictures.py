"""What `lgm sample` reads from its words and files before anything is loaded: pictures to start from, how to draw."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lgm import registry, sampling
from lgm.data.decoding import fitted, picture
from lgm.data.sources.source import is_unicode
from lgm.untrusted import read_bytes, regular, shown

NOT_FINITE = ("what was drawn is not finite (NaN or infinite), so that there is no picture; give a smaller guidance, "
              "or look for damage in the weights")
MOST_IMAGES, MOST_STEPS = 4096, 100_000  # of one call
LARGEST_SIDE = 16_384  # pixels


@dataclasses.dataclass(frozen=True)
class Start:
    """A picture [H, W, 3] in [0, 1] to start from instead of noise: its last strength x steps steps are made anew.
    Where `mask` [H, W] is False the picture is kept."""

    image: np.ndarray
    strength: float = 0.8
    mask: np.ndarray | None = None


def drawing_words(prompts: Sequence[str], count: int, steps: int | None = None, guidance: float | None = None,
                  solver: str | Mapping[str, Any] | None = None, negative: str | None = None,
                  schedule: str | Mapping[str, Any] | None = None, rule: str | Mapping[str, Any] | None = None,
                  interval: Sequence[float] | None = None) -> dict[str, Any]:
    """Those given, as fields of a config's `sampling`. Raises ValueError, one line, for what no model can draw."""
    for prompt in prompts:
        if not prompt.strip():
            raise ValueError('--prompt is empty; give a caption, such as --prompt="grinning face emoji, noto style"')
    for name, texts in (("prompt", prompts), ("negative", [negative])):
        if broken := [text for text in texts if not is_unicode(text)]:
            raise ValueError(f"--{name}={ascii(broken[0])} is no Unicode text; write it in UTF-8")
    for name, value, most in (("count", count, MOST_IMAGES), ("steps", steps, MOST_STEPS)):
        if value is not None and value < 1:
            raise ValueError(f"--{name}={value} must be at least 1")
        if value is not None and value > most:
            raise ValueError(f"--{name}={shown(value)} is more than {most}; draw fewer at a time")
    if guidance is not None and not math.isfinite(guidance):
        raise ValueError(f"--guidance={guidance} is no finite number")
    words = {"steps": steps, "guidance": guidance, "solver": solver, "negative": negative, "rule": rule}
    if solver is not None:
        sampling.solver(**registry.section(solver, "solver"))
    if rule is not None:
        sampling.rule(scale=2.0, **registry.section(rule, "rule"))
    if schedule is not None:
        section = registry.section(schedule, "schedule") if isinstance(schedule, str) else dict(schedule)
        words["schedule"] = {"spacing": section.pop("name"), **section} if "name" in section else section
        registry.known("spacing", sampling.SPACINGS, words["schedule"].get("spacing", "even"))
    if interval is not None:
        sampling.guided(sampling.solver("euler"), sampling.plain(2.0), tuple(interval))
        words["interval"] = tuple(interval)
    return {name: value for name, value in words.items() if value is not None}


def check_seed(seed: int) -> None:
    """Raise ValueError, one line, for a seed that JAX would take for another or for none."""
    if not 0 <= seed < 1 << 32:
        raise ValueError(f"seed={shown(seed)} must lie in [0, 2**32)")


def starting_picture(image: str | Path | None, strength: float | None, mask: str | Path | None,
                     size: tuple[int, int] | None = None) -> Start | None:
    """The picture that --image, --strength and --mask say, cut to `size` = (height, width); None without an image.

    Raises ValueError, one line, for a file that is no image and for a mask of another shape than the picture.
    """
    if strength is not None and not 0.0 < strength <= 1.0:
        raise ValueError(f"strength={strength} must lie in (0, 1]")
    if image is None:
        if strength is not None or mask is not None:
            raise ValueError(f"{'strength' if mask is None else 'mask'} goes with image, the picture to start from")
        return None
    strength = 0.8 if strength is None else strength
    start = _open(image)
    width, height = start.size
    size = size or (height, width)
    pixels = fitted(start, size).astype(np.float32) / 255
    if mask is None:
        return Start(pixels, strength)
    cover = _open(mask)
    if abs(cover.width * height - cover.height * width) > max(cover.size + start.size) / 2:  # half a pixel of either
        raise ValueError(f"--mask={mask} is {cover.width} x {cover.height} pixels, --image={image} {width} x {height}; "
                         "give a mask of the picture's shape, in any size")
    return Start(pixels, strength, fitted(cover.resize(start.size, Image.Resampling.LANCZOS), size).mean(-1) > 127.5)


def read_image(path: str | Path) -> np.ndarray:
    """[H, W, 3] float32 in [0, 1], read as training images are. Raises ValueError, one line, for what is no image."""
    return np.asarray(_open(path), np.float32) / 255


def _open(path: str | Path) -> Image.Image:
    try:
        content = read_bytes(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read as an image ({error.strerror or error}); give a PNG or JPEG") from None
    return picture(content, str(path))


def read_size(text: str) -> tuple[int, int]:
    """(height, width) of "512" or "512x768". Raises ValueError, one line, for anything else."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(s.isdecimal() and len(s) < 6 and 0 < int(s) <= LARGEST_SIDE for s in sides):
        raise ValueError(f"size={shown(text)} is no size in pixels; write 512 or 512x768 (height x width, at most "
                         f"{LARGEST_SIDE})")
    return int(sides[0]), int(sides[-1])


def read_noise(path: str | Path) -> np.ndarray:
    """The float32 array of a .npy file. Raises ValueError, one line, where there is none."""
    try:
        noise = np.load(regular(path), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as a .npy array ({type(error).__name__})") from error
    if not isinstance(noise, np.ndarray) or noise.dtype.kind != "f":
        raise ValueError(f"{path} holds no array of floats; save x_T with numpy.save")
    if not np.isfinite(noise).all():
        raise ValueError(f"{path} holds values that are not finite")
    return noise.astype(np.float32)


def latent_mask(mask_HW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[1, h, w, 1] float32: 1 for latent pixels of which any pixel is drawn anew."""
    (rows, columns), (h, w) = mask_HW.shape, size
    blocks = mask_HW.reshape(h, rows // h, w, columns // w)
    return blocks.any((1, 3)).astype(np.float32)[None, :, :, None]
