"""A run's folder is held by one process: who lives keeps it, who is dead loses it."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from lgm.parsing import ConfigError
from lgm.train import lock
from lgm.train.lock import NAME, Lock, hold

OTHERS = {"host": "elsewhere", "machine": "another", "process": 7, "started": "1", "id": "x", "beat": 3,
          "since": "2026-01-01T00:00:00+00:00"}  # fmt: skip


def test_a_folder_that_is_held_is_refused_in_one_line_and_free_afterwards(tmp_path):
    with hold(tmp_path / "run") as held:
        assert json.loads((tmp_path / "run" / NAME).read_text())["process"] == os.getpid()
        with pytest.raises(ConfigError) as error, hold(tmp_path / "run"):
            pass
        line = str(error.value)
        assert "\n" not in line and f"process {os.getpid()} on {socket.gethostname()} since" in line
        held.check()
    assert os.listdir(tmp_path / "run") == []
    with hold(tmp_path / "run"):
        pass


def test_the_lock_of_a_process_that_is_gone_or_was_another_is_taken_over(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    mine = Lock(tmp_path / NAME).mine
    dead = [mine | {"process": process.pid, "started": "5"}, mine | {"started": "5"}, mine | {"process": -1},
            mine | {"process": None}]  # fmt: skip
    for found in dead:
        (tmp_path / NAME).write_text(json.dumps(found))
        with hold(tmp_path) as held:
            assert json.loads((tmp_path / NAME).read_text())["id"] == held.mine["id"]
        assert os.listdir(tmp_path) == []


def test_a_holder_whose_supervisor_was_killed_is_waited_for_and_one_that_is_supervised_is_not(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5)"])
    found = Lock(tmp_path / NAME).mine | {"process": holder.pid, "started": lock._started(holder.pid)}
    supervised = found | {"supervisor": [os.getpid(), lock._started(os.getpid())]}
    (tmp_path / NAME).write_text(json.dumps(supervised))
    with pytest.raises(ConfigError, match=f"held by process {holder.pid}"), hold(tmp_path):
        pass
    (tmp_path / NAME).write_text(json.dumps(supervised | {"supervisor": [os.getpid(), "5"]}))
    with hold(tmp_path):
        assert holder.poll() is not None


@pytest.mark.parametrize("content", ["", "7", "[]", "{", "[" * 100_000, json.dumps(OTHERS)])
def test_a_lock_from_elsewhere_without_a_beat_is_taken_over_after_a_while(content, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "SILENCE", 0.2)
    (tmp_path / NAME).write_text(content)
    start = time.monotonic()
    with hold(tmp_path):
        assert time.monotonic() - start >= 0.2


def test_a_lock_from_elsewhere_that_beats_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "SILENCE", 10.0)
    path, ended = tmp_path / NAME, threading.Event()
    path.write_text(json.dumps(OTHERS))

    def beat():
        count = 3
        while not ended.wait(0.2):
            count += 1
            temporary = tmp_path / "next"
            temporary.write_text(json.dumps(OTHERS | {"beat": count}))
            temporary.replace(path)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(ConfigError, match="process 7 on elsewhere since 2026-01-01"), hold(tmp_path):
            pass
    finally:
        ended.set()
        thread.join()
    assert json.loads(path.read_text())["id"] == "x"


def test_a_holder_beats_and_sees_when_it_has_lost_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.02)
    with hold(tmp_path) as held:
        until = time.monotonic() + 20
        while json.loads((tmp_path / NAME).read_text())["beat"] < 2 and time.monotonic() < until:
            time.sleep(0.01)
        assert json.loads((tmp_path / NAME).read_text())["beat"] >= 2
        (tmp_path / NAME).write_text(json.dumps(OTHERS))
        while not held.lost and time.monotonic() < until:
            time.sleep(0.01)
        with pytest.raises(RuntimeError, match="taken over by process 7 on elsewhere"):
            held.check()
    assert json.loads((tmp_path / NAME).read_text())["id"] == "x"  # another's lock is not removed


def test_of_many_starts_at_once_one_gets_the_folder_of_a_dead_process(tmp_path):
    for _ in range(20):
        (tmp_path / NAME).write_text(json.dumps(Lock(tmp_path / NAME).mine | {"started": "5"}))
        got, done = [], threading.Barrier(8)

        def start():
            mine = Lock(tmp_path / NAME)
            done.wait()
            try:
                mine.take()
                got.append(mine)
            except ConfigError:
                pass

        threads = [threading.Thread(target=start) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 1
        got[0].release()
        assert os.listdir(tmp_path) == []
