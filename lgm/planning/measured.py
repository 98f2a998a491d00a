"""Train steps that were measured on machines which plans speak of, beside both of a plan's meters of the same program.

A schedule's time by work and bytes at peak is no lower bound of what is measured (programs were faster than the sum of
their instructions' longer side, of which parts overlap), and the compiler's cycles are no upper one. So a plan gives
both, and these say how far either was from the world.
"""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Measured:
    """Seconds of one step: measured, by work and bytes at peak, and by cycles of the finished program."""

    what: str
    chip: str
    seconds: float
    peak: float
    cycles: float

    def __str__(self) -> str:
        return (f"{self.what}: {self.seconds:.4g} s measured, {self.peak:.4g} by peaks ({self.seconds / self.peak:.0%} "
                f"of it), {self.cycles:.4g} by cycles ({self.seconds / self.cycles:.0%})")  # fmt: skip


# MaxDiffusion's published times of Flux.1-dev, 1024 px, FSDP on 4 chips, and its programs of those dates, compiled
MEASURED = (
    Measured("MaxDiffusion's Flux.1-dev of 2026-06 on v5p:2x2x1, batch 8", "v5p", 1.769, 1.84, 2.67),
    Measured("MaxDiffusion's Flux.1-dev of 2025-04 on v5p:2x2x1, batch 4", "v5p", 1.31, 0.91, 1.34),
)


def apart(meter: Callable[[Measured], float]) -> tuple[float, float]:
    """The least and the most that a measured step was of what a meter says of it."""
    ratios = [m.seconds / meter(m) for m in MEASURED]
    return min(ratios), max(ratios)
