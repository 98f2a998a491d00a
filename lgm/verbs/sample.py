"""`lgm sample`: from the words of a command line to a PNG, with a run, an exported one or a folder of diffusers."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from lgm.data import save_grid
from lgm.drawing import draw, text_to_image
from lgm.exporting import is_exported, open_exported
from lgm.files import write_atomically
from lgm.interop.lora import lora_of
from lgm.models import Model
from lgm.parallel import make_layout, shardings
from lgm.parsing import ConfigError
from lgm.pictures import check_seed, drawing_words, read_noise, read_size, starting_picture
from lgm.skip_layers import read_skip
from lgm.systems.folders import load_pipeline
from lgm.systems.release import latent_size
from lgm.train.opening import load_run, over_all_devices
from lgm.verbs.ending import finished, first
from lgm.verbs.words import numbers


def run(arguments, overrides) -> int:
    given = lambda *names: {name: value for name in names if (value := getattr(arguments, name)) is not None}
    common = given("seed", "count", "steps", "guidance", "solver", "schedule", "rule", "negative", "image", "strength",
                   "mask")
    if arguments.interval is not None:
        common["interval"] = numbers("--interval", arguments.interval, "0.1,0.8")
    released = given("size", "lora", "single_file", "dtype", "noise", "true_guidance", "skip_layers", "tile")
    if arguments.folder is None:
        if released:
            raise ConfigError(f"--{min(released).replace('_', '-')} goes with --from=DIFFUSERS_DIR, not with --workdir")
        load = lambda: load_run(arguments.workdir, arguments.weights or "ema")[:3]
        return _sample(load, arguments.prompt, arguments.out, **common)
    if arguments.weights:
        raise ConfigError("--weights goes with --workdir=DIR; a diffusers folder has one set of weights")
    if is_exported(arguments.folder):
        if released:
            raise ConfigError(f"--{min(released).replace('_', '-')} goes with a diffusers folder, which "
                              f"--from={arguments.folder} is not")
        load = lambda: open_exported(arguments.folder, over_all_devices())
        return _sample(load, arguments.prompt, arguments.out, **common)
    draw_from_folder(arguments.folder, arguments.prompt, arguments.out if first() else None, **common, **released)
    return finished()


def _sample(load, prompts: list[str], out: str, *, seed: int, count: int, image: str | None = None,
            strength: float | None = None, mask: str | None = None, **words) -> int:
    """Check the words, then `load()` (system, parameters, frozen parameters) and draw `count` images of each prompt
    into one PNG."""
    check_seed(seed)
    changes = drawing_words(prompts, count, **words)
    starting_picture(image, strength, mask)  # a file that cannot be read is refused before anything is loaded
    system, params, frozen = load()
    start = starting_picture(image, strength, mask, (system.config.data.resolution,) * 2)
    captions = [prompt for prompt in prompts for _ in range(count)]
    images = draw(system, params, frozen, captions, seed, start, **changes)
    if not first():
        return finished()
    if len(images) == 1:
        save_grid(out, images, scale=1)
    else:
        save_grid(out, images, captions)
    return finished()


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
        folder, dtype=dtype, single_file=single_file, loras=merged, shard=split_over_devices()
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


def split_over_devices() -> Callable[[Model], Any] | None:
    """`shard(model)` that splits a model's matrices over all devices, or None where there is one."""
    if jax.device_count() == 1:
        return None
    layout = make_layout({"tensor": -1})
    return lambda model: shardings(layout, model.abstract(), model.logical_axes())
