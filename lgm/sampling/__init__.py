"""Pure-function solvers, time grids, guidance and starts."""

from lgm.sampling.clipping import bounded
from lgm.sampling.grids import SPACINGS, informative, last_part, times
from lgm.sampling.guidance import (
    RULES,
    Projected,
    Rule,
    Skipped,
    Wrap,
    classifier_free,
    embedded,
    guided,
    paired,
    plain,
    projected,
    rescaled,
    rule,
    skipping,
    token_rescaled,
)
from lgm.sampling.solvers import SOLVERS, Solver, Timesteps, loop, sample, solver, trace, watched
from lgm.sampling.starts import from_image, inpainting, keys, noise

__all__ = [
    "RULES",
    "SOLVERS",
    "SPACINGS",
    "Skipped",
    "Projected",
    "Rule",
    "Solver",
    "Timesteps",
    "Wrap",
    "bounded",
    "classifier_free",
    "embedded",
    "from_image",
    "guided",
    "inpainting",
    "keys",
    "last_part",
    "loop",
    "noise",
    "paired",
    "plain",
    "projected",
    "rescaled",
    "rule",
    "sample",
    "skipping",
    "solver",
    "informative",
    "times",
    "token_rescaled",
    "trace",
    "watched",
]
