"""Supervisors that go on without those that are lost, over real sockets and with real processes.

The training process is a stand-in; that of lgm itself is in test_elastic_training.py.
"""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from lgm import config as schema
from lgm.cli import main
from lgm.parallel.mesh import refitted
from lgm.train.placing import fitting

SUPERVISE = """
import sys
from lgm.processes import Bounds, Place, supervise
index, count, address, least = sys.argv[1:5]
names = tuple(f"n{i}" for i in range(int(count)))
place = Place(int(index), int(count), address, "test", job="test", names=names)
sys.exit(supervise(place, Bounds(4, 60, 60), [sys.executable, "-c", sys.argv[5]], int(least)))
"""
# each start notes its place under the supervisor's pid; a run of four waits to be hit, a smaller one ends well
CHILD = """
import json, os, socket, sys, time
told = json.loads(os.environ["LGM_MEMBER"])
channel = socket.socket(fileno=int(os.environ["LGM_CHANNEL"]))
lines = channel.makefile()
send = lambda **message: channel.sendall(json.dumps(message).encode() + b"\\n")
send(barrier="start", value="", seconds=60.0)
assert json.loads(lines.readline()) == {"release": "start"}
path = f"{os.environ['PLACES']}/{os.getppid()}"
starts = len(open(path).readlines()) if os.path.exists(path) else 0
send(step=17)
open(path, "a").write(f"{told['index']} {told['count']} {told['shrunk']} {os.getpid()}\\n")
"""
WAIT = "time.sleep(0.5 if told['shrunk'] else 60)"


@pytest.fixture
def start(tmp_path):
    running = []

    def begin(child=WAIT, count=4, least=1):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        for index in range(count):
            command = [sys.executable, "-c", SUPERVISE, *map(str, (index, count, address, least)), CHILD + child]
            running.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True,
                                            env=os.environ | {"PLACES": str(tmp_path)}))
        wait_for(lambda: all(places(tmp_path, process) for process in running))
        return running

    yield begin
    for process in running:
        if process.poll() is None:
            process.kill()
            process.wait()


def wait_for(what):
    deadline = time.monotonic() + 120
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def places(folder, process):
    """(index, count, shrunk, pid of the worker) of every start under a supervisor."""
    path = folder / str(process.pid)
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def ends(processes):
    texts = [process.communicate(timeout=120)[1] for process in processes]
    return [process.returncode for process in processes], texts


@pytest.mark.parametrize("victim", [2, 0])
@pytest.mark.slow
def test_a_process_is_lost_with_its_supervisor_and_the_others_go_on_without_it(start, tmp_path, victim):
    processes = start()
    processes[victim].kill()
    left = [index for index in range(4) if index != victim]
    codes, texts = ends([processes[index] for index in left])
    assert codes == [0, 0, 0], texts
    for number, index in enumerate(left):
        assert [row[:3] for row in places(tmp_path, processes[index])] == [
            [str(index), "4", "False"], [str(number), "3", "True"]]
        assert f"process {victim} (n{victim}) lost: 3 processes go on" in texts[number]
        assert not os.path.exists(f"/proc/{places(tmp_path, processes[index])[0][3]}")  # no worker of before is left


@pytest.mark.slow
def test_two_are_lost_at_once_and_a_frozen_one_is_waited_for_no_longer_than_patience(start, tmp_path):
    processes = start()
    processes[0].kill()
    processes[3].send_signal(signal.SIGSTOP)
    codes, texts = ends(processes[1:3])
    assert codes == [0, 0], texts
    assert [row[:2] for row in places(tmp_path, processes[2])] == [["2", "4"], ["1", "2"]]


@pytest.mark.slow
def test_a_worker_that_dies_alone_is_started_again_with_all(start, tmp_path):
    processes = start(child="time.sleep(60 if starts == 0 else 0.5)")
    os.kill(int(places(tmp_path, processes[1])[0][3]), signal.SIGKILL)
    codes, texts = ends(processes)
    assert codes == [0] * 4, texts
    assert [row[:3] for row in places(tmp_path, processes[1])] == [["1", "4", "False"]] * 2


@pytest.mark.slow
def test_too_few_are_left(start):
    processes = start(count=3, least=3)
    processes[1].kill()
    codes, texts = ends([processes[0], processes[2]])
    assert codes == [76, 76] and all("2 processes are left, fewer than --elastic=3" in text for text in texts), texts


@pytest.mark.slow
def test_a_fault_that_comes_back_ends_the_run(start, tmp_path):
    codes, texts = ends(start(count=2, child="time.sleep(0.3); os.kill(os.getpid(), 9)"))
    assert 0 not in codes and all("3 starts did not come beyond step" in text for text in texts), texts
    assert [len(path.read_text().splitlines()) for path in tmp_path.iterdir()] == [4, 4]


@pytest.mark.slow
def test_only_as_many_go_on_as_the_run_divides_over(start, tmp_path):
    child = """
if told["shrunk"] and told["count"] == 3:
    send(fits=2); time.sleep(0.5); sys.exit(2)
""" + WAIT
    processes = start(child=child)
    processes[1].kill()
    codes, texts = ends([processes[index] for index in (0, 2, 3)])
    assert codes[:2] == [0, 0] and "1 left aside" in texts[0], texts
    assert places(tmp_path, processes[2])[-1][:2] == ["1", "2"]


@pytest.mark.parametrize("sizes, count, expected", [
    (dict(data=4), 3, (3, 1)), (dict(data=-1), 3, (3, 1)), (dict(data=1, fsdp=64), 63, (1, 63)),
    (dict(data=8, fsdp=8), 56, (7, 8)), (dict(data=8, fsdp=8), 63, (7, 9)), (dict(data=2, fsdp=-1), 6, (2, 3)),
    (dict(data=2, fsdp=-1), 5, (1, 5)), (dict(data=-1, fsdp=4), 6, (1, 6)),
])
def test_data_and_fsdp_take_the_devices_that_are_left(sizes, count, expected):
    fitted = refitted(sizes, count)
    assert (fitted["data"], fitted["fsdp"]) == expected


def test_other_axes_stay_and_what_cannot_fit_is_left_to_its_error():
    fitted = refitted(dict(data=4, tensor=2), 6)
    assert (fitted["data"], fitted["tensor"]) == (3, 2)
    assert refitted(dict(data=4, tensor=2), 7) == dict(data=4, tensor=2)


@pytest.mark.parametrize("word", ["0", "3", "x", "-1"])
def test_a_least_number_that_is_none(word, capsys):
    command = ["train", "--config=x.py", "--workdir=x", "--coordinator=127.0.0.1:1", "--processes=2", "--process-id=0"]
    assert main([*command, f"--elastic={word}"]) == 2
    assert f"--elastic={word} (or LGM_ELASTIC) must be a number of processes from 1 to 2" in capsys.readouterr().err


def test_as_many_processes_as_the_batch_and_the_mesh_divide_over(tiny_config):
    config = dataclasses.replace(schema.load(tiny_config, []), batch_size=96)
    assert [fitting(config, count, 1) for count in (8, 7, 5, 1)] == [8, 6, 4, 1]
    assert fitting(dataclasses.replace(config, accumulate=8), 5, 2) == 3  # pieces of 12 over 6 devices
    assert fitting(dataclasses.replace(config, mesh=schema.Mesh(data=4, tensor=2)), 7, 1) == 6
    assert fitting(dataclasses.replace(config, mesh=schema.Mesh(data=8, fsdp=8)), 7, 8) == 6
    assert fitting(config, 3, 5) == 0
