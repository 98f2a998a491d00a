"""What compute is bought as: so many chips for so many hours."""

import dataclasses
import math
from typing import Literal

HOUR = 3600.0  # seconds


@dataclasses.dataclass(frozen=True)
class Machine:
    """Chips, each of so many FLOP/s at its `peak`, of which training gets the part `mfu`; of kind "cpu" they are
    cores."""

    chips: int
    peak: float
    mfu: float
    kind: Literal["accelerator", "cpu"] = "accelerator"

    def __post_init__(self):
        for name, value in (("chips", self.chips), ("peak", self.peak)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}={value} must be positive")
        if not 0 < self.mfu <= 1:
            raise ValueError(f"mfu={self.mfu} must be in (0, 1], as 0.4")

    def flops(self, hours: float) -> float:
        """FLOPs that training gets in so many hours of the whole machine."""
        return hours * HOUR * self.chips * self.peak * self.mfu

    def hours(self, flops: float) -> float:
        """Hours of the whole machine."""
        return flops / self.flops(1.0)
