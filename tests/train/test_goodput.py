"""Goodput: every second of a run has one reason, over all of its starts."""

import json
import time

import pytest

from lgm.launching import status
from lgm.train import goodput
from lgm.train.goodput import Ledger


class Clock:
    """A clock that is set by hand; a process begins when it is asked for."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(goodput.time, "time", lambda: self.now)
        monkeypatch.setattr(goodput, "_process_start", lambda: self.began)

    def start(self, workdir, step, seconds):
        self.began = self.now
        self.now += seconds
        return Ledger(workdir, step)

    def __call__(self, seconds):
        self.now += seconds


def test_a_run_that_is_killed_accounts_for_every_second(tmp_path, monkeypatch):
    clock = Clock(monkeypatch)
    ledger = clock.start(tmp_path, 0, 7)
    clock(2)
    ledger.turn("step")
    for step, seconds in enumerate((30, 5, 5, 5), start=1):  # the first compiles
        with ledger.spent("data"):
            clock(0.5)
        with ledger.stepping():
            clock(seconds)
        if step == 2:
            with ledger.spent("checkpoint"):
                clock(3)
            ledger.saved(step)
    with ledger.spent("evaluation"):
        clock(4)
    ledger.write()
    clock(1)  # not written any more: the process is killed
    clock(100)
    ledger = clock.start(tmp_path, 2, 6)
    assert ledger.seconds["step"] == 5 and ledger.seconds["redone"] == 10 and ledger.seconds["down"] == 101
    ledger.turn("step")
    for seconds in (20, 5, 5):
        with ledger.stepping():
            clock(seconds)
    ledger.saved(5)
    with ledger.spent("pictures"):
        clock(2)
    row = ledger.row()
    ledger.write()
    expected = {"step": 15, "startup": 9 + 6, "compile": 50, "data": 2, "checkpoint": 3, "evaluation": 4, "pictures": 2,
                "redone": 10, "down": 101}
    assert {name: row[f"seconds/{name}"] for name in expected} == pytest.approx(expected)
    assert sum(expected.values()) == clock.now - 1000 and row["goodput"] == pytest.approx(15 / 202)
    assert goodput.read(tmp_path)["starts"] == 2

    ledger = clock.start(tmp_path, 2, 0)  # the checkpoint of step 5 was lost as well
    assert ledger.seconds["step"] == 5 and ledger.seconds["redone"] == 20


@pytest.mark.parametrize("content", ["", "7", "[]", "{}", '{"since": "x"}', '{"since": 1, "until": NaN}'])
def test_an_account_that_cannot_be_read_is_begun_anew(tmp_path, content):
    (tmp_path / goodput.NAME).write_text(content)
    assert goodput.read(tmp_path) is None
    assert Ledger(tmp_path, 3).starts == 1


def test_a_run_tells_its_goodput(tiny_run):
    rows = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    row = [row for row in rows if "loss" in row][-1]
    assert 0 < row["goodput"] < 1 and row["seconds/compile"] > 0 and row["seconds/startup"] > 0
    account = goodput.read(tiny_run)
    assert sum(account["seconds"].values()) == pytest.approx(account["until"] - account["since"], abs=1e-3)
    assert account["until"] <= time.time()
    row = status.of_folder(tiny_run)[0]
    assert row["goodput"] == account["goodput"] and row["seconds"] == account["seconds"] and row["starts"] >= 1
    row |= {"goodput": 0.75, "seconds": dict.fromkeys(goodput.REASONS, 0.0) | {"step": 3.0, "compile": 1.0}}
    assert status.spoken("goodput", row) == "75% (compile 25%)"
