"""The loss that a config names, and what must fit it: process, target, density of t and weighting."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from lgm import losses, registry
from lgm.config import Config
from lgm.gaussian import Process
from lgm.parsing import ConfigError

Shift = Callable[[Any], float]  # the number that a config's shift of times stands for

def named(make, section: str | Mapping[str, Any], key: str):
    """`make(name, **options)` of a config section {"name": ..., **options} or of its short form "name:option=value";
    errors name the section's key."""
    try:
        options = registry.section(section, key)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    try:
        return make(options.pop("name"), **options)
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{key}: {error}") from None


def build_loss(of: Config, process: Process, shift: Shift):
    """The loss of a config under its process, `loss(predict, x, cond, key) -> (scalar, metrics)`, in two parts:
    `draw(key, shape)`, what is random for a whole batch, and `given(predict, x, cond, *drawn)`. A loss that changes as
    training goes on has `draw(key, shape, progress)`, the share of it that is done. Raises ConfigError, one line."""
    config = of.loss
    record, target = losses.loss(config.name), config.target
    if record.of is not None and (process.name, target) != record.of:
        wanted, other = record.of
        raise ConfigError(f"config.loss.name={config.name!r} is stated for config.process.name={wanted!r} and "
                          f"config.loss.target={other!r}, not {process.name!r} and {target!r}")
    setting = losses.Setting(process, target, *_density_and_weighting(of, process, shift))
    if config.variance:
        try:
            return losses.hybrid(*setting, config.variance)
        except ValueError as error:
            raise ConfigError(f"config.loss.variance={config.variance}: {error}") from None
    options = dict(config.options)
    if "distance" in options:
        options["distance"] = named(losses.distance, options["distance"], "config.loss.distance")
    make = lambda name, **options: registry.make("loss", {name: functools.partial(record.make, setting)}, name, options)
    return named(make, {"name": config.name, **options}, "config.loss")


def _density_and_weighting(of: Config, process: Process, shift: Shift) -> tuple[losses.Density, losses.Weighting]:
    config = of.loss
    section = lambda value: {**value, "shift": shift(value["shift"])} if "shift" in value else value

    def weighting_of(name: str, **options) -> losses.Weighting:
        if name != "importance":
            return losses.weighting(name, **options)
        wanted = named(losses.pdf, section(options.pop("density", {})), "config.loss.weighting.density")
        drawn = named(losses.pdf, section(config.density), "config.loss.density")
        return losses.importance(wanted, drawn, **options)

    weighting = named(weighting_of, config.weighting, "config.loss.weighting")
    if config.density.get("name") == "weighting":
        traded = lambda name, **options: losses.traded(process, config.target, weighting, **options)
        return named(traded, config.density, "config.loss.density")
    if config.density.get("name") == "edm_log_normal":
        _same_ends(config.density, of.process)
    return named(losses.density, section(config.density), "config.loss.density"), weighting


def _same_ends(density: Mapping[str, Any], process: Mapping[str, Any]) -> None:
    for end in ("sigma_min", "sigma_max"):
        theirs = [section.get(end, {"sigma_min": 0.002, "sigma_max": 80.0}[end]) for section in (density, process)]
        if theirs[0] != theirs[1]:
            raise ConfigError(f"config.loss.density.{end}={theirs[0]} and config.process.{end}={theirs[1]} must agree")
