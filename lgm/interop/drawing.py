"""Pictures drawn with a released system, from the words of a command line to a PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lgm import sampling
from lgm.data.grid import save_grid
from lgm.files import write_atomically
from lgm.interop.diffusers_dir import load_pipeline
from lgm.interop.lora import LoRA, read_lora
from lgm.interop.pipelines import latent_size, text_to_image


def draw_from_folder(
    folder: str | Path,
    prompts: Sequence[str],
    out: str | Path,
    *,
    negative: str | None = None,
    count: int = 1,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    solver: str | None = None,
    size: tuple[int, int] | None = None,
    image: str | Path | None = None,
    strength: float = 0.8,
    loras: Sequence[str] = (),
    single_file: str | Path | None = None,
    dtype: str = "float32",
) -> np.ndarray:
    """Draw `count` images of each prompt with a diffusers folder, write them to one PNG and return them [N, H, W, 3].

    One image is written as it is, several as a grid with their prompts. `image` is a picture to start from; `loras` are
    files to merge, "path" or "path:strength". The arguments that decide nothing about the weights are checked before
    they are loaded. Raises ValueError, one line, for what cannot be.
    """
    for prompt in prompts:
        if not prompt.strip():
            raise ValueError('the prompt is empty; give a caption, such as "a red fox in the snow"')
    for name, value in (("count", count), ("steps", steps)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    if solver is not None:
        sampling.solver(solver)
    start = None if image is None else read_image(image)
    merged = [_lora(text) for text in loras]
    pipeline, params = load_pipeline(folder, dtype=dtype, single_file=single_file, loras=merged)
    if size is not None:
        latent_size(pipeline, size)
    captions = [prompt for prompt in prompts for _ in range(count)]
    images = text_to_image(
        pipeline,
        params,
        captions,
        negative=negative,
        steps=steps,
        guidance=guidance,
        solver=solver,
        size=size,
        seed=seed,
        image=None if start is None else np.repeat(start[None], len(captions), 0),
        strength=strength,
    )
    images = np.round(images * 255).astype(np.uint8)
    if len(images) == 1:
        buffer = io.BytesIO()
        Image.fromarray(images[0]).save(buffer, "PNG")
        write_atomically(out, buffer.getvalue())
    else:
        save_grid(out, images, captions, scale=1)
    return images


def read_image(path: str | Path) -> np.ndarray:
    """[H, W, 3] float32 in [0, 1]. Raises ValueError, one line, for a file that is no image."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"), np.float32) / 255
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read as an image ({type(error).__name__}); give a PNG or JPEG") from error


def _lora(text: str) -> LoRA:
    """The LoRA of "path" or "path:strength"."""
    path, _, strength = text.rpartition(":")
    if not path or Path(text).exists():
        return read_lora(text)
    try:
        return read_lora(path, float(strength))
    except ValueError as error:
        if "could not convert" in str(error):
            raise ValueError(f"{text!r}: the strength {strength!r} is no number; write path:0.8") from None
        raise
