"""Pure-function losses: `loss(predict, x, cond, key) -> (scalar, metrics)`; a config's by its name in `LOSSES`."""

from lgm.losses.consistency import consistency
from lgm.losses.contrastive import contrastive
from lgm.losses.denoising import denoising, denoising_at
from lgm.losses.densities import DENSITIES, Density, density, pdf
from lgm.losses.discrete_consistency import discrete_consistency
from lgm.losses.distances import DISTANCES, distance
from lgm.losses.guidance_distillation import guidance_distillation
from lgm.losses.mean_flow import mean_flow
from lgm.losses.progressive import progressive
from lgm.losses.records import LOSSES, Loss, Setting, loss
from lgm.losses.reflow import one_step
from lgm.losses.shortcut import shortcut
from lgm.losses.variational import hybrid
from lgm.losses.weightings import WEIGHTINGS, Weighting, importance, traded, weighting

__all__ = [
    "DENSITIES",
    "DISTANCES",
    "Density",
    "LOSSES",
    "Loss",
    "Setting",
    "WEIGHTINGS",
    "Weighting",
    "consistency",
    "contrastive",
    "denoising",
    "denoising_at",
    "density",
    "discrete_consistency",
    "distance",
    "guidance_distillation",
    "hybrid",
    "importance",
    "loss",
    "mean_flow",
    "one_step",
    "pdf",
    "progressive",
    "shortcut",
    "traded",
    "weighting",
]
