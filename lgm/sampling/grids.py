"""Grids of times that a solver walks, from noise to data."""

from __future__ import annotations

import numpy as np

from lgm.process import Process, shift_time


def times(process: Process, steps: int, shift: float = 1.0) -> np.ndarray:
    """`steps` + 1 falling times: equal steps from noise to t = 0, moved towards noise by `shift`.

    A process with a table starts at the table's last entry, t = (N - 1) / N; the others at t = 1.
    """
    first = 1.0 if process.steps is None else (process.steps - 1) / process.steps
    return shift_time(np.linspace(first, 0.0, steps + 1), shift).astype(np.float32)
