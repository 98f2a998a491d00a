"""What a finished run teaches another: the ends of its ODE's paths, or its predictions."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from lgm.config import Config
from lgm.drawing import draw_latents
from lgm.models import Params
from lgm.parsing import ConfigError
from lgm.system import System


class Teacher(NamedTuple):
    """A run's system, all of its weights (EMA) and what is frozen in it."""

    system: System
    params: Params
    frozen: Params

    def predictor(self, params: Params, tokens: jax.Array, mask: jax.Array):
        """`predict(x_t, t_B, cond)` with `params`, which knows its own condition of those captions."""
        known = self.system.condition(params, tokens, mask)
        return lambda x_t, t_B, cond: self.system.denoise(params, x_t, t_B, known)


def open_teacher(config: Config, system: System) -> Teacher | None:
    """The run that `config.loss.teacher` names. Raises ConfigError, one line, where its latents are not `system`'s, or
    it does not predict what the loss takes of it."""
    if config.loss.teacher is None:
        return None
    from lgm.train.main import load_run

    workdir = config.loss.teacher.workdir
    theirs, params, frozen, _ = load_run(workdir, "ema")
    for name, mine, other in (
        ("autoencoder", config.autoencoder, theirs.config.autoencoder),
        ("data.resolution", config.data.resolution, theirs.config.data.resolution),
    ):
        if mine != other:
            raise ConfigError(f"config.{name}={mine!r}, but that of config.loss.teacher.workdir={workdir!r} is "
                              f"{other!r}; pairs are of one latent space")
    if config.loss.name == "consistency" and theirs.config.text != config.text:
        raise ConfigError(f"config.text is not that of config.loss.teacher.workdir={workdir!r}; consistency asks both "
                          "networks about the same tokens")
    if config.loss.name == "consistency" and (theirs.process, theirs.config.loss.target) != (system.process, "v"):
        raise ConfigError(f"config.loss.teacher.workdir={workdir!r} is of process {theirs.process.name!r} and target "
                          f"{theirs.config.loss.target!r}; consistency is distilled of 'trigonometric' and 'v'")
    return Teacher(theirs, params, frozen)


def pairs(config: Config, teacher: Teacher, captions: list[str]) -> tuple[list[str], dict[str, np.ndarray]]:
    """(captions, {"latent", "noise"}) of pairs that the teacher's ODE joins, a function of config and weights."""
    options = config.loss.teacher
    if jax.process_index() == 0:
        print(f"drawing {options.pairs:,} pairs with {options.workdir} in {options.steps} steps each", flush=True)
    told = [captions[i % len(captions)] for i in range(options.pairs)]
    changes = dict(solver=options.solver, steps=options.steps, guidance=options.guidance)
    latents, noise = draw_latents(teacher.system, teacher.params, teacher.frozen, told, config.seed, **changes)
    return told, {"latent": latents, "noise": noise}
