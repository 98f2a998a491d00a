"""One protocol on two processes of four devices each: to the last digit what one process of one device finds."""

import json

import pytest
from test_verbs import several

from lgm.cli import main

pytestmark = pytest.mark.slow


def test_two_processes_of_four_devices_find_what_one_device_does(tiny_run, tmp_path):
    path = tmp_path / "protocol.json"
    path.write_text(json.dumps(dict(
        metrics=["heldout", "frechet", "kernel"], count=18, batch=2, drawing=dict(steps=2, solver="euler_ancestral"),
        features=dict(name="autoencoder:emoji64"), reference=dict(source="heldout"))))  # fmt: skip
    words = ["evaluate", f"--workdir={tiny_run}", f"--protocol={path}"]
    jobs = [[*words, f"--out={tmp_path / 'two.json'}", f"--pictures={tmp_path / 'pictures'}"]]
    codes, texts = several(2, jobs, tmp_path, devices=4)
    assert codes == [0, 0], texts
    assert main([*words, f"--out={tmp_path / 'one.json'}"]) == 0
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert two.pop("made_on").items() >= {"devices": 8, "processes": 2}.items()
    assert one.pop("made_on")["devices"] == 1
    assert one == two
    assert len(list((tmp_path / "pictures").iterdir())) == 18
