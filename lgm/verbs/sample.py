"""`lgm sample`: from the words of a command line to a PNG, with a run, an exported one or a folder of diffusers."""

import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from lgm import __version__, sampling
from lgm.config import read
from lgm.data import save_grid
from lgm.drawing import chunk, draw, text_to_image
from lgm.exporting import is_exported, open_exported
from lgm.files import place, write_atomically
from lgm.interop.lora_files import lora_of
from lgm.models import Model
from lgm.parallel import make_layout, shardings
from lgm.parsing import ConfigError, numbers
from lgm.pictures import check_seed, drawing_words, read_noise, read_size, starting_picture
from lgm.skip_layers import read_skip
from lgm.systems.folders import load_pipeline
from lgm.systems.release import latent_size
from lgm.train.opening import load_run, over_all_devices
from lgm.verbs.shared import finished, first


def run(arguments, overrides) -> int:
    given = lambda *names: {name: value for name in names if (value := getattr(arguments, name)) is not None}
    common = given("seed", "count", "size", "steps", "guidance", "solver", "schedule", "rule", "negative", "image",
                   "strength", "mask")
    if arguments.interval is not None:
        common["interval"] = numbers("--interval", arguments.interval, "0.1,0.8")
    released = given("lora", "single_file", "dtype", "noise", "true_guidance", "skip_layers", "tile")
    if arguments.folder is None:
        if released:
            raise ConfigError(f"--{min(released).replace('_', '-')} goes with --from=DIFFUSERS_DIR, not with --workdir")
        if arguments.solver:
            read(arguments.workdir)  # whose imports may have the solver
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


def _sample(load, prompts: list[str], out: str, *, seed: int, count: int, size: str | None = None,
            image: str | None = None, strength: float | None = None, mask: str | None = None, **words) -> int:
    """Check the words, then `load()` (system, parameters, frozen parameters), draw `count` images of each prompt and
    write them."""
    check_seed(seed)
    changes = drawing_words(prompts, count, **words)
    shape = None if size is None else read_size(size)
    starting_picture(image, strength, mask)  # a file that cannot be read is refused before anything is loaded
    system, params, frozen = load()
    if shape is not None:
        system.check_size(shape)
        shape = None if shape == tuple(system.config.data.size) else shape  # what is told of sizes then is the default
    start = starting_picture(image, strength, mask, shape or system.config.data.size)
    captions = [prompt for prompt in prompts for _ in range(count)]
    with bar(len(captions), -(-len(captions) // chunk(system, len(captions)))):
        images = draw(system, params, frozen, captions, seed, start, shape, **changes)
    if first():
        said = {"seed": seed, "size": size, "image": image, "strength": strength, "mask": mask, **words}
        write_pictures(out, images, captions, said)
    return finished()


def draw_from_folder(
    folder: str | Path, prompts: Sequence[str], out: str | Path | None, *, count: int = 1, seed: int = 0,
    size: str | tuple[int, int] | None = None, image: str | Path | None = None, strength: float | None = None,
    mask: str | Path | None = None, lora: Sequence[str] = (), single_file: str | Path | Sequence[str] = (),
    dtype: str = "float32", noise: str | Path | None = None, true_guidance: float = 1.0,
    skip_layers: str | None = None, tile: int | None = None, **words,
) -> np.ndarray:  # fmt: skip
    """Draw `count` images of each prompt with a diffusers folder, write them by `write_pictures`, if `out` is given,
    and return them [N, H, W, 3].

    `size` is (height, width) in pixels, "512" or
    "512x768". `image` is a picture to start from, `mask` where it is drawn anew; `lora` are files to merge, "path" or
    "path:strength"; `noise` is a .npy file of x_T [N, h, w, C] instead of what `seed` gives. `words` are those of
    `pictures.drawing_words`. On several devices every network is split over them, so that none need hold it whole. The
    arguments that decide nothing about the weights are checked before they are loaded. Raises ValueError, one line, for
    what cannot be.
    """
    check_seed(seed)
    given, drawn_from = words, image
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
    with bar(len(captions)):
        images = text_to_image(pipeline, params, captions, size=size, seed=seed, noise=start_noise,
                               true_guidance=true_guidance, skip_layers=skip_layers, tile=tile, **picture, **words)
    images = np.round(images * 255).astype(np.uint8)
    if out is not None:
        said = {"from": folder, "seed": seed, "size": size, "image": drawn_from, "strength": strength, "mask": mask,
                "lora": list(lora), "single_file": single_file, "dtype": dtype, "noise": noise,
                "true_guidance": true_guidance, "skip_layers": skip_layers, **given}  # fmt: skip
        write_pictures(out, images, captions, said, scale=1)
    return images


@contextlib.contextmanager
def bar(images: int, calls: int = 1) -> Iterator[None]:
    """On a terminal a bar over the steps of so many calls of a sampler, which draw `images`; nothing elsewhere."""
    console = Console(file=sys.stderr)
    if not console.is_terminal or not first():
        yield
        return
    shown = Progress(TextColumn(f"drawing {images} image{'s' * (images > 1)}"), BarColumn(bar_width=None),
                     TaskProgressColumn(), TimeRemainingColumn(), console=console)
    task = shown.add_task("", total=calls)
    with shown, sampling.watched(lambda share: shown.advance(task, share)):
        yield


def write_pictures(out: str | Path, images: np.ndarray, captions: Sequence[str], said: Mapping[str, Any],
                   scale: int = 2) -> list[Path]:
    """Write uint8 images [N, H, W, 3] and say so: one to `out`; several each to a file of its own, OUT-1.png and so on,
    and to `out` a sheet of them all with their captions, enlarged `scale` times.

    A file of one image says in its PNG text what it was drawn with: "prompt", and as JSON in "lgm" what was `said`
    besides, less what is None, and which of the seed's images it is.
    """
    out = place(out, "--out")
    if len(images) > 1:
        save_grid(out, images, captions, scale=scale)
    paths = [out] if len(images) == 1 else [numbered(out, i + 1) for i in range(len(images))]
    for i, (path, image, caption) in enumerate(zip(paths, images, captions, strict=True)):
        said_here = {name: value for name, value in said.items() if value not in (None, [], ())}
        facts = {"version": __version__, "number": i, **said_here}
        text, buffer = PngInfo(), io.BytesIO()
        text.add_itxt("prompt", caption)
        text.add_itxt("lgm", json.dumps(facts, default=str))
        Image.fromarray(image).save(buffer, "PNG", pnginfo=text)
        write_atomically(path, buffer.getvalue())
    print(out if len(images) == 1 else f"{out}, a sheet of {len(images)}: {paths[0].name} to {paths[-1].name}")
    return paths


def numbered(path: Path, number: int) -> Path:
    """x.png -> x-3.png."""
    return path.with_name(f"{path.stem}-{number}{path.suffix or '.png'}")


def split_over_devices() -> Callable[[Model], Any] | None:
    """`shard(model)` that splits a model's matrices over all devices, or None where there is one."""
    if jax.device_count() == 1:
        return None
    layout = make_layout({"tensor": -1})
    return lambda model: shardings(layout, model.abstract(), model.logical_axes())
