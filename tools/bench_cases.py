"""The shapes that benches measure, as configs, and the arrays that a step of any config needs, made up.

A case trains a published network on latents and on what text encoders said, as a peer's benchmark does: no text encoder
and no autoencoder is in it. `SMALL` are the same cases in small, which a CPU core does in seconds: they show that a
script runs, and nothing of a chip's speed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a peer's process wants the same memory afterwards

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from lgm import config as schema  # noqa: E402
from lgm.config import Config  # noqa: E402
from lgm.config.reading import read_config_file  # noqa: E402
from lgm.interop.components import component  # noqa: E402
from lgm.models import family, family_of  # noqa: E402
from lgm.parallel import Layout  # noqa: E402
from lgm.parallel.chips import peak_flops  # noqa: E402
from lgm.planning.program import Step, step_of  # noqa: E402
from lgm.systems import released  # noqa: E402
from lgm.train.optimizer import build_optimizer  # noqa: E402
from lgm.train.placing import layout_of  # noqa: E402
from lgm.train.state import init_state  # noqa: E402

POD = Path(__file__).resolve().parents[1] / "configs" / "pod.py"


@dataclasses.dataclass(frozen=True)
class Case:
    """A network at a resolution and batch; `changes` of its model. small: what makes its model small.

    base: which system of configs/pod.py it is like, None for classes or SD 1.5, which that page has not. h100: what
    diffusers under torch.compile did on one H100, images/s of training (bfloat16 autocast, float32 AdamW, no EMA).
    """

    family: str
    preset: str
    base: str | None
    resolution: int
    batch: int
    small: dict[str, Any]
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    h100: float | None = None


_DIT, _MMDIT = dict(width=64, depth=2, heads=2, base_size=4), dict(width=64, depth=2, heads=2)
_UNET = dict(block_channels=(32, 32), layers_per_block=1, transformer_depth=(0, 1), mid_depth=1, heads=(2, 2))
_FLUX = dict(width=64, depth=1, single_depth=1, heads=2, rotary_axes=(8, 12, 12))
CASES = {
    "dit_256": Case("dit", "dit_xl2", None, 256, 128, _DIT, dict(remat="dots"), h100=558),
    "sd15_512": Case("unet", "sd15", None, 512, 32, _UNET, h100=81),
    "sdxl_1024": Case("unet", "sdxl", "sdxl", 1024, 8, _UNET, dict(remat="full"), h100=9.95),
    "sd3_512": Case("mmdit", "sd3_medium", "sd3_medium", 512, 8, _MMDIT, dict(remat="dots"), h100=53.3),
    "sd3_1024": Case("mmdit", "sd3_medium", "sd3_medium", 1024, 8, _MMDIT, dict(remat="full"), h100=11.6),
    "flux_4_8_1024": Case("flux", "flux_dev", "flux_dev", 1024, 4, _FLUX, dict(depth=4, single_depth=8, remat="full"),
                          h100=6.8),
}  # fmt: skip


def arguments_of(description: str) -> argparse.ArgumentParser:
    """What every bench takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--case", action="append", choices=CASES, help="may be repeated; all unless told")
    parser.add_argument("--config", help="a page instead (file.py or file.py:arg), with its own batch and networks")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="changes of --config")
    parser.add_argument("--small", action="store_true", help="the cases in small, in float32: does it run?")
    parser.add_argument("--peer", action="store_true", help="diffusers' model of the shape under torch.compile as well")
    parser.add_argument("--calls", type=int, default=5, help="how often as many steps as --steps are timed")
    parser.add_argument("--steps", type=int, default=10, help="steps issued before one is waited for")
    parser.add_argument("--json", help="a file for the figures")
    return parser


def configs_of(arguments: argparse.Namespace) -> dict[str, Config]:
    """The configs that a bench is asked for, by name."""
    if arguments.config:
        return {arguments.config: schema.load(arguments.config, [tuple(text.split("=", 1)) for text in arguments.set])}
    return {name: config_of(name, arguments.small) for name in arguments.case or CASES}


def config_of(name: str, small: bool = False) -> Config:
    """A case's config, on all devices that there are by FSDP."""
    case, count = CASES[name], jax.device_count()
    if case.base:
        page = read_config_file(f"{POD}:{case.base}", ())
    else:
        page = dict(process=dict(name="ddpm", schedule="linear" if case.family == "dit" else "scaled_linear"),
                    loss=dict(target="eps"), sampling=dict(solver="ddim", steps=50, guidance=4.0),
                    autoencoder="models/sd15", text=dict(folder=f"models/{case.preset}"))  # fmt: skip
    if case.family == "dit":
        page |= dict(loss=dict(target="eps", variance=1e-3), text=dict(classes=[f"class {n}" for n in range(1000)]))
    model = family(case.family).presets[case.preset] | case.changes | (case.small if small else {})
    size = (2 if small else case.batch) * count
    return schema.from_dict(page | dict(
        name=name, batch_size=size, total_images=1000 * size, mesh=dict(data=1, fsdp=count),
        model=dict(family=case.family, dtype="float32" if small else "bfloat16", **model),
        data=dict(resolution=64 if small else case.resolution) | ({} if case.family == "dit" else dict(cache="states")),
        optimizer=dict(lr=1e-4, warmup_images=0), ema=dict(half_life_images=1000), evaluation={}, log={},
    ))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Open:
    """A config's step with arrays in its places: run(state, frozen, batch) -> (state, metrics)."""

    config: Config
    step: Step
    layout: Layout
    state: Any
    frozen: Any
    batch: Any


def opened(config: Config) -> Open:
    """Fresh weights, and a batch of noise: what a step takes does not depend on values."""
    layout = layout_of(config)
    step = step_of(config, layout)
    places = lambda tree: jax.tree.map(lambda leaf: leaf.sharding, tree)
    optimizer = build_optimizer(config)
    fresh = lambda: init_state(step.system.init(jax.random.key(0)), optimizer)
    state = jax.jit(fresh, out_shardings=places(step.state))()
    others = jax.jit(lambda: made_up((step.frozen, step.batch)), out_shardings=places((step.frozen, step.batch)))()
    return Open(config, step, layout, state, *others)


def made_up(shapes: Any) -> Any:
    """Small normal numbers for floats, ones for masks, zeros for what counts."""
    key = jax.random.key(1)

    def filled(leaf):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return (0.02 * jax.random.normal(key, leaf.shape)).astype(leaf.dtype)
        return jnp.full(leaf.shape, leaf.dtype == bool, leaf.dtype)

    return jax.tree.map(filled, shapes)


def timed(call: Callable[[], Any], calls: int, each: int) -> list[float]:
    """Seconds a step of so many calls, every one of `each` steps that are issued and then waited for; one call before
    them is not counted."""
    jax.block_until_ready(call())
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        for _ in range(each):
            last = call()
        jax.block_until_ready(last)
        seconds.append((time.perf_counter() - start) / each)
    return seconds


def figures(seconds: list[float], images: int, flops: float, compile_seconds: float, memory) -> dict[str, Any]:
    """What a bench says of a program: `flops` are the model's a step, `memory` the compiler's `memory_analysis`."""
    step, devices = statistics.median(seconds), jax.devices()
    peak, used = peak_flops(devices[0]), devices[0].memory_stats() or {}
    planned = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {"step_s": step, "least_s": min(seconds), "most_s": max(seconds), "images_per_second": images / step,
            "model_tflops": flops / step / 1e12, "mfu": peak and flops / step / peak / len(devices),
            "memory_gb": (planned + memory.temp_size_in_bytes) / 1e9,
            "peak_gb": used["peak_bytes_in_use"] / 1e9 if "peak_bytes_in_use" in used else None,
            "compile_s": compile_seconds, "device": devices[0].device_kind, "devices": len(devices)}  # fmt: skip


def shapes_for_peer(config: Config) -> dict[str, Any] | None:
    """What `bench_peer.py` needs to build diffusers' model of the same shape; None where diffusers has none."""
    system, spec = released(config.model), family_of(config.model).conditioning(config.model)
    if system is None:
        return None
    own = system.form(config.model, None)[0]
    rows, columns = (side // 8 for side in config.data.size)
    text = (config.model.text_dim, {"flux": 512, "mmdit": 333}.get(config.family, 77)) if spec.text else None
    return {"class": system.component, "config": component(system.component).write(own), "text": text,
            "channels": config.model.channels, "rows": rows, "columns": columns, "batch": config.batch_size,
            "pooled": spec.pooled, "guidance": spec.guidance, "dtype": config.model.dtype,
            "remat": family_of(config.model).remat(config.model)}  # fmt: skip


class Table:
    """Rows of figures, each printed as it comes; all are written as JSON as often."""

    columns = ("step_s", "images_per_second", "model_tflops", "mfu", "memory_gb", "peak_gb", "compile_s")

    def __init__(self, path: str | None):
        self.path, self.rows = path, {}
        print(f"{'':<28}" + "".join(f"{name:>18}" for name in self.columns), flush=True)

    def add(self, name: str, row: dict[str, Any]) -> None:
        """One more row; of one that is "missing", why."""
        self.rows[name] = row
        shown = lambda value: "" if value is None else f"{value:.4g}"
        cells = "".join(f"{shown(row.get(column)):>18}" for column in self.columns)
        print(f"{name:<28}{row.get('missing') or cells}", flush=True)
        if self.path:
            Path(self.path).write_text(json.dumps(self.rows, indent=1) + "\n")
