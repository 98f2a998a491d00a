"""GPUs as XLA:GPU wants them described, so that it compiles for one that is not here.

From NVIDIA's data sheets, white papers and programming guide ("Compute Capabilities"), but for memory and clock, which
are what its driver says of each part.
"""

import dataclasses
import importlib.util
import tomllib

from lgm.files import shipped


@dataclasses.dataclass(frozen=True)
class Target:
    """One GPU's attributes. capability: of CUDA. cores: streaming multiprocessors, each with `lanes` float32 units at
    `clock` GHz and `shared` bytes of its own memory. cache: bytes of the second level. memory: bytes; rate: of them a
    second. bus: bytes a second to the host."""

    name: str
    capability: int
    cores: int
    lanes: int
    clock: float
    shared: int
    cache: int
    memory: int
    rate: int
    bus: int = 2**35


_HOPPER = dict(capability=9, cores=132, lanes=128, clock=1.98, shared=228 * 1024, cache=50 * 2**20)
TARGETS = {
    "a100": Target("NVIDIA A100-SXM4-80GB", 8, 108, 64, 1.41, 164 * 1024, 40 * 2**20, 85_100_068_864,
                   2_039_040_000_000),
    "h100": Target("NVIDIA H100 80GB HBM3", memory=84_942_979_072, rate=3_352_320_000_000, **_HOPPER),
    "h200": Target("NVIDIA H200", memory=151_397_597_184, rate=4_800_000_000_000, **_HOPPER),
    "b200": Target("NVIDIA B200", 10, 148, 128, 1.965, 228 * 1024, 132_644_864, 191_514_411_008, 7_672_320_000_000,
                   2**36),
}  # fmt: skip


def described(chip: str) -> str:
    """The text that `jax.experimental.topologies.get_topology_desc(platform="cuda", target_config=...)` takes."""
    t = TARGETS[chip]
    own = "ACCELERATED_FEATURES" if t.capability >= 9 else "NONE"  # wgmma and its successors
    return f"""
gpu_device_info {{
  name: "{t.name}" device_vendor: "NVIDIA Corporation" cuda_compute_capability {{ major: {t.capability}
  feature_extension: {own} }} platform_version: "Compute Capability {t.capability}.0{"a" * (t.capability >= 9)}"
  core_count: {t.cores} fpus_per_core: {t.lanes} clock_rate_ghz: {t.clock} threads_per_warp: 32
  threads_per_block_limit: 1024 threads_per_core_limit: 2048 thread_dim_limit_x: 1024 thread_dim_limit_y: 1024
  thread_dim_limit_z: 64 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 shared_memory_per_block: 49152
  shared_memory_per_block_optin: {t.shared - 1024} shared_memory_per_core: {t.shared} l2_cache_size: {t.cache}
  memory_bandwidth: {t.rate} device_memory_size: {t.memory} pcie_bandwidth: {t.bus} device_address_bits: 64
  ecc_enabled: true driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} runtime_version {{ major: 13 }}
device_description_str: "{t.name}"
"""


# Without a GPU nothing is timed: products are left to cuBLAS, for Triton's find no tiles. What the compiler's cost
# models say is kept with each instruction.
ALWAYS = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False, "xla_gpu_collect_cost_model_stats": True}
MEASURED = "xla_gpu_enable_analytical_sol_latency_estimator"  # times products by a table, which it has from Hopper on


def installed() -> bool:
    """Whether XLA:GPU is here."""
    return any(importlib.util.find_spec(name) for name in ("jax_cuda13_plugin", "jax_cuda12_plugin"))


def told(chip: str) -> dict[str, str]:
    """XLA's flags that `lgm launch` gives jobs on this GPU, from `launch/flags.toml`; none where that is not here."""
    if (path := shipped("launch/flags.toml")) is None:
        return {}
    flags = [row["flag"] for row in tomllib.loads(path.read_text())["xla"] if chip in row["gpus"]]
    return dict(flag.removeprefix("--").split("=", 1) for flag in flags)


def options(chip: str) -> dict[str, str | int | bool]:
    """What XLA:GPU is told when it compiles for a GPU that is not here."""
    read = lambda text: {"true": True, "false": False}.get(text, int(text) if text.isdigit() else text)
    flags = {name: read(value) for name, value in told(chip).items()}
    return ALWAYS | ({MEASURED: True} if TARGETS[chip].capability >= 9 else {}) | flags
