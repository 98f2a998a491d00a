"""Whole systems on meshes: three steps with a folder's frozen text encoders and its autoencoder in the step, split over
8 devices, are those of one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
sys.path.append(str(FOLDER.parent / "interop"))
# as in `equality.py`: an eps above rounding; Muon's iterations multiply the rounding of small singular values
ADAMW, MUON = dict(lr=1e-2, eps=1e-4), dict(name="muon", lr=1e-2, eps=1e-4)
CASES = [
    (dict(optimizer=ADAMW, mesh=dict(data=2, fsdp=2, tensor=2)), 1e-5),
    (dict(optimizer=MUON, mesh=dict(data=1, fsdp=8)), 1e-4),
]


@pytest.mark.slow
@pytest.mark.parametrize("system", ["stable_diffusion_3"])
def test_three_steps_with_frozen_encoders_in_them_are_those_of_one_device(system, tmp_path):
    import tiny_systems

    getattr(tiny_systems, system)().save_pretrained(tmp_path)
    command = [sys.executable, str(FOLDER / "system_on_meshes.py"), str(tmp_path)]
    done = subprocess.run([*command, json.dumps([case for case, _ in CASES])], capture_output=True, text=True,
                          cwd=FOLDER.parent.parent)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout.splitlines()  # beside what a start tells of captions that are cut
    rows = [json.loads(line) for line in said if line.startswith("{")]
    for (_, tolerance), row in zip(CASES, rows, strict=True):
        assert row["loss"] <= 1e-5 and row["params"][0] <= tolerance, row
        assert all(row["split"][name] for name in ("autoencoder", "text")), row
