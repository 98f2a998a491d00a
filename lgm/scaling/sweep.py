"""A sweep: which runs a plan over architecture, size, data, objective, seed and learning rate stands for.

A sweep's config file has `get_config() -> ConfigDict` of the fields of `Sweep`. It stands for training runs, each of
which is one trunk at a constant learning rate with a cooldown for every amount of data; a trunk and one of its
cooldowns are together an ordinary training config with the schedule "wsd", so that `lgm train` gives the same run.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from lgm import config as schema
from lgm.config import Config
from lgm.config.imports import load_imports
from lgm.config.reading import read_config_file
from lgm.config.sections import need
from lgm.models import build
from lgm.models.flops import count_flops
from lgm.parsing import ConfigError, as_dict, parse
from lgm.planning.abstract import abstract_system
from lgm.scaling import ladders
from lgm.scaling.compute import Machine
from lgm.train.optimizer import decay_start
from lgm.train.work import frozen_flops
from lgm.weights import autoencoder_of

OURS = {"model": "architectures", "process": "objectives", "loss": "objectives", "total_images": "images or budgets",
        "seed": "seeds"}  # keys of a training config that a sweep sets, and by what
OPTIMIZERS = {"lr": "architectures", "schedule": "cooldown", "decay_images": "cooldown", "mup_base": "mup_size"}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A ladder's sizes and their learning rates.

    sizes: of `ladders.shape(family, size, **shape)`. lr: a number, a list that is tried at every size, or a dict of
    size: rate. mup_size: the size that `lr` belongs to; the others learn under muP. together: how many runs of one size
    and objective share a program, and how: "vmap" steps them all at once, "turns" one after another. base: keys of the
    sweep's base that are others for this architecture, as `text` of a class-conditional one beside text models. seeds:
    of a size, where they are others than the sweep's: {10: (0, 1)} trains one size twice, which tells the noise.
    """

    family: str
    sizes: tuple[int, ...]
    lr: Any
    shape: dict[str, Any] = dataclasses.field(default_factory=dict)
    mup_size: int | None = None
    together: int = 1
    how: Literal["vmap", "turns"] = "vmap"
    base: dict[str, Any] = dataclasses.field(default_factory=dict)
    seeds: dict[Any, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Objective:
    """A process, the loss under it and how to draw with it; `lr_factor` times an architecture's rates."""

    process: dict[str, Any]
    loss: dict[str, Any]
    sampling: dict[str, Any] = dataclasses.field(default_factory=dict)
    lr_factor: float = 1.0


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A plan of runs.

    Attributes:
      base: what all training configs share. architectures, objectives: by name; every pair is a family of the fit.
      images: of every size (a grid), or budgets: training FLOPs, each spent by every size that needs between min_images
        and max_images for it (an isoFLOP plan). guess: (k, a): with it, only sizes within a factor `reach` of k FLOPs^a
        parameters, about where the lowest loss is expected, spend a budget.
      also: further runs, dict(architecture=..., objective=..., size=..., images=...) each, for every seed.
      cooldown: the part of its images that a run lowers its rate over.
      stop_above: `config.optimizer.stop_above` of every run whose base says nothing: when a run has diverged.
      near_duplicates: "refuse" trains nothing where held-out images are nearly training images or nobody looked, since
        there are too many; "keep" calls them held out all the same.
      machine: what the runs are planned for. latent, text_tokens: where no autoencoder or encoder can be asked.
    """

    name: str
    base: dict[str, Any]
    architectures: dict[str, Any]
    objectives: dict[str, Any]
    images: tuple[int, ...] = ()
    budgets: tuple[float, ...] = ()
    min_images: int = 1
    max_images: int | None = None
    guess: tuple[float, float] | None = None
    reach: float = 4.0
    also: tuple[dict[str, Any], ...] = ()
    seeds: tuple[int, ...] = (0,)
    cooldown: float = 0.2
    stop_above: float | None = 2.0
    near_duplicates: Literal["refuse", "keep"] = "refuse"
    machine: Machine | None = None
    latent: int | None = None
    text_tokens: int = 77


@dataclasses.dataclass(frozen=True)
class Shape:
    """What one size of an architecture has and costs: exact parameters, and FLOPs an image.

    flops: of training, text included; what budgets and fits are of. frozen: of what each step computes beside that
    without training it, which hours are of too.
    """

    params: int
    non_embedding: int
    trainable: int
    flops: float
    frozen: float = 0.0


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run: a trunk, and a config for each amount of data, ascending. `group`: runs of one program."""

    name: str
    group: str
    architecture: str
    objective: str
    size: int
    shape: Shape
    configs: tuple[Config, ...]

    @property
    def family(self) -> str:
        """The name under which `lgm fit` fits it."""
        return f"{self.architecture} {self.objective}"

    @property
    def seed(self) -> int:
        return self.configs[0].seed

    @property
    def lr(self) -> float:
        return self.configs[0].optimizer.lr

    @property
    def images(self) -> tuple[int, ...]:
        """Images seen by each config."""
        return tuple(config.total_images for config in self.configs)

    @property
    def flops(self) -> float:
        """FLOPs of the trunk and all cooldowns, frozen encoders included."""
        starts = [decay_start(config) * config.batch_size for config in self.configs]
        cooled = sum(images - start for images, start in zip(self.images, starts, strict=True))
        return (self.shape.flops + self.shape.frozen) * (starts[-1] + cooled)


def load(spec: str, overrides: Sequence[tuple[str, str]] = ()) -> Sweep:
    """The sweep of a file `path.py` or `path.py:arg`. Raises ConfigError, one line, for what cannot be one."""
    return parse_sweep(read_config_file(spec, overrides))


def parse_sweep(values: Mapping[str, Any]) -> Sweep:
    """The sweep of a file's values. Raises ConfigError, one line."""
    sweep = parse(Sweep, values, "config")
    load_imports(sweep.base)
    tables = {}
    for table, kind in (("architectures", Architecture), ("objectives", Objective)):
        parts = getattr(sweep, table)
        for name, part in parts.items():
            if not isinstance(part, Mapping):
                raise ConfigError(f"config.{table}.{name}={part!r} has the wrong type; give a dict")
        tables[table] = {name: parse(kind, part, f"config.{table}.{name}") for name, part in parts.items()}
    sweep = dataclasses.replace(sweep, **tables)
    _check(sweep)
    return sweep


def expand(sweep: Sweep) -> list[Run]:
    """All runs, those of one program side by side, small before large."""
    runs = []
    names = list(sweep.architectures)
    sizes = lambda name: [*sweep.architectures[name].sizes, *sorted({one["size"] for one in sweep.also if one[
        "architecture"] == name} - set(sweep.architectures[name].sizes))]
    places = [(i, size, name) for name in names for i, size in enumerate(sizes(name))]
    for (_, size, name), objective in itertools.product(sorted(places, key=lambda p: (p[0], names.index(p[2]))),
                                                         sweep.objectives):
        runs += _runs(sweep, name, objective, size)
    if not runs:
        raise ConfigError("config.budgets give no size between min_images and max_images; widen them")
    return runs


def _runs(sweep: Sweep, name: str, objective: str, size: int) -> list[Run]:
    architecture, aim = sweep.architectures[name], sweep.objectives[objective]
    model = _model(name, architecture, size)
    base = {key: value for key, value in (sweep.base | architecture.base).items() if value is not None}
    values = dict(base) | {
        "name": f"{sweep.name}-{name}-{objective}-{size}", "model": model, "process": aim.process, "loss": aim.loss,
        "sampling": {**base.get("sampling", {}), **aim.sampling},
    }
    if architecture.mup_size is not None:
        at_base = _model(name, architecture, architecture.mup_size)
        values["optimizer"] = base.get("optimizer", {}) | {"mup_base": {k: at_base[k] for k in at_base
                                                                         if k != "family" and at_base[k] != model[k]}}
    batch = base.get("batch_size", Config.batch_size)
    warmup = base.get("optimizer", {}).get("warmup_images", 0)
    first = schema.from_dict(values | {"total_images": batch + warmup})
    need(first.data.buckets is None or architecture.together == 1, f"config.architectures.{name}.together="
         f"{architecture.together}: images of several sizes (config.base.data.buckets={first.data.buckets}) are not "
         "trained on by runs that share a program; set it to 1")
    shape = measure(sweep, first, architecture.together > 1)
    planned = _amounts(sweep, shape, batch) if size in architecture.sizes else []
    more = [one["images"] for one in sweep.also
            if (one["architecture"], one["objective"], one["size"]) == (name, objective, size)]
    amounts = sorted({*planned, *(whole(images, batch) for images in more)})
    if not amounts:
        return []
    runs = []
    seeds = {str(of): own for of, own in architecture.seeds.items()}.get(str(size), sweep.seeds)
    for seed, rate in itertools.product(seeds, _rates(architecture.lr, name, size)):
        lr = rate * aim.lr_factor
        configs = []
        for images in amounts:
            optimizer = {"stop_above": sweep.stop_above} | values.get("optimizer", {}) | {
                "lr": lr, "schedule": "wsd", "decay_images": max(round(sweep.cooldown * images), batch)}
            configs.append(schema.from_dict(values | {"total_images": images, "seed": seed, "optimizer": optimizer}))
            warm = round(configs[-1].optimizer.warmup_images / batch)
            if decay_start(configs[-1]) < max(warm, 1):
                raise ConfigError(f"config.images: {images} leave no trunk between config.base.optimizer."
                                  f"warmup_images={configs[-1].optimizer.warmup_images} and a cooldown of "
                                  f"{sweep.cooldown:g} of them; give more images or a shorter warm-up")
        group = f"{name}-{objective}-{size}"
        runs.append(Run(f"{group}-seed{seed}-lr{lr:.4g}", group, name, objective, size, shape, tuple(configs)))
    return runs


def _model(name: str, architecture: Architecture, size: int) -> dict[str, Any]:
    try:
        config = ladders.shape(architecture.family, size, **architecture.shape)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"config.architectures.{name}: size {size}: {error}") from None
    return {"family": architecture.family, **as_dict(config)}


def _rates(lr: Any, name: str, size: int) -> tuple[float, ...]:
    """The learning rates to try at a size."""
    where = f"config.architectures.{name}.lr"
    if isinstance(lr, Mapping):
        by_size = {str(key): value for key, value in lr.items()}
        if str(size) not in by_size:
            raise ConfigError(f"{where} has no rate for size {size}; there are {', '.join(sorted(by_size))}")
        lr = by_size[str(size)]
    rates = lr if isinstance(lr, (list, tuple)) else (lr,)
    if not all(isinstance(rate, (int, float)) and 0 < rate < math.inf for rate in rates):
        raise ConfigError(f"{where}={lr!r} must be above 0: a number, several to try, or a dict of those by size")
    return tuple(map(float, rates))


def _amounts(sweep: Sweep, shape: Shape, batch: int) -> list[int]:
    """Images of each cooldown, ascending: whole batches."""
    off = lambda budget: abs(math.log(shape.params / expected(sweep, budget)))
    near = lambda budget: sweep.guess is None or off(budget) <= math.log(sweep.reach)
    wanted = sweep.images or [budget / shape.flops for budget in sweep.budgets if near(budget)]
    high = sweep.max_images or float("inf")
    kept = [images for images in wanted if sweep.images or sweep.min_images <= images <= high]
    return sorted({whole(images, batch) for images in kept})


def whole(images: float, batch: int) -> int:
    """The nearest number of whole batches."""
    return max(round(images / batch), 1) * batch


def expected(sweep: Sweep, budget: float) -> float:
    """Parameters about which a budget's lowest loss is looked for."""
    return sweep.guess[0] * budget ** sweep.guess[1]


def thin(sweep: Sweep, runs: Sequence[Run]) -> list[str]:
    """Budgets of an isoFLOP plan that cannot show a minimum, each in one line: a parabola needs four sizes, and two on
    either side of where the lowest loss is expected."""
    lines = []
    families = dict.fromkeys(run.family for run in runs)
    for family, budget in itertools.product(families, sweep.budgets):
        sizes = sorted({run.shape.params for run in runs if run.family == family and any(
            abs(images * run.shape.flops / budget - 1) < 0.05 for images in run.images)})
        if len(sizes) < 4:
            lines.append(f"{family}: {budget:g} FLOPs are spent by {len(sizes)} size{'s' * (len(sizes) != 1)}; a "
                         "parabola needs 4")
        elif sweep.guess:
            below = sum(size < expected(sweep, budget) for size in sizes)
            if min(below, len(sizes) - below) < 2:
                lines.append(f"{family}: {budget:g} FLOPs: {below} sizes lie below the expected optimum of "
                             f"{expected(sweep, budget):.3g} parameters and {len(sizes) - below} above; give two on "
                             "either side")
    return lines


def measure(sweep: Sweep, config: Config, together: bool = False) -> Shape:
    """Exact parameters, and FLOPs counted in the gradients of denoiser and trained text encoder; nothing is run.

    Runs that are trained `together` read latents that were encoded before.
    """
    factor = 1 if sweep.latent else autoencoder_of(config.autoencoder).config.factor
    latent = (sweep.latent,) * 2 if sweep.latent else tuple(side // factor for side in config.data.size)
    encoder = config.text.encoder if config.text else None
    tokens = encoder.max_length if encoder else sweep.text_tokens
    rung = _rung(config.model, latent, tokens)
    text_params, text_flops = _text(encoder, tokens) if encoder else (0, 0.0)
    if together:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, latents="memory"))
    encodes = config.data.latents == "step" or config.text and config.text.folder
    return Shape(rung.params, rung.non_embedding, rung.params + text_params, rung.training + text_flops,
                 frozen_flops(*abstract_system(config)[:2]) if encodes else 0.0)


_rung = functools.lru_cache(maxsize=256)(ladders.measure)


@functools.lru_cache(maxsize=16)
def _text(config, tokens: int) -> tuple[int, float]:
    """Parameters and training FLOPs of one caption through a text encoder."""
    model = build(config)
    ids, mask = (jax.ShapeDtypeStruct((1, tokens), dtype) for dtype in (jnp.int32, jnp.bool_))
    loss = lambda params, *args: sum(jnp.sum(part) for part in model.apply(params, *args))
    return model.count(), count_flops(jax.grad(loss), model.abstract(), ids, mask)


def _check(sweep: Sweep) -> None:
    """Plans that cannot be, each in one line."""
    for one in sweep.also:
        need(set(one) == {"architecture", "objective", "size", "images"} and one["architecture"] in sweep.architectures
             and one["objective"] in sweep.objectives
             and all(isinstance(one[key], int) and one[key] > 0 for key in ("size", "images")),
             f"config.also: {one!r} should be dict(architecture=..., objective=..., size=..., images=...), of what the "
             "plan has")
    need(bool(sweep.images) != bool(sweep.budgets),
         "config.images and config.budgets: give one of them, a grid's images or an isoFLOP plan's FLOPs")
    for name in ("architectures", "objectives", "seeds"):
        need(getattr(sweep, name), f"config.{name} is empty; a sweep needs at least one")
    need(not sweep.guess or (sweep.budgets and min(sweep.guess) > 0 and sweep.reach > 1),
         f"config.guess={sweep.guess}, config.reach={sweep.reach}: budgets are spent by sizes near k FLOPs^a: give "
         "config.budgets, positive k and a, and a reach above 1")
    for name in ("images", "budgets", "seeds"):
        values = tuple(getattr(sweep, name))
        need(len(set(values)) == len(values) and all(value >= 0 for value in values),
             f"config.{name}={values} must be different numbers, none negative")
    need(0 < sweep.cooldown < 1, f"config.cooldown={sweep.cooldown} must lie between 0 and 1, as 0.2")
    _check_base(sweep.base, "config.base")
    need((sweep.base.get("evaluation") or {}).get("levels"), "config.base.evaluation.levels is missing: runs are "
         "compared by their error on so many levels of log SNR; give 16")
    for name, architecture in sweep.architectures.items():
        where = f"config.architectures.{name}"
        _check_base(architecture.base, f"{where}.base")
        for key in ("evaluation", "batch_size"):
            need(key not in architecture.base, f"{where}.base.{key} must be the same for all architectures, which are "
                                               "compared; set it in config.base")
        need(architecture.sizes, f"{where}.sizes is empty; give sizes of its ladder, as (2, 4, 8)")
        try:
            ladders.of(architecture.family)
        except ValueError as error:
            raise ConfigError(f"{where}.family={architecture.family!r}: {error}") from None
        for size, seeds in architecture.seeds.items():
            need(str(size) in map(str, architecture.sizes) and seeds and isinstance(seeds, (list, tuple))
                 and all(isinstance(one, int) and one >= 0 for one in seeds) and len(set(seeds)) == len(seeds),
                 f"{where}.seeds={architecture.seeds!r} should name sizes of the plan with different seeds of each, "
                 f"as {{{architecture.sizes[0]}: (0, 1)}}")
        need(architecture.together >= 1, f"{where}.together={architecture.together} must be at least 1")
        for size in architecture.sizes:
            _rates(architecture.lr, name, size)


def _check_base(base: Mapping[str, Any], where: str) -> None:
    for field in dataclasses.fields(Config):
        section = base.get(field.name)
        if dataclasses.is_dataclass(field.default) and section is not None and not isinstance(section, Mapping):
            raise ConfigError(f"{where}.{field.name}={section!r} has the wrong type; give a dict")
    set_by = OURS | {f"optimizer.{key}": by for key, by in OPTIMIZERS.items()}
    for key in (*base, *(f"optimizer.{key}" for key in base.get("optimizer") or {})):
        need(key not in set_by, f"{where}.{key} is set by config.{set_by.get(key)}; leave it out")
    need(base.get("lora") is None, f"{where}.lora: a sweep trains whole models; leave it out")
