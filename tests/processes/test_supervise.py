"""Supervisors over real sockets and real processes.

The training process is a stand-in that speaks to its supervisor and then does what the test wants of it; that of lgm
itself is in test_verbs.py and test_elastic_training.py.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

SUPERVISE = """
import sys
from lgm.processes import Bounds, Place, supervise
index, count, address, patience, wait = sys.argv[1:6]
names = tuple(f"n{i}" for i in range(int(count)))
place = Place(int(index), int(count), address, "test", job="test", names=names)
sys.exit(supervise(place, Bounds(float(patience), float(wait), 0.5), [sys.executable, "-c", sys.argv[6], index]))
"""
CHILD = """
import json, os, signal, socket, sys, time
me = int(sys.argv[1])
channel = socket.socket(fileno=int(os.environ["LGM_CHANNEL"]))
lines = channel.makefile()
send = lambda **message: channel.sendall(json.dumps(message).encode() + b"\\n")
def barrier(name, value="", seconds=3.0):
    send(barrier=name, value=value, seconds=seconds)
    assert json.loads(lines.readline()) == {"release": name}
open(f"{os.environ['PIDS']}/{me}", "w").write(str(os.getpid()))
barrier("start", seconds=60.0)
send(step=17)
time.sleep(0.5)
"""


@pytest.fixture
def start(tmp_path):
    """`start(child, count, ...)` starts supervisors; those still there at the end are ended."""
    running = []

    def begin(child, count=2, which=None, patience=60.0, wait=60.0):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        environment = os.environ | {"PIDS": str(tmp_path)}
        for index in range(count) if which is None else which:
            command = [sys.executable, "-c", SUPERVISE, *map(str, (index, count, address, patience, wait)),
                       CHILD + child]
            running.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment))
        return running

    yield begin
    for process in running:
        if process.poll() is None:
            process.kill()
            process.wait()


def ends(processes):
    """(exit codes, what each wrote) when all have ended."""
    texts = [process.communicate(timeout=100)[1] for process in processes]
    return [process.returncode for process in processes], texts


def child_pid(folder, index):
    path = folder / str(index)
    while not (path.exists() and path.read_text()):
        time.sleep(0.02)
    return int(path.read_text())


def test_all_end_well(start):
    codes, texts = ends(start("time.sleep(1.5)", count=3))
    assert codes == [0, 0, 0]
    assert re.search(r"heartbeat: 3 of 3 processes answer, step 17, \d+\.\d s ago", texts[0])
    assert texts[1:] == ["", ""]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_is_named_by_all(start, victim):
    codes, texts = ends(start(f"os.kill(os.getpid(), signal.SIGKILL) if me == {victim} else time.sleep(60)", count=3))
    assert codes == [137 if i == victim else 76 for i in range(3)]
    for text in texts:
        assert re.search(rf"^lgm: process {victim} \(n{victim}, pid \d+\) was killed by SIGKILL \(out of memory\?\) "
                         "after step 17; all processes stop", text, re.M), text


@pytest.mark.parametrize("victim", [0, 1])
def test_a_supervisor_that_is_killed_takes_its_machine_with_it(start, tmp_path, victim):
    supervisors = start("[lines.readline(), os._exit(76)]", count=3)
    for index in range(3):
        child_pid(tmp_path, index)
    time.sleep(1)
    supervisors[victim].kill()
    codes, texts = ends(supervisors)
    assert codes == [-9 if i == victim else 76 for i in range(3)]
    for text in (texts[i] for i in range(3) if i != victim):
        assert re.search(rf"^lgm: process {victim} \(n{victim}.* is gone: its connection closed", text, re.M), text


@pytest.mark.parametrize("victim", [0, 1])
def test_a_machine_that_falls_silent_is_lost_after_the_bound(start, tmp_path, victim):
    supervisors = start("time.sleep(60)", count=2, patience=3.0)
    child_pid(tmp_path, victim)
    time.sleep(1)
    supervisors[victim].send_signal(signal.SIGSTOP)
    other = supervisors[1 - victim]
    text = other.communicate(timeout=60)[1]
    assert other.returncode == 76
    assert re.search(rf"process {victim} \(n{victim}.* has not been heard from for 3 s", text), text
    os.kill(child_pid(tmp_path, victim), signal.SIGKILL)
    supervisors[victim].kill()


def test_who_is_late_at_a_barrier_is_named(start):
    codes, texts = ends(start("time.sleep(60) if me == 2 else barrier('data is ready')", count=3))
    assert codes == [76, 76, 76]
    for text in texts:
        assert re.search(r"process 2 \(n2, pid \d+\) did not reach 'data is ready' within 3 s", text), text


def test_who_does_not_come_is_named(start):
    codes, texts = ends(start("", count=3, which=(0, 2), wait=2.0))
    assert codes == [76, 76]
    assert all("process 1 (n1) did not come within 2 s" in text for text in texts), texts
    codes, texts = ends(start("", count=2, which=(1,), wait=1.0)[2:])
    assert codes != [0] and "process 0 (n0) at 127.0.0.1" in texts[0] and "within 1 s" in texts[0]


def test_values_that_differ_at_a_barrier_stop_all(start):
    codes, texts = ends(start("barrier('the same config', 'a' if me else 'b')"))
    assert codes == [2, 2]
    assert all("process 1 (n1, pid" in t and "disagrees with process 0 at 'the same config': a, not b" in t
               for t in texts), texts


def test_the_cause_is_named_and_not_who_failed_first(start):
    """Survivors of a kill often fail by themselves, and are heard of before the one that was killed."""
    codes, texts = ends(start("time.sleep(me % 2)\nos.abort() if me == 0 else sys.exit(2) if me == 2 else "
                              "os.kill(os.getpid(), 9)", count=3))
    assert codes == [76, 137, 76]
    assert all("process 1 (n1" in text and "SIGKILL" in text for text in texts), texts


def test_a_plain_error_ends_all_with_its_code(start):
    codes, texts = ends(start("sys.exit(2) if me == 1 else time.sleep(60)"))
    assert codes == [2, 2]
    assert "process 1 (n1" in texts[0] and "ended with exit code 2; its own log says why" in texts[0]
    assert texts[1] == ""  # the training process itself has said what was wrong


def test_sigterm_reaches_the_training_process(start, tmp_path):
    child = "signal.signal(signal.SIGTERM, lambda *a: os._exit(75))\nsend(step=18)\ntime.sleep(60)"
    supervisors = start(child)
    for index in range(2):
        child_pid(tmp_path, index)
    time.sleep(2)
    for supervisor in supervisors:
        supervisor.send_signal(signal.SIGTERM)
    assert ends(supervisors)[0] == [75, 75]


def test_sigterm_before_the_others_have_come(start):
    supervisors = start("", count=2, which=(0,))
    time.sleep(1.5)
    supervisors[0].send_signal(signal.SIGTERM)
    assert ends(supervisors)[0] == [75]


def test_strangers_at_the_port_do_no_harm(start, tmp_path):
    first = start("time.sleep(1)", count=2, which=(0,))
    address = first[0].args[5]
    host, port = address.split(":")
    for words in (b"", b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b'{"index": [], "job": "test"}\n'):
        until = time.monotonic() + 60
        while True:
            try:
                with socket.create_connection((host, int(port)), timeout=5) as line:
                    line.sendall(words)
                break
            except ConnectionRefusedError:
                assert time.monotonic() < until
                time.sleep(0.05)
    with socket.create_connection((host, int(port)), timeout=5) as line:
        line.sendall(b'{"index": 1, "count": 2, "job": "another", "host": "x", "pid": 1}\n')
        assert b"held by another run" in line.makefile("rb").readline()
    second = subprocess.Popen([*first[0].args[:3], "1", *first[0].args[4:]], stderr=subprocess.PIPE, text=True,
                              env=os.environ | {"PIDS": str(tmp_path)})
    assert ends([first[0], second])[0] == [0, 0]


def test_the_port_of_another_run_is_refused(start):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [sys.executable, "-c", SUPERVISE, "0", "2", place, "1", "1", "pass"]
        text = subprocess.run(command, capture_output=True, text=True, timeout=60).stderr
    assert place in text and "process 0 cannot listen there" in text
