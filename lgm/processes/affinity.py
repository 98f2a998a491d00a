"""The CPUs that this process may run on: cluster managers give the processes of one machine CPUs of their own."""

import os
from collections.abc import Iterable


def allowed() -> list[int]:
    """Their numbers; of all that there are where the system does not tell."""
    return sorted(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))


def ranges(numbers: Iterable[int]) -> str:
    """0, 1, 2, 5 as 0-2,5."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in parts)
