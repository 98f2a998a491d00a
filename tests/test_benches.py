"""Benches: their shapes are diffusers' to the last parameter, and a trace is taken apart by what a step is for."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "tools"))

import bench_cases  # noqa: E402
import profile_step  # noqa: E402

from lgm.models import build  # noqa: E402
from lgm.models.attention import attention  # noqa: E402
from lgm.models.layers import modulated  # noqa: E402
from lgm.systems import released  # noqa: E402


@pytest.mark.parametrize("name", bench_cases.CASES)
def test_a_peers_model_has_as_many_parameters(name):
    import diffusers
    import torch

    config = bench_cases.config_of(name)
    shape = bench_cases.shapes_for_peer(config)
    with torch.device("meta"):
        kind = getattr(diffusers, shape["class"])
        theirs = kind.from_config({key: value for key, value in shape["config"].items() if not key.startswith("_")})
    own = released(config.model).form(config.model, None)[0]
    assert sum(p.numel() for p in theirs.parameters()) == build(own).count()
    assert config.batch_size == bench_cases.CASES[name].batch * jax.device_count()


def work(x, kernel, w, shift):
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    tokens = modulated(y.reshape(1, 256, 64), shift, shift) @ w
    q = tokens.reshape(1, 256, 4, 16)
    return attention(q, q, q, None, "xla").sum(-1)


def test_a_real_trace_is_taken_apart_by_what_a_program_does(tmp_path):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = ((1, 16, 16, 8), (3, 3, 8, 64), (64, 64), (1, 64))
    arrays = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
    compiled = jax.jit(work).lower(*arrays).compile()
    jax.block_until_ready(compiled(*arrays))
    with jax.profiler.trace(str(tmp_path)):
        for _ in range(5):
            last = compiled(*arrays)
        jax.block_until_ready(last)
    events = profile_step.events_of(tmp_path)
    purposes = profile_step.Purposes(compiled.as_text())
    assert all(e.name in purposes.instructions for e in events) and len(events) >= 5
    rows = profile_step.table_of(events, purposes, 5)
    for kind in ("products", "attention", "convolution"):
        assert rows[kind][0] > 0 and rows[kind][1] >= 1, rows
    assert rows["collectives"] == rows["optimizer"] == (0, 0)
    assert 0 <= rows["idle"][0] <= rows["all"][0]


PROGRAM = """HloModule m, is_scheduled=true

FileNames
1 "/x/lgm/models/layers.py"
2 "/x/optax/transforms.py"

FunctionNames
1 "LayerNorm.__call__"
2 "update"

FileLocations
1 {file_name_id=1 function_name_id=1 line=1 end_line=1 column=1 end_column=1}
2 {file_name_id=2 function_name_id=2 line=1 end_line=1 column=1 end_column=1}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=1}

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %norm = f32[8]{0} multiply(%p, %p), metadata={op_name="jit(f)/mul" stack_frame_id=1}
  %adam = f32[8]{0} add(%norm, %p), metadata={op_name="jit(f)/add" stack_frame_id=2}
  %sum = f32[8]{0} all-reduce(%adam), replica_groups={}
  ROOT %moved = f32[8]{0} copy(%sum)
}
"""


def test_streams_of_a_gpu_count_once_what_runs_beside_and_within_other_events():
    at = lambda line, name, start, end: profile_step.Event("/device:GPU:0", line, name, start * 1e6, end * 1e6)
    events = [at("1", "norm", 0, 10), at("1", "adam", 2, 6), at("1", "moved", 10, 11), at("2", "ncclDevKernel", 10, 15),
              at("1", "sum", 20, 22), at("1", "Memcpy D2D", 22, 23)]  # fmt: skip
    rows = profile_step.table_of(events, profile_step.Purposes(PROGRAM), 1)
    found = {kind: row[0] for kind, row in rows.items() if row[0]}
    assert found == {"norm and modulation": 6, "optimizer": 4, "copies": 2, "collectives": 7, "idle": 5, "all": 23}


def test_figures_are_of_the_median_and_a_batch_is_made_up(capsys, tmp_path):
    memory = jax.jit(jnp.sin).lower(np.zeros(8, np.float32)).compile().memory_analysis()
    row = bench_cases.figures([1.0, 4.0, 2.0], 6, 4e12, 3.0, memory)
    assert (row["step_s"], row["images_per_second"], row["model_tflops"], row["mfu"]) == (2.0, 3.0, 2.0, None)
    shaped = jax.ShapeDtypeStruct
    table = bench_cases.Table(str(tmp_path / "x.json"))
    table.add("a", row)
    table.add("b", {"missing": "no such network"})
    assert json.loads((tmp_path / "x.json").read_text())["a"]["step_s"] == 2.0
    assert "no such network" in capsys.readouterr().out
    made = bench_cases.made_up({"mask": shaped((2,), bool), "x": shaped((3,), jnp.bfloat16)})
    assert made["mask"].all() and made["x"].dtype == jnp.bfloat16 and jnp.abs(made["x"]).max() > 0
