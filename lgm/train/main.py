"""What the verbs `train`, `sample`, `evaluate` and `export` do, once their words are parsed."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import time

import jax

from lgm import config as schema
from lgm.files import cache, place, write_atomically
from lgm.models import family_of
from lgm.parallel import Layout, make_layout, on_first, shardings
from lgm.parsing import ConfigError
from lgm.processes import PREEMPTED, member

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # names of glibc's mallopt


def train(spec: str, workdir: str, overrides: list[tuple[str, str]], extend: bool = False) -> int:
    """Train `spec` in `workdir`; returns the exit code: 0 when done, 75 when preempted and saved."""
    from lgm.train import loop
    from lgm.train.placing import layout_of

    workdir = place(workdir, "--workdir")
    config = schema.load(spec, overrides)
    use_compilation_cache()
    keep_freed_memory()
    _check_fit(config)
    layout = layout_of(config)
    start = time.monotonic()
    try:
        loop.train(config, workdir, task_of(config), layout, extend=extend)
    except loop.Preempted as error:
        print(f"lgm train: {error}", flush=True)
        return PREEMPTED
    seconds = time.monotonic() - start
    if jax.process_index() == 0:
        images = config.steps * config.batch_size
        print(f"{config.name}: {images:,} images in {seconds:.0f} s; see {workdir}", flush=True)
    return 0


def _check_fit(config: schema.Config) -> None:
    """Of a run that has lost processes: where those left are too many for its mesh or batch, say so and stop; the
    supervisors then go on with as many as fit."""
    from lgm.train.placing import fitting

    if not member.shrunk():
        return
    count = jax.process_count()
    if 0 < (fit := fitting(config, count, jax.local_device_count())) < count:
        member.tell_fit(fit)
        raise ConfigError(f"config.batch_size={config.batch_size} and config.mesh do not divide over {count} "
                          f"processes, but over {fit}")


def task_of(config: schema.Config):
    """The task a config trains: an autoencoder on images, or a denoiser on latents."""
    if family_of(config.model).role == "autoencoder":
        from lgm.train.autoencode import make_task
    else:
        from lgm.train.denoise import make_task
    return make_task


def use_compilation_cache() -> None:
    """Keep compiled programs between runs, unless the user has already said where (JAX_COMPILATION_CACHE_DIR)."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache("xla")))


def keep_freed_memory() -> None:
    """Tell glibc, where it is the C library, to keep freed memory for the next request instead of returning it.

    XLA:CPU asks for its buffers anew at every call, and pages that come back from the kernel are cleared first: in a
    small training step that took a third of the time. One arena for all threads, because the others cannot hold a
    buffer above 64 MB and ask the kernel for each (a fifth of a step's time). Peak memory stays what it was.
    """
    try:
        tune = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    tune(M_ARENA_MAX, 1)
    tune(M_MMAP_THRESHOLD, 1 << 30)
    tune(M_TRIM_THRESHOLD, 2**31 - 1)


def load_run(workdir: str, weights: str, layout: Layout | None = None):
    """(system, weights, frozen parameters, images seen) of a run's newest checkpoint; of one that was only imported,
    the weights that it will start from. They lie in `layout`, by default over all devices of all processes."""
    config, system, frozen, trained, step = _open_run(workdir, weights, layout)
    return system, system.whole(trained, frozen), frozen, step * config.batch_size


def _open_run(workdir: str, weights: str, layout: Layout | None = None):
    """(config, system, frozen parameters, trained parameters, step) of a denoiser's run."""
    from lgm.train.restoring import restore_weights
    from lgm.train.start import open_system

    config = schema.read(workdir)
    if family_of(config.model).role == "autoencoder":
        raise ConfigError(f"--workdir={workdir} holds an autoencoder's run; give the folder of a denoiser's")
    use_compilation_cache()
    layout = layout or over_all_devices()
    system, frozen, start = open_system(config, layout)
    abstract = jax.eval_shape(system.init, jax.random.key(0))
    places = shardings(layout, abstract, system.logical_axes())
    if start is not None and not (place(workdir) / "checkpoints").exists():
        return config, system, frozen, start(places), 0
    return config, system, frozen, *restore_weights(workdir, abstract, weights, places)


def over_all_devices() -> Layout:
    """The layout of what only draws, measures or writes: weights are split over all devices, and so are images."""
    return make_layout({"data": 1, "fsdp": -1})


def sample(workdir: str, prompts: list[str], out: str, *, weights: str, **options) -> int:
    """Draw `count` images of each prompt into one PNG with a run."""

    def load():
        system, params, frozen, _ = load_run(workdir, weights)
        return system, params, frozen

    return _sample(load, prompts, out, **options)


def sample_exported(folder: str, prompts: list[str], out: str, **options) -> int:
    """`sample` with a folder of `lgm export` that is no diffusers folder."""
    from lgm.exporting import open_exported

    return _sample(lambda: open_exported(folder, over_all_devices()), prompts, out, **options)


def _sample(load, prompts: list[str], out: str, *, seed: int, count: int, image: str | None = None,
            strength: float | None = None, mask: str | None = None, **words) -> int:
    """Check the words, then `load()` (system, parameters, frozen parameters) and draw."""
    from lgm.data import save_grid
    from lgm.drawing import draw
    from lgm.pictures import check_seed, drawing_words, starting_picture

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


def sample_released(folder: str, prompts: list[str], out: str, **options) -> int:
    """`sample` with a folder of diffusers; `options` are those of `interop.drawing.draw_from_folder`."""
    from lgm.interop.drawing import draw_from_folder

    draw_from_folder(folder, prompts, out if first() else None, **options)
    return finished()


def first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def finished() -> int:
    """0, when all processes have come here: what the first one writes is there."""
    member.barrier("the end")
    return 0


def evaluate(workdir: str, out: str, weights: str, distance: int | None = None, likelihood: int | None = None) -> int:
    """Held-out figures of a run's weights, as JSON; `distance` takes the place of `config.evaluation.distance`, and
    `likelihood` is how many steps the ODE whose density is stated is solved in."""
    from lgm.data import Bad, open_images
    from lgm.evaluate.drawn import check_enough
    from lgm.evaluate.likelihood import likelihood as log_likelihood
    from lgm.train.denoise import heldout_figures
    from lgm.train.feeding import heldout_parts

    if distance is not None and distance < 3:
        raise ConfigError(f"--distance={distance} must be at least 3 images")
    if likelihood is not None and likelihood < 1:
        raise ConfigError(f"--likelihood={likelihood} must be at least 1 step")
    system, params, frozen, images_seen = load_run(workdir, weights)
    data, options = system.config.data, system.config.evaluation
    if distance is not None:
        options = dataclasses.replace(options, distance=distance)
        system = dataclasses.replace(system, config=dataclasses.replace(system.config, evaluation=options))
    for flag, value in (("distance", distance), ("likelihood", likelihood)):
        if value is not None and data.buckets:
            raise ConfigError(f"--{flag}={value} is of images of one size, and this run has config.data.buckets="
                              f"{data.buckets}; leave it out")
    bad = Bad(data.bad_share)
    images = open_images(data.source, where=data.heldout_where, resolution=data.resolution, caption=data.caption,
                         threads=data.threads, bad=bad)
    images = images.take(range(min(len(images), options.max_images))).whole(bad)
    check_enough(system, images)
    parts = heldout_parts(system, frozen, images)
    values = heldout_figures(system, params, frozen, parts)
    if likelihood:
        values |= log_likelihood(system, params, *parts[0].arrays, likelihood)
    if not first():
        return finished()
    result = {"images_seen": images_seen, "weights": weights, "heldout_images": len(images), **values}
    write_atomically(out, (json.dumps(result, indent=2) + "\n").encode())
    drawn = f", kernel distance {values['kernel_distance']:.4g} +- {values['kernel_distance_error']:.2g}" if \
        "kernel_distance" in values else ""
    print(f"held-out loss {values['heldout_loss']:.4f} over {len(images)} images{drawn}; see {out}")
    return finished()


def export(workdir: str, out: str, weights: str, dtype: str | None = None, form: str | None = None) -> int:
    """Write a run as a folder, a denoiser's or an autoencoder's, and say in one line what was written."""
    if family_of(schema.read(workdir).model).role == "autoencoder":
        for flag, word in (("dtype", dtype), ("lora-form", form)):
            if word is not None:
                raise ConfigError(f"--{flag}={word} goes with a denoiser's run")
        line = _export_autoencoder(workdir, out, weights)
    else:
        from lgm.exporting import check_new, export_run

        check_new(out)
        _, system, frozen, trained, _ = _open_run(workdir, weights)
        trained, frozen = on_first((trained, {"autoencoder": frozen["autoencoder"]}))
        line = export_run(system, trained, frozen, out, dtype, form) if first() else ""
    if line:
        print(line)
    return finished()


def export_released(folder: str, out: str, loras: list[str], **options) -> int:
    """Write a folder of diffusers anew; `options` are those of `exporting.export_folder`."""
    from lgm import exporting
    from lgm.interop import drawing

    if first():
        print(exporting.export_folder(folder, out, loras=[drawing.lora_of(text) for text in loras], **options))
    return finished()


def _export_autoencoder(workdir: str, out: str, weights: str) -> str:
    """Write an autoencoder with its latents' statistics: diffusers' AutoencoderKL where it is one, else our own."""
    from lgm.data import open_images
    from lgm.interop.diffusers_configs import write_autoencoder
    from lgm.interop.exports import export_autoencoder
    from lgm.models import build
    from lgm.train.autoencode import reconstruct_all
    from lgm.train.restoring import restore_weights
    from lgm.weights import save_autoencoder, standardized

    config = schema.read(workdir)
    if place(out, "--out").exists() and not place(out).is_dir():
        raise ConfigError(f"--out={out} is a file; give a folder")
    model, layout = build(config.model), over_all_devices()
    params, _ = restore_weights(workdir, {"autoencoder": model.abstract()}, weights, layout.whole)
    images = open_images(config.data.source, where=config.data.where, resolution=config.data.resolution,
                         threads=config.data.threads)
    _, latents = reconstruct_all(config, model, params, images)
    params = on_first(params)
    if not first():
        return ""
    try:
        write_autoencoder(config.model)
    except ValueError as error:
        save_autoencoder(out, standardized(config.model, latents), params["autoencoder"], "float32")
        return f"wrote {out}, for config.autoencoder; no folder of diffusers: {error}"
    return export_autoencoder(out, config.model, params["autoencoder"], latents)


def import_(folder: str, workdir: str) -> int:
    """Make `workdir` a run that goes on from a diffusers folder."""
    from lgm.importing import import_folder

    path = import_folder(folder, workdir)
    print(f"wrote {path}; train it with `lgm train --config={path} --workdir={workdir}`")
    return 0
