"""Pictures drawn with a released system, from the words of a command line to a PNG."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from lgm.data.grid import save_grid
from lgm.files import write_atomically
from lgm.interop.lora import LoRA, read_lora
from lgm.interop.pipelines import text_to_image
from lgm.interop.skip_layers import read_skip
from lgm.models import Model
from lgm.parallel import make_layout, shardings
from lgm.pictures import check_seed, drawing_words, starting_picture
from lgm.systems.folders import load_pipeline
from lgm.systems.release import latent_size
from lgm.untrusted import finite, regular, shown

LARGEST_SIDE = 16_384  # pixels


def draw_from_folder(
    folder: str | Path,
    prompts: Sequence[str],
    out: str | Path | None,
    *,
    count: int = 1,
    seed: int = 0,
    size: str | tuple[int, int] | None = None,
    image: str | Path | None = None,
    strength: float | None = None,
    mask: str | Path | None = None,
    lora: Sequence[str] = (),
    single_file: str | Path | Sequence[str] = (),
    dtype: str = "float32",
    noise: str | Path | None = None,
    true_guidance: float = 1.0,
    skip_layers: str | None = None,
    tile: int | None = None,
    **words,
) -> np.ndarray:
    """Draw `count` images of each prompt with a diffusers folder, write them to one PNG, if `out` is given, and return
    them [N, H, W, 3].

    One image is written as it is, several as a grid with their prompts. `size` is (height, width) in pixels, "512" or
    "512x768". `image` is a picture to start from, `mask` where it is drawn anew; `lora` are files to merge, "path" or
    "path:strength"; `noise` is a .npy file of x_T [N, h, w, C] instead of what `seed` gives. `words` are those of
    `pictures.drawing_words`. On several devices every network is split over them, so that none need hold it whole. The
    arguments that decide nothing about the weights are checked before they are loaded. Raises ValueError, one line, for
    what cannot be.
    """
    check_seed(seed)
    words = drawing_words(prompts, count, **words)
    size = read_size(size) if isinstance(size, str) else size
    start = starting_picture(image, strength, mask, size)
    start_noise = None if noise is None else read_noise(noise)
    if skip_layers is not None:
        read_skip(skip_layers)
    merged = [lora_of(text) for text in lora]
    pipeline, params = load_pipeline(
        folder, dtype=dtype, single_file=single_file, loras=merged, shard=over_all_devices()
    )
    if size is not None:
        latent_size(pipeline, size)
    captions = [prompt for prompt in prompts for _ in range(count)]
    picture = {}
    if start is not None:
        image = np.repeat(start.image[None], len(captions), 0)
        picture = {"image": image, "strength": strength, "mask": start.mask}
    images = text_to_image(pipeline, params, captions, size=size, seed=seed, noise=start_noise,
                           true_guidance=true_guidance, skip_layers=skip_layers, tile=tile, **picture, **words)
    images = np.round(images * 255).astype(np.uint8)
    if out is None:
        return images
    if len(images) == 1:
        buffer = io.BytesIO()
        Image.fromarray(images[0]).save(buffer, "PNG")
        write_atomically(out, buffer.getvalue())
    else:
        save_grid(out, images, captions, scale=1)
    return images


def over_all_devices() -> Callable[[Model], Any] | None:
    """`shard(model)` that splits a model's matrices over all devices, or None where there is one."""
    if jax.device_count() == 1:
        return None
    layout = make_layout({"tensor": -1})
    return lambda model: shardings(layout, model.abstract(), model.logical_axes())


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


def lora_of(text: str) -> LoRA:
    """The LoRA of "path" or "path:strength"."""
    path, _, strength = text.rpartition(":")
    if not path or "/" in strength or Path(text).exists():
        return read_lora(Path(text) if Path(text).exists() else text)
    try:
        times = finite(strength)
    except ValueError:
        raise ValueError(f"{text!r}: the strength {strength!r} is no finite number; write path:0.8") from None
    return read_lora(path, times)
