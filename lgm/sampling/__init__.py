"""Pure-function solvers, time grids, guidance and starts."""

from lgm.sampling.adaptive import dormand_prince
from lgm.sampling.grids import SPACINGS, last_part, times
from lgm.sampling.guidance import Projected, classifier_free, embedded, paired, projected, rescaled
from lgm.sampling.jumps import jump
from lgm.sampling.solvers import SOLVERS, Solver, Walk, loop, sample, solver, trace
from lgm.sampling.starts import from_image, inpainting, noise

__all__ = [
    "SOLVERS",
    "SPACINGS",
    "Projected",
    "Solver",
    "Walk",
    "classifier_free",
    "dormand_prince",
    "embedded",
    "from_image",
    "inpainting",
    "jump",
    "last_part",
    "loop",
    "noise",
    "paired",
    "projected",
    "rescaled",
    "sample",
    "solver",
    "times",
    "trace",
]
