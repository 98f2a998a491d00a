"""What each chip's compiler is told about a train step: one table, for training, plans and launched jobs alike; and
what a CPU's is told about programs that run so seldom that compiling them is most of their cost.

An option stands here once it has shown a gain for the chip, which is said beside it; what shows none goes. XLA's flags
for GPUs are of a job, not of a program, and stand in launch/flags.toml.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import types
from collections.abc import Iterator, Mapping

import jax

from lgm.parallel.chips import chip_of


@dataclasses.dataclass(frozen=True)
class Option:
    """A compiler option of a chip's train steps, and what it gained."""

    name: str
    value: str
    gain: str


OWN_MEMORY = "xla_tpu_scoped_vmem_limit_kib"
OWN_MEMORY_DEFAULT = 16384  # KiB of a core's own memory that a kernel may take where the compiler is not told

OPTIONS: dict[str, tuple[Option, ...]] = {
    "v5e": (Option(OWN_MEMORY, "32768", "room for all keys in attention's backward kernel: with blocks of 640 for 128 "
                   "the 35 sums of 844 ms in SD3-medium's step of 2,776 are gone, by the compiler's cycles"),),
    "v6e": (Option(OWN_MEMORY, "32768", "the same of SD3.5-large's, whose sums were 1,539 ms of a step of 4,238"),),
    "v5p": (Option(OWN_MEMORY, "65536", "8% of Flux.1-dev's step on 4 chips by the compiler's "
                   "cycles: with larger tiles its products go from 77% to 96% of peak"),),
}  # fmt: skip

# code by XLA's older emitters, as LLVM first has it: a small network's held-out loss compiles in 0.7 s of processor
# time for 5.0, its first weights in 3.2 for 9.3, and both run half as fast
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True,
         "xla_cpu_use_fusion_emitters": False}


def quick_options() -> dict[str, bool | int] | None:
    """`compiler_options` of a program that runs a few times: on a CPU those that compile it soonest, elsewhere none."""
    return QUICK if jax.default_backend() == "cpu" else None


_told: contextvars.ContextVar[Mapping[str, str]] = contextvars.ContextVar("told", default=types.MappingProxyType({}))


@contextlib.contextmanager
def compiled_with(told: Mapping[str, str]) -> Iterator[None]:
    """Trace what is inside for a program that is compiled with these options."""
    token = _told.set(told)
    try:
        yield
    finally:
        _told.reset(token)


def own_memory() -> int:
    """Bytes of a TPU core's own memory that a kernel of the program being traced may take."""
    return int(_told.get().get(OWN_MEMORY, OWN_MEMORY_DEFAULT)) * 1024


def options_of(device_kind: str) -> dict[str, str]:
    """The options of the chip that JAX calls `device_kind`, as `jax.jit(compiler_options=...)` takes them."""
    chip = chip_of(device_kind)
    return {option.name: option.value for option in OPTIONS.get(chip.name, ())} if chip else {}
