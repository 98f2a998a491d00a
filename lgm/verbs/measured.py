"""How the words of `lgm evaluate` become a protocol, and a run what draws and is measured by it."""

from collections.abc import Callable
from typing import Any

import jax

from lgm.data import Bad, open_heldout
from lgm.evaluate.drawers import Drawer, hash_of, of_system
from lgm.evaluate.drawn import check_enough
from lgm.evaluate.likelihood import likelihood
from lgm.evaluate.protocol import Protocol, parse_protocol, read_protocol
from lgm.parallel import Layout, make_layout
from lgm.parsing import ConfigError, as_dict
from lgm.pictures import read_size
from lgm.system import System
from lgm.train.denoise import heldout_figures
from lgm.train.feeding import heldout_parts
from lgm.train.opening import stored_weights


def protocol_of(arguments, otherwise: dict[str, Any] | None) -> Protocol:
    """The protocol of the words: a file's or `otherwise`, with what is said besides in its fields' places."""
    if arguments.protocol is not None:
        values = as_dict(read_protocol(arguments.protocol))
    elif otherwise is not None:
        values = dict(otherwise)
    elif arguments.metric:
        values = {}
    else:
        raise ConfigError("give --protocol=FILE, or --metric=NAME at least")
    if arguments.metric:
        values["metrics"] = arguments.metric
    if arguments.count is not None:
        values["count"] = arguments.count
    if arguments.size is not None:
        values["size"] = read_size(arguments.size)
    for section, key, word in (("weights", "kind", arguments.weights), ("features", "name", arguments.features),
                               ("reference", "source", arguments.reference)):
        if word is not None and word != values.get(section, {}).get(key):
            values[section] = {key: word}  # what the file said of another one's hash does not hold
    return parse_protocol(values)


def drawer_of(workdir: str, system: System, frozen, start, protocol: Protocol,
              loaded: dict | None = None) -> tuple[Drawer, Any]:
    """(what draws, its parameters) with the weights of a run that a protocol asks for; of one that was only imported,
    those that it will `start` from. `loaded` keeps the weights that were loaded last, for the next protocol."""
    asked, loaded = protocol.weights, {} if loaded is None else loaded
    key = (asked.kind, asked.images, asked.half_life_images)
    if key not in loaded:
        loaded.clear()
        trained, images, error = stored_weights(workdir, system, start, *key)
        average = asked.half_life_images or system.config.ema.half_life_images
        known = {"kind": asked.kind, "images": images,
                 **({"half_life_images": average, "error": error} if asked.kind == "ema" else {})}
        params = system.whole(trained, frozen)
        loaded[key] = params, {**known, "hash": hash_of((params, frozen))}
    params, known = loaded[key]
    return of_system(system, params, frozen, protocol, known), params


def on_one_device() -> Layout:
    """The layout of a process whose networks lie on its first device, to be copied to the others."""
    return make_layout({"data": 1}, jax.local_devices()[:1])


def heldout_metrics(system: System, params, frozen) -> dict[str, Callable[..., dict[str, Any]]]:
    """The metrics of a run's held-out images: "heldout", what training measures; "likelihood" of their latents."""
    parts = []

    def opened():
        if not parts:
            data, options = system.config.data, system.config.evaluation
            bad = Bad(data.bad_share)
            images = open_heldout(data, bad)
            images = images.take(range(min(len(images), options.max_images))).whole(bad)
            check_enough(system, images)
            parts.extend(heldout_parts(system, frozen, images))
        return parts

    def heldout() -> dict[str, Any]:
        figures = heldout_figures(system, params, lambda: frozen, opened())
        return {"heldout_images": sum(len(part.images) for part in opened()), **figures}

    def of_latents(steps: int = 64, probes: int = 1) -> dict[str, Any]:
        if system.config.data.buckets:
            raise ConfigError("protocol.metrics: 'likelihood' is of images of one size, and this run has "
                              f"config.data.buckets={system.config.data.buckets}; leave it out")
        if min(steps, probes) < 1:
            raise ConfigError(f"protocol.metrics: 'likelihood' takes at least 1 step and 1 probe, not {steps} and "
                              f"{probes}")
        return likelihood(system, params, *opened()[0].arrays[:3], steps, probes)

    return {"heldout": heldout, "likelihood": of_latents}
