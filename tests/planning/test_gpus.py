"""GPU plans: costs read from a recorded program of XLA:GPU against closed forms, and one compiled where it is here."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lgm import config as schema
from lgm.parallel.chips import CHIPS
from lgm.planning import gpus, hlo, read_topology
from lgm.planning.cost import cost_of
from lgm.planning.network import nodes
from lgm.planning.page import page
from lgm.planning.plan import STANDS_IN, compiled_plan
from lgm.planning.program import Compiled, Program

ROOT = Path(__file__).resolve().parents[2]
# of an H100: a product, attention and a convolution with their gradients, a softmax and a tanh, as compiled
PROGRAM = Path(__file__).with_name("gpu_program.hlo").read_text()
CHIP = CHIPS["h100"]


def cost(text=PROGRAM, **options):
    return cost_of(hlo.parse(text), CHIP, nodes(CHIP, 1, 1), (), **options)


def test_work_of_library_calls_is_that_of_their_closed_forms():
    product = 2 * 512 * 256 * 1024
    scores = 2 * 2 * 256 * 128 * 4 * 64  # of one product of queries and keys: two forward, five backward
    convolution = 2 * 4 * 16 * 16 * 64 * 128 * 9  # its padding is a fusion of its own, and its gradients cost the same
    assert cost().flops == product + (2 + 5) * scores + 3 * convolution
    causal = PROGRAM.replace('"mask_type": "NO_MASK"', '"mask_type": "CAUSAL"')
    assert causal != PROGRAM and cost(causal).flops == product + (1 + 2.5) * scores + 3 * convolution


def test_each_instruction_takes_what_the_cost_model_of_its_kind_says_and_by_peaks_none_does():
    found = hlo.parse(PROGRAM)
    told = {i.name: i.estimate for i in found.computations[found.entry].instructions if i.estimate is not None}
    assert set(told) == {"wrapped_transpose", "loop_convert_fusion", "loop_pad_fusion", "custom-call.9", "fusion.12"}
    assert told["loop_convert_fusion"] == pytest.approx(1.869e-6)  # the model of loops
    assert told["custom-call.9"] == pytest.approx(5.872e-6)  # the table of measured products
    assert told["fusion.12"] == pytest.approx(1.332e-6)  # the model of tiles, not the one of loops
    by_peaks, own = cost(by_peaks=True), cost()
    assert by_peaks.bytes == own.bytes and by_peaks.flops == own.flops
    # attention and convolutions, of which no model speaks, take the same by both
    silent = by_peaks.busy - cost(without_cudnn(), by_peaks=True).busy
    assert 0 < silent and own.busy == pytest.approx(sum(told.values()) + silent)


def without_cudnn():
    """The recorded program without its calls of cuDNN."""
    return "\n".join(line for line in PROGRAM.splitlines() if "__cudnn" not in line)


def test_a_workspace_is_no_traffic():
    more = PROGRAM.replace("s8[33554432]", "s8[67108864]")
    assert more != PROGRAM and cost(more).bytes == cost().bytes < 33554432


@pytest.mark.parametrize("chip", gpus.TARGETS)
def test_each_gpu_is_described_and_told_what_its_jobs_are(chip):
    text, chip_options = gpus.described(chip), gpus.options(chip)
    target = gpus.TARGETS[chip]
    assert f'name: "{target.name}"' in text and f"device_memory_size: {target.memory}" in text
    assert CHIPS[chip].kinds[0] in target.name  # as JAX will call it
    assert 1 <= target.memory / CHIPS[chip].hbm < 1.08 and 0.95 < target.rate / CHIPS[chip].hbm_rate <= 1.001
    assert chip_options["xla_gpu_enable_latency_hiding_scheduler"] is True
    assert chip_options["xla_gpu_all_gather_combine_threshold_bytes"] == 2**27
    assert (gpus.MEASURED in chip_options) == (chip != "a100")


def test_without_the_gpu_compiler_another_stands_in_and_says_so(monkeypatch):
    monkeypatch.setattr(gpus, "installed", lambda: False)
    planning = importlib.import_module("lgm.planning.plan")
    told = []
    program = Program(dict.fromkeys(("parameters", "optimizer", "ema", "frozen", "batch"), 1.0), {}, 1e6, (),
                      nodes(CHIP, 1, 1), ())  # fmt: skip
    device = SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(planning, "open_devices", lambda topology: ([device], "nothing"))
    monkeypatch.setattr(planning, "layout_on", lambda *a: None)
    made = Compiled(hlo.parse(PROGRAM), 0.0, 1.0)
    monkeypatch.setattr(planning, "compiled", lambda *a: (told.append(a[2]), (program, made))[1])
    config = schema.load(f"{ROOT}/configs/pod.py:sd3_medium")
    p = compiled_plan(config, read_topology("h100:1x1"))[0]
    assert told == [True] and p.cycles is None and p.notes == (STANDS_IN,)
    assert "pip install 'lgm[plan-gpu]'" in page(p) and "\n" not in STANDS_IN
    monkeypatch.setattr(gpus, "installed", lambda: True)
    p = compiled_plan(config, read_topology("h100:1x1"))[0]
    assert told == [True, False] and p.cycles.step > p.peak.step and not p.notes
    assert "by the compiler" in page(p) and p.options["xla_gpu_enable_while_loop_double_buffering"] == "true"


@pytest.mark.gpu_compiler
def test_a_tiny_step_is_compiled_for_four_gpus(tiny_config):
    """In processes of their own: the plan's, and one that says what the compiler's memory analysis is."""
    small = [["model.depth", "2"], ["mesh.data", "1"], ["mesh.fsdp", "4"], ["model.dtype", "bfloat16"]]
    command = [sys.executable, str(Path(__file__).with_name("plans_of.py")),
               json.dumps([[tiny_config, "h100:1x4", 1, small, False], [tiny_config, "h100:2x2", 1, small, True]])]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": pythonpath()})
    assert done.returncode == 0, done.stderr[-2000:]
    whole, quick = map(json.loads, done.stdout.splitlines())
    assert whole["compiled_for"] == "4 x NVIDIA H100 80GB HBM3" and whole["fits"]
    assert not any("not installed" in note for note in whole["notes"])
    assert 0.9 < whole["flops"] / whole["model_flops"] < 2
    for p in (whole, quick):  # costs are in the scheduled program
        assert p["cycles"]["step"] >= p["roofline"] > 0 and p["peak"]["step"] >= p["roofline"]
        assert "all-gather" in {c["kind"] for c in p["collectives"]}
    assert whole["dcn_bytes"] == 0 < quick["dcn_bytes"]  # two nodes
    analysis = subprocess.run([sys.executable, "-c", ANALYSIS, tiny_config, json.dumps(small)], capture_output=True,
                              text=True, env=os.environ | {"PYTHONPATH": pythonpath()})  # fmt: skip
    assert analysis.returncode == 0, analysis.stderr[-2000:]
    given, temporary = map(int, analysis.stdout.split()[-2:])
    memory = whole["memory"]
    assert memory["activations"] + memory["temporaries"] == temporary
    trained = sum(memory[kind] for kind in ("parameters", "optimizer", "ema"))
    assert trained < given <= trained + memory["frozen"] + memory["batch"]  # what it never reads is no argument


def pythonpath():
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


ANALYSIS = """
import json, os, sys
os.environ["JAX_PLATFORMS"] = "cpu"
from lgm import config as schema
from lgm.planning import gpus, read_topology
from lgm.planning.program import trace
from lgm.planning.topology import open_devices
from lgm.train.placing import layout_of
config = schema.load(sys.argv[1], [tuple(pair) for pair in json.loads(sys.argv[2])])
traced = trace(config, layout_of(config, open_devices(read_topology("h100:1x4"))[0]), None)[1]
found = traced.lower().compile(compiler_options=gpus.options("h100")).memory_analysis()
print(found.argument_size_in_bytes, found.temp_size_in_bytes)
"""
