"""The loss that a config names, and what must fit it: process, target, density of t and weighting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lgm import losses, registry
from lgm.config import Config, DenoisingLoss
from lgm.gaussian import Process
from lgm.parsing import ConfigError

Shift = Callable[[Any], float]  # the number that a config's shift of times stands for

# what some losses are stated for: the process and what the network predicts
STATED_FOR = {
    "mean_flow": ("rectified_flow", "flow"),
    "shortcut": ("rectified_flow", "flow"),
    "consistency": ("trigonometric", "v"),
    "discrete_consistency": ("edm", "edm"),
}


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
    _check(config, process)
    target, (density, weighting) = config.target, _density_and_weighting(of, process, shift)
    simple = lambda: losses.denoising(process, target, density, weighting)
    if config.variance:
        try:
            return losses.hybrid(process, target, density, weighting, config.variance)
        except ValueError as error:
            raise ConfigError(f"config.loss.variance={config.variance}: {error}") from None
    table = {
        "denoising": simple,
        "reflow": simple,  # on pairs
        "one_step": lambda distance="squared": losses.one_step(
            process, target, named(losses.distance, distance, "config.loss.distance")),
        "contrastive": lambda weight=0.05: losses.contrastive(process, target, density, weighting, weight),
        "mean_flow": lambda same=0.75, power=1.0, offset=0.01, scale=1.0, kappa=0.0, interval=(0.0, 1.0):
            losses.mean_flow(process, density, same, power, offset, scale, kappa, interval),
        "shortcut": lambda share=0.25, levels=7, scale=1.0: losses.shortcut(process, density, share, levels, scale),
        "progressive": lambda steps=8: losses.progressive(process, target, weighting, steps),
        "consistency": lambda offset=0.1: losses.consistency(density, offset),
        "discrete_consistency": lambda distance="pseudo_huber", start=10, end=1280, growth="doubling", mean=-1.1,
            std=2.0, even=False, rho=7.0, weighted=True, solver="heun": losses.discrete_consistency(
                process, target, named(losses.distance, distance, "config.loss.distance"), start, end, growth, mean,
                std, even, rho, weighted, solver),
    }  # fmt: skip
    make = lambda name, **options: registry.make("loss", table, name, options)
    return named(make, {"name": config.name, **config.options}, "config.loss")


def _check(config: DenoisingLoss, process: Process) -> None:
    if config.name in STATED_FOR and (process.name, config.target) != STATED_FOR[config.name]:
        wanted, target = STATED_FOR[config.name]
        raise ConfigError(f"config.loss.name={config.name!r} is stated for config.process.name={wanted!r} and "
                          f"config.loss.target={target!r}, not {process.name!r} and {config.target!r}")


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
