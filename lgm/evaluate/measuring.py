"""From a protocol and what draws to an evaluation; the same to the last digit on any number of devices and processes.

Images are rounded to 8 bits where they are drawn, each block of them by one program on one device, their features are
computed in batches of one size a device, and sums over images are float64 in the order of the images: nothing depends
on how many devices there are, or which of them did what. It does depend on what they are: another kind of device, or
another version of a compiler, rounds products otherwise; both stand in the evaluation.
"""

import dataclasses
import importlib.metadata
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lgm import __version__
from lgm.config import sections
from lgm.evaluate.blocks import in_blocks
from lgm.evaluate.drawers import Drawer, autoencoder_features, rows_of
from lgm.evaluate.features import BATCH, Features, load_features
from lgm.evaluate.intervals import intervals_of
from lgm.evaluate.protocol import (
    OF_RUNS,
    Evaluation,
    Found,
    Protocol,
    agreed_hash,
    check_system,
    digest,
)
from lgm.evaluate.references import Pictures, is_statistics, open_set, pixel_hashes
from lgm.evaluate.scores import METRICS, Measured, check, score
from lgm.evaluate.statistics import Statistics, of_features, read_statistics
from lgm.files import local, sha256
from lgm.parsing import ConfigError, as_dict
from lgm.registry import make
from lgm.weights import load_autoencoder

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "scipy", "pillow")
Keep = Callable[[int, int, np.ndarray], None]  # (seed, number, image uint8 [H, W, 3])


def evaluate(protocol: Protocol, drawer: Drawer, data: sections.Data | None = None,
             of_run: Mapping[str, Callable] | None = None, keep: Keep | None = None,
             known: dict | None = None) -> Evaluation:  # fmt: skip
    """Draw what a protocol asks for and measure it. All processes must ask, and each gets all of it.

    data: of a run's config, whose own images "train" and "heldout" are. of_run: metrics of a run's held-out images,
    each a function of its options. keep: is given every image, in the process that drew it. known: feature networks
    and references that are there already, for several protocols in turn; new ones are put there.

    Raises ConfigError or ValueError, one line, before anything is drawn where that can be seen.
    """
    of_run = of_run or {}
    check_metrics(protocol, of_run)
    check_system(protocol, drawer.system)
    agreed_hash("weights", protocol.weights.hash, drawer.weights["hash"])
    found = {"prompts": None, "features": None, "reference": None, "drawing": None, "size": None}
    metrics, intervals, told = {}, {}, {}
    if protocol.draws:
        captions, count = captions_of(protocol, data)
        check(of_images(protocol), count * len(protocol.seeds))
        known = {} if known is None else known
        key = (protocol.features.name, drawer.size)
        network = known[key] = known.get(key) or network_of(protocol, drawer.own, drawer.size)
        key = (network, drawer.size, protocol.resize, digest(as_dict(protocol.reference)))
        against = known[key] = known.get(key) or reference_of(protocol, network, drawer.size, data)
        check(of_images(protocol), count * len(protocol.seeds), against)
        prompts = [captions[row] for row in rows_of(len(captions), count)]
        parts = [_drawn(drawer, network, protocol, seed, prompts, keep) for seed in protocol.seeds]
        features, hashes = (np.concatenate(part) for part in zip(*parts, strict=True))
        found |= {"prompts": {"count": len(captions), "hash": digest(captions)}, "drawing": drawer.drawing,
                  "size": drawer.size} | _facts(network, against)  # fmt: skip
        told = {"images": len(hashes), "hash": digest(hashes.tobytes().hex()), "evaluations": drawer.evaluations()}
        metrics, intervals = _metrics(protocol, Measured(network, features, prompts * len(protocol.seeds)), against)
    for metric in protocol.asked:
        if (name := metric.pop("name")) in of_run:
            metrics |= make("metric", of_run, name, metric)
    found = Found(system=drawer.system, weights=drawer.weights, versions=versions(), **found)
    made = made_on() | ({"split": True} if drawer.split else {})
    return Evaluation(protocol, found, metrics, told, made, intervals)


def evaluate_pictures(protocol: Protocol, pictures: Pictures, source: str, captions: Sequence[str]) -> Evaluation:
    """Measure pictures that were made elsewhere, against a protocol's reference; of what it says of drawing nothing is
    used. Raises as `evaluate` does."""
    check_metrics(protocol, {})
    check(protocol.asked, len(pictures))
    network = network_of(protocol, None, pictures.size)
    against = reference_of(protocol, network, pictures.size, None)
    check(protocol.asked, len(pictures), against)
    if any(METRICS[metric["name"]].asks == "text" for metric in protocol.asked) and not all(captions):
        bare = pictures.images.name(list(map(bool, captions)).index(False))
        raise ConfigError(f"{bare} has no caption, which CLIP score and retrieval need of each; leave them out")
    features, hashes = _of_pictures(network, pictures)
    told = {"images": len(pictures), "hash": digest(hashes.tobytes().hex())}
    found = Found(system=source, size=pictures.size, drawing=None, prompts=None,
                  weights={"kind": "pictures", "hash": told["hash"]}, versions=versions(), **_facts(network, against))
    metrics, intervals = _metrics(protocol, Measured(network, features, list(captions)), against)
    return Evaluation(protocol, found, metrics, told, made_on(), intervals)


def statistics_of(protocol: Protocol, pictures: Pictures) -> Statistics:
    """Mean and covariance of pictures' features by a protocol's network, to be the reference of others. Raises as
    `evaluate` does."""
    network = network_of(protocol, None, pictures.size)
    found = of_features(_of_pictures(network, pictures)[0], network.hash, network.name)
    by = "" if protocol.size is None else f" {protocol.resize}"
    return dataclasses.replace(found, pictures=f"{pictures.size[0]}x{pictures.size[1]}{by}")


def check_metrics(protocol: Protocol, of_run: Mapping[str, Any]) -> None:
    """Raise ConfigError, one line, for metrics that there are not or that are of runs alone."""
    for metric in protocol.asked:
        if metric["name"] in OF_RUNS and metric["name"] not in of_run:
            raise ConfigError(f"protocol.metrics: {metric['name']!r} is of a run's held-out images; leave it out, or "
                              "give --workdir=RUN (`lgm import` makes a run of a folder of diffusers)")
    check(of_images(protocol))


def of_images(protocol: Protocol) -> list[dict[str, Any]]:
    """The metrics that are of drawn images."""
    return [metric for metric in protocol.asked if metric["name"] not in OF_RUNS]


def captions_of(protocol: Protocol, data: sections.Data | None) -> tuple[list[str], int]:
    """(the captions that are drawn from, images of a seed)."""
    asked = protocol.prompts
    if asked.texts:
        captions = list(asked.texts)
    else:
        source, where = (protocol.reference.source, protocol.reference.where) if asked.source is None else (
            asked.source, asked.where)  # fmt: skip
        if is_statistics(source):
            raise ConfigError(f"protocol.prompts is empty and the reference, {source}, is a file of statistics, which "
                              "has no captions; give prompts.texts or prompts.source")
        captions = open_set(source, where, asked.caption, data).captions
        if not any(captions):
            raise ConfigError(f"protocol.prompts: the images of {source} have no captions; give prompts.texts")
    return captions, protocol.count or len(captions)


def network_of(protocol: Protocol, own: Callable[[], Features] | None, size: tuple[int, int]) -> Features:
    """A protocol's feature network, for images of that size where it is an autoencoder."""
    kind, _, name = protocol.features.name.partition(":")
    if kind != "autoencoder":
        network = load_features(protocol.features.name)
    elif name:
        network = autoencoder_features(f"autoencoder:{Path(name).name}", *load_autoencoder(name), min(size))
    elif own is not None:
        network = own()
    else:
        raise ConfigError("the features 'autoencoder' are a run's own; give 'autoencoder:emoji64', 'autoencoder:FOLDER'"
                          " or another network for pictures")
    agreed_hash("features", protocol.features.hash, network.hash)
    return network


def reference_of(protocol: Protocol, network: Features, size: tuple[int, int],
                 data: sections.Data | None) -> Measured:
    """The features or the statistics that drawn images are held to, with their hash."""
    source = protocol.reference.source
    if is_statistics(source):
        statistics = read_statistics(source)
        check_statistics(statistics, network, source, size, protocol.resize)
        found = Measured(network, None, [], statistics, sha256(local(source)))
    else:
        images = open_set(source, protocol.reference.where, None, data)
        pictures = Pictures(images, size, protocol.resize)
        features, hashes = _of_pictures(network, pictures)
        found = Measured(network, features, images.captions, None, digest(hashes.tobytes().hex()))
    agreed_hash("reference", protocol.reference.hash, found.hash)
    return found


def check_statistics(statistics: Statistics, network: Features, source: str, size: tuple[int, int],
                     resize: str) -> None:  # fmt: skip
    """Raise ConfigError, one line, for statistics of another network's features, or of pictures at another size."""
    if statistics.features and statistics.features != network.hash:
        raise ConfigError(f"{source} holds statistics of {statistics.name} ({statistics.features}), and the features "
                          f"are {network.name}'s ({network.hash}); give statistics of these, or the network of those")
    if statistics.dim != network.dim:
        raise ConfigError(f"{source} holds statistics of {statistics.dim} features, and {network.name} gives "
                          f"{network.dim}; give statistics of this network")
    at, _, by = statistics.pictures.partition(" ")
    if at and (at != f"{size[0]}x{size[1]}" or by and by != resize):
        raise ConfigError(f"{source} holds statistics of pictures at {statistics.pictures}, and what is measured is at "
                          f"{size[0]}x{size[1]}{f' {resize}' if by else ''}; measure at one size, by one filter")


def _drawn(drawer: Drawer, network: Features, protocol: Protocol, seed: int, prompts: list[str],
           keep: Keep | None) -> list[np.ndarray]:
    """[features [N, D], hashes [N, 32]] of a seed's images."""
    batch = protocol.batch
    share = len(prompts) if drawer.split else -(-len(prompts) // jax.device_count())
    size = -(-min(share, BATCH) // batch) * batch  # what is in a block does not matter to its images, but how fast

    def act(device, rows: np.ndarray):
        images = np.concatenate([drawer.draw(device, part, [prompts[row] for row in part], seed)
                                 for part in np.split(rows, size // batch)])
        if keep is not None:
            for row, image in dict(zip(rows.tolist(), images, strict=True)).items():
                keep(seed, row, image)
        return network.features(images, device and [device]), pixel_hashes(images)

    return in_blocks(act, len(prompts), size, drawer.split)


def _of_pictures(network: Features, pictures: Pictures) -> list[np.ndarray]:
    """[features [N, D], hashes [N, 32]] of pictures."""

    def act(device, rows: np.ndarray):
        images = pictures.read(rows)
        return network.features(images, [device]), pixel_hashes(images)

    return in_blocks(act, len(pictures), BATCH)


def _facts(network: Features, against: Measured) -> dict[str, Any]:
    count = against.given.count if against.features is None else len(against.features)
    return {"features": {"name": network.name, "dim": network.dim, "hash": network.hash},
            "reference": {"count": count, "hash": against.hash}}  # fmt: skip


def _metrics(protocol: Protocol, drawn: Measured, against: Measured) -> tuple[dict[str, Any], dict[str, Any]]:
    """(values, intervals) of the metrics of images."""
    found, around = {}, {}
    for metric in of_images(protocol):
        values = score(metric, drawn, against)
        found |= values
        around |= intervals_of(metric, values, drawn, against, protocol.intervals)
    return found, around


def versions() -> dict[str, str]:
    """Of all that computes a score."""
    return {"lgm": __version__, "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES}}  # fmt: skip


def made_on() -> dict[str, Any]:
    """The devices."""
    return {"kind": jax.devices()[0].device_kind, "platform": jax.default_backend(), "devices": jax.device_count(),
            "processes": jax.process_count()}  # fmt: skip
