"""What each chip's compiler is told about a train step: one table, for training, plans and launched jobs alike.

An option stands here once it has shown a gain for the chip, which is said beside it; what shows none goes. XLA's flags
for GPUs are of a job, not of a program, and stand in launch/flags.toml.
"""

from __future__ import annotations

import dataclasses

from lgm.parallel.chips import chip_of


@dataclasses.dataclass(frozen=True)
class Option:
    """A compiler option of a chip's train steps, and what it gained."""

    name: str
    value: str
    gain: str


OPTIONS: dict[str, tuple[Option, ...]] = {
    "v5p": (Option("xla_tpu_scoped_vmem_limit_kib", "65536", "8% of Flux.1-dev's step on 4 chips by the compiler's "
                   "cycles: with larger tiles its products go from 77% to 96% of peak"),),
}  # fmt: skip


def options_of(device_kind: str) -> dict[str, str]:
    """The options of the chip that JAX calls `device_kind`, as `jax.jit(compiler_options=...)` takes them."""
    chip = chip_of(device_kind)
    return {option.name: option.value for option in OPTIONS.get(chip.name, ())} if chip else {}
