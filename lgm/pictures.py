"""What `lgm sample` reads from its words and files before anything is loaded: pictures to start from, how to draw."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from lgm import registry, sampling


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
    for name, value in (("count", count), ("steps", steps)):
        if value is not None and value < 1:
            raise ValueError(f"--{name}={value} must be at least 1")
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


def starting_picture(image: str | Path | None, strength: float | None, mask: str | Path | None,
                     size: tuple[int, int] | None = None) -> Start | None:
    """The picture that --image, --strength and --mask say, cut to `size` = (height, width); None without an image."""
    if strength is not None and not 0.0 < strength <= 1.0:
        raise ValueError(f"strength={strength} must lie in (0, 1]")
    if image is None:
        if strength is not None or mask is not None:
            raise ValueError(f"{'strength' if mask is None else 'mask'} goes with image, the picture to start from")
        return None
    strength = 0.8 if strength is None else strength
    picture = read_image(image)
    picture = picture if size is None else resized(picture, size)
    if mask is None:
        return Start(picture, strength)
    return Start(picture, strength, resized(read_image(mask), picture.shape[:2]).mean(-1) > 0.5)


def read_image(path: str | Path) -> np.ndarray:
    """[H, W, 3] float32 in [0, 1]. Raises ValueError, one line, for a file that is no image."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"), np.float32) / 255
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read as an image ({type(error).__name__}); give a PNG or JPEG") from error


def resized(image_HWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture in [0, 1] scaled to cover `size` = (height, width) and cut in the middle."""
    picture = Image.fromarray(np.round(image_HWC * 255).astype(np.uint8))
    fitted = ImageOps.fit(picture, (size[1], size[0]), Image.Resampling.LANCZOS)
    return np.asarray(fitted, np.float32) / 255


def latent_mask(mask_HW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[1, h, w, 1] float32: 1 for latent pixels of which any pixel is drawn anew."""
    (rows, columns), (h, w) = mask_HW.shape, size
    blocks = mask_HW.reshape(h, rows // h, w, columns // w)
    return blocks.any((1, 3)).astype(np.float32)[None, :, :, None]
