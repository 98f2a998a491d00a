"""Pure-function solvers, time grids and guidance."""

from lgm.sampling.grids import times
from lgm.sampling.guidance import classifier_free
from lgm.sampling.solvers import SOLVERS, Solver, loop, sample, solver, trace

__all__ = ["SOLVERS", "Solver", "classifier_free", "loop", "sample", "solver", "times", "trace"]
