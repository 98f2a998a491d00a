"""How long processes wait for each other, and the exit codes of runs that should be started again."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from lgm.parsing import ConfigError

PREEMPTED = 75  # saved on SIGTERM, wants to be started again (EX_TEMPFAIL)
LOST = 76  # another process was lost; the last checkpoint is where the same command goes on


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Seconds. `patience`: of a machine that says nothing before it counts as lost. `wait`: for all processes to start,
    to come to a barrier, and of a process that no longer answers its own supervisor. `report`: between heartbeat lines.
    """

    patience: float = 60.0
    wait: float = 900.0
    report: float = 300.0

    @staticmethod
    def read(given: dict[str, float | None]) -> Bounds:
        """From the command line (`given`), else LGM_PATIENCE, LGM_WAIT and LGM_REPORT, else the defaults."""
        values: dict[str, Any] = {}
        for field in dataclasses.fields(Bounds):
            name = f"LGM_{field.name.upper()}"
            word: Any = given.get(field.name)
            word = os.environ.get(name) if word is None else word
            try:
                value: Any = field.default if word is None else float(word)
            except ValueError:
                value = -1.0
            if not 0 < value < float("inf"):
                raise ConfigError(f"{name}={word} is not a number of seconds above 0")
            values[field.name] = value
        return Bounds(**values)
