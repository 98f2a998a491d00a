"""Curves: a protocol of which one value is varied at a time, for several runs, and which points no other one beats."""

import ast
import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any

from lgm.evaluate.protocol import Protocol, parse_protocol
from lgm.parsing import ConfigError, as_dict, near_miss

# what may be varied: the field of the protocol, and what the axis of a figure is called
AXES = {
    "steps": ("drawing.steps", "evaluations an image"),
    "guidance": ("drawing.guidance", "guidance scale"),
    "images": ("weights.images", "images trained on"),
    "half_life_images": ("weights.half_life_images", "half-life of the average (images)"),
    "solver": ("drawing.solver", "solver"),
    "rule": ("drawing.rule", "rule of guidance"),
    "interval": ("drawing.interval", "interval of guidance"),
    "schedule": ("drawing.schedule", "schedule"),
}
# where more is better; of all other metrics less is
HIGHER = re.compile(r"precision|recall|density|coverage|clip_score|inception_score|.*_R@\d+")


@dataclasses.dataclass(frozen=True)
class Axis:
    """What is varied, its values, and what is `held` otherwise than in the protocol meanwhile."""

    name: str
    values: tuple[Any, ...]
    held: tuple[tuple[str, Any], ...] = ()

    @property
    def label(self) -> str:
        """What its line is called beside the run's name."""
        return ", ".join(f"{name}={shown(value)}" for name, value in self.held)


@dataclasses.dataclass(frozen=True)
class Point:
    """One evaluation to be made: `value` of an axis, and the protocol that has it."""

    axis: Axis
    value: Any
    protocol: Protocol


def read_axis(text: str) -> Axis:
    """`steps=1,2,4` or `steps=1,2,4; solver=heun`, what is varied first and what is held after it. Raises ConfigError,
    one line."""
    (name, values), *held = (_assigned(part, text) for part in text.split(";"))
    fixed = []
    for other, options in held:
        if len(options) != 1 or other == name:
            raise ConfigError(f"--vary={text!r}: {other} is held at one value, beside what is varied")
        fixed.append((other, options[0]))
    return Axis(name, values, tuple(fixed))


def _assigned(part: str, text: str) -> tuple[str, tuple[Any, ...]]:
    name, equals, words = part.partition("=")
    name = name.strip()
    if not equals or name not in AXES:
        raise ConfigError(f"--vary={text!r} should read NAME=VALUE,VALUE,...{near_miss(name, AXES)}")
    try:
        values = ast.literal_eval(f"[{words}]")
    except (ValueError, SyntaxError):  # names of solvers, which are no literals; options follow a colon
        values = [word.strip() for word in re.split(r",(?![^:]*=)", words)]
    if not values or "" in values:
        raise ConfigError(f"--vary={text!r} gives {name} no value; write {name}=VALUE,VALUE,...")
    return name, tuple(values)


def points(protocol: Protocol, axes: Sequence[Axis]) -> list[Point]:
    """Every point of every axis, with the protocol's own value as it stands where an axis leaves it alone."""
    return [Point(axis, value, with_values(protocol, [*axis.held, (axis.name, value)]))
            for axis in axes for value in axis.values]  # fmt: skip


def with_values(protocol: Protocol, values: Iterable[tuple[str, Any]]) -> Protocol:
    """A protocol with other values of what `AXES` names. Raises ConfigError, one line, for one that cannot be."""
    changed = as_dict(protocol)
    for name, value in values:
        section, key = AXES[name][0].split(".")
        changed[section][key] = value
        if section == "weights":
            changed["weights"]["hash"] = None  # of the others
    return parse_protocol(changed)


def shown(value: Any) -> str:
    """A value in a line's or a column's name."""
    if isinstance(value, dict):
        return ",".join(f"{key}={inner}" for key, inner in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def better(metric: str, one: float, other: float) -> bool:
    """Whether `one` is the better value of a metric."""
    return one > other if HIGHER.fullmatch(metric) else one < other


def front(rows: Sequence[dict[str, Any]], metric: str) -> list[int]:
    """The rows, by rising "evaluations", that no row of as few evaluations or fewer beats or equals in the metric."""
    able = [i for i, row in enumerate(rows) if row["evaluations"] and metric in row["metrics"]]
    able.sort(key=lambda i: (rows[i]["evaluations"],
                             rows[i]["metrics"][metric] * (-1 if HIGHER.fullmatch(metric) else 1)))
    found: list[int] = []
    for i in able:
        if not found or better(metric, rows[i]["metrics"][metric], rows[found[-1]]["metrics"][metric]):
            found.append(i)
    return found
