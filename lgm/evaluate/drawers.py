"""What draws the images that are measured: a run's system or a released pipeline, as one function of the rows."""

import dataclasses
import functools
import hashlib
import threading
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from lgm import sampling
from lgm.drawing import draw_rows, folder_sampler, text_to_image
from lgm.evaluate.evaluations import evaluations
from lgm.evaluate.features import Features
from lgm.evaluate.preparation import Preparation
from lgm.evaluate.protocol import Drawing, Protocol, sampling_of
from lgm.evaluate.sources import Source
from lgm.interop.schedulers import write_schedule
from lgm.models import Model, Params, family_of
from lgm.parallel import fetch
from lgm.parsing import ConfigError
from lgm.pictures import drawing_words
from lgm.registry import section
from lgm.system import System
from lgm.systems.release import Pipeline, latent_size


@dataclasses.dataclass(frozen=True, eq=False)
class Drawer:
    """draw(device, rows, captions, seed): uint8 [N, H, W, 3], the seed's images of those numbers, drawn on a device;
    on None where its networks are `split` over several.

    system: its denoiser's family or its pipeline. drawing: how it draws, in full. evaluations: of the network for an
    image. weights: what is known of them, with their hash. own: the features that its
    autoencoder has.
    """

    draw: Callable[[Any, np.ndarray, list[str], int], np.ndarray]
    system: str
    size: tuple[int, int]
    drawing: dict[str, Any]
    evaluations: Callable[[], int]
    weights: dict[str, Any]
    own: Callable[[], Features]
    split: bool = False


def of_system(system: System, params: Params, frozen: Params, protocol: Protocol, known: Mapping[str, Any]) -> Drawer:
    """A run's, or that of a folder that `lgm export` wrote; `known` are the facts of its weights.

    Raises ConfigError, one line, for what it cannot draw.
    """
    changes = drawing_words((), 1, **_words(protocol.drawing)) | ({} if protocol.drawing.clip is None else
                                                                  {"clip": protocol.drawing.clip})
    size = protocol.size or system.config.data.size
    if system.config.data.buckets is None and tuple(size) != tuple(system.config.data.size):
        raise ConfigError(f"protocol.size={list(size)} is not {list(system.config.data.size)}, at which the run was "
                          "trained; leave it out, or give a run of buckets")
    system.check_size(tuple(size))
    options = dataclasses.replace(system.config.sampling, **changes)
    sampler = system.sampler(options)  # what cannot be drawn is refused before anything is
    shape = None if tuple(size) == tuple(system.config.data.size) else tuple(size)
    placed = _placed((params, frozen))

    def draw(device, rows: np.ndarray, captions: list[str], seed: int) -> np.ndarray:
        return draw_rows(system, *placed(device), captions, seed, rows, shape, **changes)

    autoencoder = frozen["autoencoder"]
    return Drawer(draw, family_of(system.config.model).name, tuple(size), sampling_of(options),
                  lambda: evaluations(sampler, system.process, system.target), dict(known),
                  lambda: autoencoder_features("autoencoder", system.autoencoder, autoencoder, min(size)),
                  system.layout is not None and system.layout.mesh.size > 1)


def of_pipeline(pipeline: Pipeline, params: Mapping[str, Params], protocol: Protocol, split: bool = False) -> Drawer:
    """A diffusers folder's, whose networks may be `split` over all devices. Raises ConfigError or ValueError, one line,
    for what it cannot draw."""
    asked = drawing_words((), 1, **_words(protocol.drawing))
    if protocol.drawing.clip is not None:
        raise ConfigError(f"protocol.drawing.clip={protocol.drawing.clip} is for runs; a folder's scheduler says how "
                          "it bounds the data; leave it out")
    if pipeline.inpaints:
        raise ConfigError("the folder's network inpaints: it draws what a mask covers of a picture, of which a "
                          "protocol has none; give another folder")
    vae = pipeline.models["vae"]
    size = protocol.size or (pipeline.sample_size * vae.config.factor,) * 2
    rows, columns = latent_size(pipeline, size)
    if asked.get("negative") == "":
        del asked["negative"]
    placed = _placed(params)

    def draw(device, rows: np.ndarray, captions: list[str], seed: int) -> np.ndarray:
        images = text_to_image(pipeline, placed(device), captions, size=tuple(size), seed=seed, rows=rows, **asked)
        return np.round(images * 255).astype(np.uint8)

    usual = pipeline.defaults
    full = {"solver": pipeline.schedule.solver, "steps": usual.steps, "guidance": usual.guidance, "rule": usual.rule,
            "schedule": write_schedule(pipeline.schedule)} | asked  # fmt: skip
    guided = pipeline.extrapolates and full["guidance"] > 1.0
    rule = sampling.rule(scale=float(full["guidance"]), **section(full["rule"], "rule")) if guided else None
    sampler = folder_sampler(pipeline, rows * columns, full["steps"], rule, asked.get("solver"), asked.get("schedule"),
                             tuple(asked.get("interval", (0.0, 1.0))))
    known = {"kind": "folder", "hash": hash_of([params[place] for place in sorted(params)])}
    own = lambda: autoencoder_features("autoencoder", vae, params["vae"], min(size))
    return Drawer(draw, pipeline.name, tuple(size), full,
                  lambda: evaluations(sampler, pipeline.process, pipeline.target), known, own, split)


def autoencoder_features(name: str, model: Model, params: Params, size: int) -> Features:
    """The last hidden channels of an autoencoder's encoder, means and deviations over the image, as a feature network
    of images of that size.

    They rank blur, grey images, loss of variety and strong noise, and compare runs on one autoencoder with each other;
    with no published number.
    """
    if size % model.config.factor:
        raise ConfigError(f"pictures of {size} pixels do not divide by the {model.config.factor} that one of {name}'s "
                          "latents is of; give another --size, or other features")
    image = functools.partial(model.apply, method="features")
    dim = jax.eval_shape(image, model.abstract(), jax.ShapeDtypeStruct((1, size, size, 3), np.float32)).shape[-1]
    preparation = Preparation(size, "bicubic_pillow", True)
    params = jax.tree.map(fetch, params)
    digest = hash_of(params, repr(preparation))
    return Features(name, dim, digest[:16], preparation, Source(dim, preparation, params, image))


def hash_of(tree: Any, *more: str) -> str:
    """The SHA-256 of a tree of arrays: names, types, shapes and bytes of all its leaves, and of `more`."""
    digest = hashlib.sha256("\0".join(more).encode())
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        array = np.ascontiguousarray(fetch(leaf))
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _words(drawing: Drawing) -> dict[str, Any]:
    return {name: value for name, value in drawing.changes.items() if name != "clip"}


def _placed(tree: Any) -> Callable[[Any], Any]:
    """`placed(device)`: a tree on a device, brought there once; where it is, for None."""
    here: dict[Any, Any] = {}
    lock = threading.Lock()

    def placed(device):
        if device is None:
            return tree
        with lock:
            if device not in here:
                here[device] = jax.device_put(tree, device)
            return here[device]

    return placed


def rows_of(captions: int, count: int) -> list[int]:
    """The caption of each of a seed's `count` images: of more captions some, spread evenly; of fewer in turn."""
    if count >= captions:
        return [i % captions for i in range(count)]
    return np.linspace(0, captions - 1, count).round().astype(int).tolist()
