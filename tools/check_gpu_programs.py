"""Compile, for H100s that are not there, what runs of every family do; their 16-bit attention must be cuDNN's.

    pip install -e '.[plan-gpu]' && python tools/check_gpu_programs.py
    python tools/check_gpu_programs.py --gpus=8 --case='flux'

Train step, sampler, held-out loss and errors by level of noise of networks of two or three blocks with the real head
sizes and lengths, on one H100 and, by FSDP, on 8, by XLA:GPU, which needs no GPU. Prints a JSON line a case: how often
each program calls cuDNN's attention. Exits with 1 where that is not what the network holds, and with 2 where the
compiler is not installed. It does not run what it compiles: `check_attention_gpu.py` does, on a GPU.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp

from lgm import config as schema
from lgm import drawing
from lgm.config.reading import read_config_file
from lgm.evaluate import heldout, snr_grid
from lgm.parallel import shardings
from lgm.planning import gpus, read_topology
from lgm.planning.abstract import abstract_system, frozen_axes
from lgm.planning.program import placed, trace
from lgm.planning.topology import open_devices
from lgm.train.placing import layout_of

# no timing, for there is no GPU; without one the Triton products of small float32 matrices find no tiles either
# and machine code that is never run need not be fast
OPTIONS = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False, "xla_backend_optimization_level": 0,
           "xla_llvm_disable_expensive_passes": True}  # fmt: skip


def found(lowered) -> dict[str, int]:
    """What a compiled program calls of cuDNN's attention, and how often."""
    text = lowered.compile(compiler_options=OPTIONS).as_text()
    return dict(collections.Counter(re.findall(r'custom_call_target="__cudnn\$(fmha\w+)"', text)))


def programs(config: schema.Config, count: int, wanted: Sequence[str]) -> dict[str, dict[str, int]]:
    """What is in a config's programs `wanted` on `count` H100s: the train step, the sampler from captions to latents,
    the decoder, the encoder, the held-out loss and the errors by level of noise."""
    layout = layout_of(config, open_devices(read_topology(f"h100:1x{count}"))[0])
    system, frozen, _ = abstract_system(config, layout)
    frozen = placed(frozen, shardings(layout, frozen, frozen_axes(system, frozen)))
    abstract = jax.eval_shape(system.init, jax.random.key(0))
    trained = placed(abstract, shardings(layout, abstract, system.logical_axes()))
    size, (ids, mask) = config.batch_size, system.unconditional(1)
    on = lambda shape, dtype: jax.ShapeDtypeStruct((size, *shape), dtype, sharding=layout.batch)
    words = on(ids.shape[1:], ids.dtype), on(mask.shape[1:], mask.dtype)
    latents, images = on(system.latent_shape(), jnp.float32), on((*config.data.size, 3), jnp.uint8)
    rows, ratios = on((), jnp.int32), on((), jnp.float32)

    def drawn(trained, frozen, ids, mask, rows):
        params = system.whole(trained, frozen)
        return drawing._draw_chunk(system, config.sampling, params, frozen, ids, mask, rows, 0, None, None)

    drawing.spread = lambda layout, *rows: rows  # whose places are told by the arguments
    params = system.whole(trained, frozen)
    cond = jax.eval_shape(system.condition, params, *words)
    lowered = {
        "train": lambda: trace(config, layout, None)[1].lower(),
        "sample": lambda: jax.jit(drawn).lower(trained, frozen, *words, rows),
        "decode": lambda: drawing._decode.lower(system, frozen, latents),
        "encode": lambda: drawing._encode.lower(system, frozen, images),
        "heldout": lambda: heldout._program(heldout._errors, False).lower(system, params, latents, cond, rows, 0,
                                                                            0.5),
        "levels": lambda: snr_grid._v_errors.lower(system, params, latents, *words, ratios, rows, rows, None),
    }
    return {name: found(lowered[name]()) for name in wanted}


def merged(values: dict, changes: dict) -> dict:
    """Nested values with those of `changes`; a key that ends in "=" stands for all of a dict."""
    new = dict(values)
    for key, value in changes.items():
        whole = not isinstance(value, dict) or key.endswith("=")
        new[key.rstrip("=")] = value if whole else merged(new.get(key) or {}, value)
    return new


FORWARD, BACKWARD = "fmhaSoftmax", "fmhaSoftmaxBackward"
RUN = ("train", "sample", "heldout")


@dataclasses.dataclass(frozen=True)
class Case:
    """A config, and how often it holds attention: once in the body of a scan over blocks."""

    sites: int
    changes: dict[str, Any]
    spec: str | None = None
    programs: tuple[str, ...] = RUN
    again: int = 0  # those that the backward pass computes once more: of scanned blocks, for XLA sees others' sameness

    def expected(self) -> dict[str, dict[str, int]]:
        """What each program calls. A sampler holds the network twice, the held-out loss once; the autoencoder's one
        head of 512 is too wide for the kernel."""
        forward = {"train": self.sites + self.again, "sample": 2 * self.sites, "heldout": self.sites,
                   "levels": self.sites}  # fmt: skip
        calls = {name: {FORWARD: count} for name, count in forward.items()} | {"decode": {}, "encode": {}}
        calls["train"][BACKWARD] = self.sites
        return {name: calls[name] for name in self.programs}

    def config(self, count: int) -> schema.Config:
        values = read_config_file(self.spec, ()) if self.spec else {}
        always = {"batch_size": 16, "sampling": dict(steps=2), "mesh=": dict(data=1, fsdp=count)}
        return schema.from_dict(merged(values, always | self.changes))


# a text encoder that is trained, whose mask tells which words a caption has
WORDS = dict(family="clip_text", vocab_size=4096, width=512, depth=1, heads=4, max_length=333)
EMOJI = dict(text=dict(encoder=dict(depth=1)))
POD = "configs/pod.py:"
MMDIT = dict(depth=2, group=1)  # the last block, which has no text after it, is not scanned
UNET = dict(layers_per_block=1, transformer_depth=(0, 1, 1), mid_depth=1)  # 7 transformers, to themselves and the text
CASES = {
    "emoji mmdit, masked": Case(2, dict(model=MMDIT, **EMOJI), "configs/emoji.py:model=mmdit,process=flow",
                                (*RUN, "levels", "decode", "encode")),
    "emoji unet, masked": Case(14, dict(model=dict(layers_per_block=1, transformer_depth=(1, 1)), **EMOJI),
                               "configs/emoji.py:model=unet,process=eps"),
    "dit": Case(1, {"name": "dit", "total_images": 1600,
                    "model": dict(family="dit", depth=2, channels=32, dtype="bfloat16"),
                    "process": dict(name="ddpm"), "loss": dict(target="eps", variance=1.0),
                    "text=": dict(classes=["a", "b"])}),
    "sd3": Case(2, dict(model=MMDIT), POD + "sd3_medium", again=1),
    "sd3, masked": Case(2, {"model": MMDIT | dict(text_dim=512, pooled_dim=512), "text=": dict(encoder=WORDS)},
                        POD + "sd3_medium", again=1),
    "flux": Case(2, dict(model=dict(depth=1, single_depth=1)), POD + "flux_dev", again=2),
    "sdxl": Case(14, dict(model=UNET), POD + "sdxl", again=14),
}  # fmt: skip


def main() -> int:
    """Compile and compare; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gpus", type=int, action="append", help="how many H100s; 1 and 8 unless told")
    parser.add_argument("--case", action="append", choices=CASES, help="of which network; all unless told")
    arguments = parser.parse_args()
    if not gpus.installed():
        print("the GPU compiler is not installed: pip install -e '.[plan-gpu]'", file=sys.stderr)
        return 2
    wrong = 0
    for count, name in itertools.product(arguments.gpus or (1, 8), arguments.case or CASES):
        case, start = CASES[name], time.perf_counter()
        calls = programs(case.config(count), count, case.programs)
        row = {"case": name, "gpus": count, "seconds": round(time.perf_counter() - start, 1), "calls": calls}
        if calls != case.expected():
            row["expected"], wrong = case.expected(), wrong + 1
        print(json.dumps(row), flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
