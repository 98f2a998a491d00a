"""What a loss is, said once in the file that has it, in a record that all ask who need to know of it.

A loss from outside the package is named in a config by where its record stands,
`loss.name="package.module:RECORD"`, or by the name that it was given (`lgm.register`).
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, NamedTuple

import jax

from lgm import registry
from lgm.gaussian import Process
from lgm.losses.densities import Density
from lgm.losses.weightings import Weighting

# name -> where the record stands, or a record that was registered
LOSSES: dict[str, "str | Loss"] = {
    "denoising": "lgm.losses.denoising:DENOISING",
    "contrastive": "lgm.losses.contrastive:CONTRASTIVE",
    "reflow": "lgm.losses.reflow:REFLOW",
    "one_step": "lgm.losses.reflow:ONE_STEP",
    "mean_flow": "lgm.losses.mean_flow:MEAN_FLOW",
    "shortcut": "lgm.losses.shortcut:SHORTCUT",
    "consistency": "lgm.losses.consistency:CONSISTENCY",
    "discrete_consistency": "lgm.losses.discrete_consistency:DISCRETE_CONSISTENCY",
    "progressive": "lgm.losses.progressive:PROGRESSIVE",
    "guidance_distillation": "lgm.losses.guidance_distillation:GUIDANCE_DISTILLATION",
}


class OfDraws:
    """`loss(predict, x, cond, key, **extra) -> (scalar, metrics)` of a loss that is `given` what it draws (`draw`), so
    that a batch that is taken in pieces draws for all of it first."""

    draw: Callable[..., Any]
    given: Callable[..., tuple[jax.Array, dict]]

    def __call__(self, predict: Callable, x: jax.Array, cond, key: jax.Array, **extra) -> tuple[jax.Array, dict]:
        return self.given(predict, x, cond, *self.draw(key, x.shape), **extra)


class Setting(NamedTuple):
    """What a config gives every loss: its process, what the network predicts, the density of t and the weighting."""

    process: Process
    target: str
    density: Density
    weighting: Weighting


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss that a config may name.

    Attributes:
      name: the word for it in a config; of one from outside the package, where this record stands.
      make: `make(setting, **options)`, whose options with their defaults are a config's. What it makes has
        `draw(key, shape)`, a NamedTuple of all that is random for a batch of latents [B, ...], with `progress` too
        where it changes as training goes on, and `given(predict, x, cond, *drawn, **extra) -> (scalar, metrics)`.
      of: the process and the target that it is stated for; None for any.
      teacher: what it takes of a finished run: "pairs", the noise and the data that its ODE joins, of which `x` and
        the drawn `eps` are, or "predictions", `teacher(x_t, t_B, cond)`, in every step.
      optional: whether it also does without the teacher.
      taught: the target that a teacher of predictions has; None for the loss's own.
      jump: predict(x_t, t_B, s_B, cond) is told where the step ends.
      guidance: the network is told a scale of guidance, which the loss draws.
      forward: it takes a forward derivative of the network.
      solver: what draws with a network that it trained, where a config says nothing else.
      steps: of a config's options, in how many steps alone it trains the network to be drawn; None for any.
      extra: what else `given` takes of one that is made: "uncond", the condition without a caption; "dropped" [B],
        whose caption is left out; "unguided", the teacher's prediction without one; "averaged", (predict, cond, uncond)
        of the network whose weights are the average over training.
    """

    name: str
    make: Callable[..., Any]
    of: tuple[str, str] | None = None
    teacher: Literal["pairs", "predictions"] | None = None
    optional: bool = False
    taught: str | None = None
    jump: bool = False
    guidance: bool = False
    forward: bool = False
    solver: str = "euler"
    steps: Callable[[Mapping[str, Any]], int | None] = lambda options: None
    extra: Callable[[Any], Collection[str]] = lambda loss: ()


def loss(name: str) -> Loss:
    """The loss of a name, or of "package.module:RECORD". Raises ValueError, one line, where there is none."""
    return dataclasses.replace(registry.located("loss", name, LOSSES, Loss), name=name)
