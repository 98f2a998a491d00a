"""The tool that holds plans of GPUs against what was measured there."""

import json
import sys
from pathlib import Path

import pytest

from lgm.planning import gpus

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tools"))
import plan_gpus  # noqa: E402


@pytest.mark.parametrize(("memory", "step", "wrong"), [
    (1.0, 1.0, []), (1.04, 0.9, []), (0.9, 1.3, ["memory"]), (1.0, 0.8, ["step"]), (1.06, 1.7, ["memory", "step"]),
])  # fmt: skip
def test_a_measurement_is_held_to_memory_and_range(tmp_path, monkeypatch, capsys, memory, step, wrong):
    """Of the range 100 to 140 ms."""
    plan = {"chip": "h100", "options": gpus.told("h100"), "memory": {"total": 50e9}, "peak": {"step": 0.1},
            "cycles": {"step": 0.14}}  # fmt: skip
    monkeypatch.setattr(plan_gpus, "PLANS", tmp_path)
    (tmp_path / "case_sd3_512_h100.json").write_text(json.dumps(plan))
    row = dict(device="NVIDIA H100 80GB HBM3", devices=1, peak_gb=50 * memory, step_s=0.1 * step)
    (tmp_path / "train_sd3_512.json").write_text(json.dumps({"sd3_512": row}))
    assert plan_gpus.check(tmp_path) == bool(wrong)
    assert capsys.readouterr().out.splitlines()[1].split()[6:] == wrong


def test_what_is_kept_is_what_the_tool_would_compile_today():
    rows = [row for row in (*plan_gpus.PODS, *plan_gpus.ONE) if row.place.exists()]
    assert {row.place for row in rows} == set(plan_gpus.PLANS.glob("*.json"))
    for row in rows:
        kept = plan_gpus.planned(row)
        assert kept and kept["topology"] == row.machine
        assert min(kept["peak"]["step"], kept["cycles"]["step"]) >= kept["roofline"] or not kept["fits"]
        if row in plan_gpus.PODS:
            config = row.config()
            assert config.batch_size == kept["batch_size"] and config.name == kept["name"]
