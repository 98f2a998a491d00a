"""Pure-function losses: `loss(predict, x, cond, key) -> (scalar, metrics)`."""

from lgm.losses.alignment import aligned, contrastive, info_nce, repa
from lgm.losses.consistency import consistency
from lgm.losses.denoising import denoising, denoising_at
from lgm.losses.densities import DENSITIES, Density, density, pdf
from lgm.losses.discrete_consistency import discrete_consistency
from lgm.losses.mean_velocity import mean_flow, shortcut
from lgm.losses.progressive import progressive
from lgm.losses.reflow import DISTANCES, distance, guidance_distillation, one_step, reflow
from lgm.losses.variational import hybrid
from lgm.losses.weightings import WEIGHTINGS, Weighting, importance, traded, weighting

__all__ = [
    "DENSITIES",
    "DISTANCES",
    "Density",
    "WEIGHTINGS",
    "Weighting",
    "aligned",
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
    "info_nce",
    "mean_flow",
    "one_step",
    "pdf",
    "progressive",
    "reflow",
    "repa",
    "shortcut",
    "traded",
    "weighting",
]
