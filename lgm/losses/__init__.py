"""Pure-function losses: `loss(predict, x, cond, key) -> (scalar, metrics)`."""

from lgm.losses.denoising import denoising, denoising_at
from lgm.losses.densities import DENSITIES, density
from lgm.losses.weightings import WEIGHTINGS, weighting

__all__ = ["DENSITIES", "WEIGHTINGS", "denoising", "denoising_at", "density", "weighting"]
