"""A protocol: all that a score depends on, as a file; and an evaluation, what came of it with what the run filled in.

A protocol is what its author states. What he leaves open (a null) the run fills in: how it draws by default, the hashes
of weights, feature network and reference, the versions. An evaluation holds both, whole, and the hash of both: any
value that is changed changes it.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lgm import registry
from lgm.bounds import Count, Finite, Positive, Several, Share, Whole, Within
from lgm.config import sections
from lgm.evaluate.statistics import MOST
from lgm.files import place, write_json
from lgm.parsing import ConfigError, as_dict, parse
from lgm.pictures import LARGEST_SIDE, check_seed
from lgm.untrusted import read_object

VERSION = 1  # of the file's form
MOST_BATCH, MOST_DRAWS = 4096, 100_000  # images of a program, parts that intervals are of
OWN = ("train", "heldout")  # sources that are a run's own images
OF_RUNS = ("heldout", "likelihood")  # metrics of a run's held-out images, of which nothing is drawn
Filter = Literal["lanczos", "bicubic", "bilinear", "box"]


@dataclasses.dataclass(frozen=True)
class Prompts:
    """What is drawn: `texts` (a class-conditional model's are its classes, "class 207"), or the captions of the images
    of `source` that match `where`, as config.data has them, or "train" or "heldout", a run's own; by default those of
    the reference."""

    texts: tuple[str, ...] = ()
    source: str | None = None
    where: dict[str, Any] = dataclasses.field(default_factory=dict)
    caption: str = "text"

    def __post_init__(self):
        if self.texts and self.source is not None:
            raise ConfigError("protocol.prompts has texts and a source; give one of them")
        if empty := [text for text in self.texts if not text.strip()]:
            raise ConfigError(f"protocol.prompts.texts holds {empty[0]!r}, which is empty; give a caption")


@dataclasses.dataclass(frozen=True)
class Drawing:
    """How images are drawn, as config.sampling says it; null is the run's own or the folder's scheduler's."""

    solver: str | dict[str, Any] | None = None
    steps: Count | None = None
    guidance: Finite | None = None
    rule: str | dict[str, Any] | None = None
    interval: tuple[Share, Share] | None = None
    negative: str | None = None
    schedule: dict[str, Any] | None = None
    clip: Positive | None = None

    @property
    def changes(self) -> dict[str, Any]:
        """What is stated, as fields of a config's `sampling`."""
        return {field.name: value for field in dataclasses.fields(self)
                if (value := getattr(self, field.name)) is not None}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Weights:
    """Of a run: "ema" or "raw" weights, those after `images` images if that is given, averaged with `half_life_images`
    where that is not the run's own. `hash` is what they must be, if anything."""

    kind: Literal["ema", "raw"] = "ema"
    images: Whole | None = None
    half_life_images: Count | None = None
    hash: str | None = None

    def __post_init__(self):
        if self.kind == "raw" and self.half_life_images is not None:
            raise ConfigError(f"protocol.weights.half_life_images={self.half_life_images} is of averaged weights, and "
                              "kind='raw' are none; leave one of them out")


@dataclasses.dataclass(frozen=True)
class Network:
    """The feature network: a name or a path that `evaluate.features` loads, "autoencoder", the run's own, or
    "autoencoder:NAME", one that comes with lgm or a folder's; `hash` is what it must be, if anything."""

    name: str = "autoencoder"
    hash: str | None = None


@dataclasses.dataclass(frozen=True)
class Reference:
    """What drawn images are held to: those of `source` that match `where` (as `Prompts`), or a file of statistics of
    the feature network; `hash` is what it must be, if anything."""

    source: str = "heldout"
    where: dict[str, Any] = dataclasses.field(default_factory=dict)
    hash: str | None = None


@dataclasses.dataclass(frozen=True)
class Intervals:
    """How the metrics' intervals are made (`evaluate.intervals`): `draws` parts of the images, of the `seed`, and the
    share `level` of values that an interval holds."""

    draws: Several = 100
    seed: Whole = 0
    level: Within = 0.95


@dataclasses.dataclass(frozen=True)
class Protocol:
    """All that a score depends on and that can be stated beforehand.

    metrics: names, or sections of a name and options. system: the denoiser's family, or a folder's pipeline, that it
    is for. count: images of each of the `seeds`; image i of a seed is of prompt i (those that are too many are left
    out evenly, those too few begin again), and all that is drawn at random for it is a function of (seed, i). size:
    (height, width) in pixels, the model's own by default. resize: the filter that brings reference pictures to it,
    which are cut in the middle. batch: images that one program draws at a time on one device: it may change the last
    digit.
    """

    metrics: tuple[Any, ...]
    version: Literal[1] = VERSION
    name: str = ""
    system: str | None = None
    prompts: Prompts = Prompts()
    count: Count | None = None
    seeds: tuple[int, ...] = (0,)
    size: tuple[Count, Count] | None = None
    resize: Filter = "lanczos"
    batch: Count = 16
    drawing: Drawing = Drawing()
    weights: Weights = Weights()
    features: Network = Network()
    reference: Reference = Reference()
    intervals: Intervals = Intervals()

    def __post_init__(self):
        if not self.metrics:
            raise ConfigError("protocol.metrics is empty; name what is measured, as ['frechet', 'kernel']")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"protocol.seeds={list(self.seeds)} must be one or more that differ, as [0, 1]")
        for seed in self.seeds:
            check_seed(seed)
        for name, value, most in (("count", self.count or 1, MOST // len(self.seeds)),
                                  ("batch", self.batch, MOST_BATCH), ("size", max(self.size or (1, 1)), LARGEST_SIDE),
                                  ("intervals.draws", self.intervals.draws, MOST_DRAWS)):
            if value > most:
                raise ConfigError(f"protocol.{name}: {value:,} is more than {most:,}, which is the most")
        names = [metric["name"] for metric in self.asked]
        if len(set(names)) < len(names):
            raise ConfigError(f"protocol.metrics names {max(names, key=names.count)} twice; once will do")

    @property
    def asked(self) -> list[dict[str, Any]]:
        """The metrics as sections {"name": ..., **options}."""
        for metric in self.metrics:
            if not isinstance(metric, (str, Mapping)):
                raise ConfigError(f"protocol.metrics holds {metric!r}; give names, or sections of a name and options")
        return [registry.section(metric, "protocol.metrics") for metric in self.metrics]

    @property
    def draws(self) -> bool:
        """Whether any of its metrics is of drawn images."""
        return any(metric["name"] not in OF_RUNS for metric in self.asked)


def read_protocol(path: str | Path) -> Protocol:
    """The protocol that a file holds, or that an evaluation was made by. Raises ConfigError, one line."""
    try:
        values = read_object(place(path, "--protocol"))
    except (OSError, ValueError) as error:
        words = error if isinstance(error, ValueError) else f"{path} cannot be read ({error.strerror or error})"
        raise ConfigError(f"--protocol: {words}; give a protocol's JSON file, or an evaluation.json") from None
    return parse_protocol(values.get("protocol", values))


def parse_protocol(values: Any) -> Protocol:
    """A protocol from plain values. Raises ConfigError, one line that names the key, the value and what would do."""
    if isinstance(values, Mapping) and values.get("version", VERSION) != VERSION:
        raise ConfigError(f"protocol.version={values['version']!r} is of another lgm; this one reads {VERSION}")
    return parse(Protocol, values, "protocol")


def digest(*values: Any) -> str:
    """The SHA-256 of plain values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, allow_nan=False).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Found:
    """What a run filled in: its system, how images were drawn in full, the size, how many of which prompts (`hash` of
    the list), and the facts of weights, feature network, reference and versions, each with its hash."""

    system: str
    size: tuple[int, int] | None
    drawing: dict[str, Any] | None
    prompts: dict[str, Any] | None
    weights: dict[str, Any]
    features: dict[str, Any] | None
    reference: dict[str, Any] | None
    versions: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A score with all that it depends on: what was stated, what was found, the metrics, and their `intervals`. `drawn`
    and `made_on`, the hash of the pixels and the devices, tell of the run and are no part of the hash: they follow from
    it."""

    protocol: Protocol
    found: Found
    metrics: dict[str, Any]
    drawn: dict[str, Any]
    made_on: dict[str, Any]
    intervals: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)

    @property
    def hash(self) -> str:
        """Of protocol and findings, all of them."""
        return digest(as_dict(self.protocol), as_dict(self.found))

    def as_dict(self) -> dict[str, Any]:
        """What evaluation.json holds."""
        stated = as_dict(self.protocol)
        return {"hash": self.hash, "protocol_hash": digest(stated), "protocol": stated, "found": as_dict(self.found),
                "metrics": self.metrics, "intervals": self.intervals, "drawn": self.drawn,
                "made_on": self.made_on}  # fmt: skip

    def write(self, path: str | Path) -> None:
        """Write evaluation.json."""
        write_json(path, self.as_dict())


def read_evaluation(path: str | Path) -> Evaluation:
    """An evaluation from its file. Raises ConfigError, one line, for what is none, and for one that was changed by hand
    after it was made."""
    try:
        values = read_object(place(path))
    except (OSError, ValueError) as error:
        words = error if isinstance(error, ValueError) else f"{path} cannot be read ({error.strerror or error})"
        raise ConfigError(f"{words}; give an evaluation.json") from None
    if missing := [key for key in ("hash", "protocol", "found", "metrics") if key not in values]:
        raise ConfigError(f"{path} is no evaluation: it has no {missing[0]}; give what `lgm evaluate` wrote")
    if digest(values["protocol"], values["found"]) != values["hash"]:
        raise ConfigError(f"{path} was changed after it was made: its hash is not that of its protocol and findings; "
                          "evaluate again")
    return Evaluation(parse_protocol(values["protocol"]), parse(Found, values["found"], "found"), values["metrics"],
                      values.get("drawn", {}), values.get("made_on", {}), values.get("intervals", {}))


def agreed_hash(what: str, stated: str | None, found: str) -> None:
    """Raise ConfigError, one line, where a stated hash is not what was found; its first letters will do."""
    if stated is not None and not (stated and found.startswith(stated)):
        raise ConfigError(f"protocol.{what}.hash={stated} is not that of what was found, {found[:16]}; leave it out "
                          "to measure by this, or give what the protocol was made for")


def check_system(protocol: Protocol, system: str) -> None:
    """Raise ConfigError, one line, where a protocol is for another system."""
    if protocol.system is not None and protocol.system != system:
        raise ConfigError(f"protocol.system={protocol.system!r} is not what is measured, {system!r}; take its own "
                          "protocol, or leave system out where the same may be asked of both")


def sampling_of(values: sections.Sampling) -> dict[str, Any]:
    """The fields of a config's `sampling` that say how images are drawn."""
    known = {field.name for field in dataclasses.fields(Drawing)}
    return {key: value for key, value in as_dict(values).items() if key in known}
