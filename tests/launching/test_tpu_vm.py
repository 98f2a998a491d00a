"""The driver of Cloud TPU VMs against a gcloud that fails in every way that matters, and a whole launch with a fake."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
import types
from pathlib import Path

import gcloud_flags
import jobs
import pytest

import lgm
from lgm.cli import main
from lgm.launching import tpu_vm
from lgm.launching.machines import TPUS, tpu_slices
from lgm.launching.tpu_drive import SETUPS, Done, Driver
from lgm.parsing import ConfigError

OK = Done(0)
SSH = Done(255, "", "ssh: connect to host 10.0.0.1 port 22: Connection refused")
BUSY = Done(1, "", "ERROR: (gcloud.compute.tpus) UNAVAILABLE: The service is currently unavailable.")
DENIED = Done(1, "", "ERROR: (gcloud.compute.tpus) PERMISSION_DENIED: Permission denied on resource")
QUOTA = Done(1, "", "ERROR: (gcloud.compute.tpus) Quota limit 'TPUV6EPreemptiblePerProject' has been exceeded.")
EXISTS = Done(1, "", "ERROR: (gcloud.compute.tpus) ALREADY_EXISTS: Resource already exists")
MISSING = Done(1, "", "ERROR: (gcloud.compute.tpus) NOT_FOUND: Resource was not found")


class Cloud:
    """A project with one queued resource. `script` has, for each verb, what its next calls answer before it does as it
    should; a state's name in `states` is what the resource goes through after it was asked for."""

    def __init__(self, states=("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"), there=False, **script):
        self.script = {verb: list(answers) for verb, answers in script.items()}
        self.path, self.states = states, list(states) if there else None
        self.recorded, self.slept, self.now = [], 0.0, 0.0

    def __call__(self, words):
        flags = gcloud_flags.parse(words)
        assert (flags.zone, flags.project) == ("zone", "project")
        verb = words[4]
        if verb == "ssh":
            inner = shlex.split(next(w for w in words if w.startswith("--command=")).removeprefix("--command="))
            verb = re.search(r"lgm-worker.sh (\w+)", inner[-1]).group(1)
        self.recorded.append(f"{verb} {words[5]}")
        answers = self.script.get(verb)
        if answers:
            answer = answers.pop(0)
            if callable(answer):
                answer = answer(self)
            if answer is not None:
                return answer
        return getattr(self, f"_{verb}", lambda: OK)()

    def _create(self):
        assert self.states is None, "created twice"
        self.states = list(self.path)
        return OK

    def _describe(self):
        if not self.states:
            return MISSING
        state = self.states[0]
        if len(self.states) > 1:
            self.states.pop(0)
        return Done(0, state + "\n")

    def _delete(self):
        self.states = None
        return OK

    def sleep(self, seconds):
        self.slept += seconds

    def lose(self, state="SUSPENDED", code=255):
        """An answer during which the machines are taken away."""
        def answer(cloud):
            cloud.states = [state]
            return Done(code, "", "client_loop: send disconnect: Broken pipe")
        return answer


def drive(cloud, slices=1, runs=None, **changes):
    """(exit code, what the driver said) of one run over `cloud`."""
    order = dict(name="run", accelerator=["--accelerator-type=v6e-16"], slices=slices, runtime="v2-alpha-tpuv6e",
                 runs=runs, project="project", zone="zone", spot=True, reserved=False, network="", service_account="",
                 restarts=2, tries=3, pause_seconds=20.0, wait_hours=1.0) | changes
    said = []
    code = Driver(order, "echo worker", cloud, cloud.sleep, lambda: cloud.now, said.append).run()
    assert cloud.states is None, "slices are left, and cost money"
    return code, "\n".join(said)


def calls(cloud, *verbs):
    return [line.split()[0] for line in cloud.recorded if line.split()[0] in verbs]


WORK = ("create", "delete", "setup", "start", "wait")


@pytest.mark.parametrize(("topology", "slices", "asked"), [
    ("v4:2x2x2", 1, ["--type=v4", "--topology=2x2x2"]), ("v5e:1x1", 1, ["--accelerator-type=v5litepod-1"]),
    ("v5e:4x4", 2, ["--accelerator-type=v5litepod-16"]), ("v5e:16x16", 1, ["--accelerator-type=v5litepod-256"]),
    ("v5p:2x2x1", 1, ["--accelerator-type=v5p-8"]), ("v5p:2x2x4", 1, ["--accelerator-type=v5p-32"]),
    ("v5p:4x4x8", 1, ["--accelerator-type=v5p-256"]), ("v5p:8x16x16", 1, ["--accelerator-type=v5p-4096"]),
    ("v6e:8x8", 4, ["--accelerator-type=v6e-64"]),
])
def test_gcloud_takes_every_command_of_a_launch(topology, slices, asked, monkeypatch):
    """Their names, from Google's tables of sizes: chips of v5e and v6e, cores of v5p."""
    machine = tpu_slices(topology, slices)
    monkeypatch.setitem(jobs.ENGINES, "tpu-vm", (tpu_vm, machine, {}))
    job = jobs.job("tpu-vm", jobs.read("configs/quickstart.py")[0], monkeypatch)
    commands = [shlex.split(line) for line in (*job.watch, *job.notes, *job.cancel.split("; ")) if "gcloud" in line]
    created = [words for words in commands if "create" in words]
    assert len(created) == 1 and set(asked) <= set(created[0])
    for words in commands:
        gcloud_flags.parse(words)


@pytest.mark.parametrize("words", [
    ["--type=v6e", "--topology=4x4"], ["--accelerator-type=v6e-16", "--type=v4", "--topology=2x2x1"], ["--type=v4"],
    ["--accelerator-type=v6e-16", "--preemptible"], [],
])
def test_the_parser_refuses_what_gcloud_refuses(words):
    line = ["gcloud", "compute", "tpus", "queued-resources", "create", "x", "--node-id=x", "--zone=z",
            "--runtime-version=r"]  # fmt: skip
    gcloud_flags.parse([*line, "--accelerator-type=v6e-16"])
    with pytest.raises(ValueError, match="ERROR"):
        gcloud_flags.parse([*line, *words])


def test_a_slice_that_has_no_name_is_refused_with_the_one_that_has():
    assert len(TPUS["v5p"].accelerator("4x4x12")) == 1
    with pytest.raises(ConfigError, match="256 chips of Cloud TPU VMs come as 4x8x8"):
        TPUS["v5p"].accelerator("4x4x16")


def test_nothing_fails():
    cloud = Cloud()
    assert drive(cloud)[0] == 0
    assert calls(cloud, *WORK) == ["create", "setup", "start", "wait", "delete"]


def test_every_slice_is_spoken_to():
    cloud = Cloud()
    assert drive(cloud, slices=2)[0] == 0
    assert [line for line in cloud.recorded if line.startswith("start")] == ["start run-0", "start run-1"]


@pytest.mark.parametrize("verb", ["create", "describe", "delete", "setup", "start", "wait"])
def test_a_failing_network_is_tried_again(verb):
    cloud = Cloud(**{verb: [BUSY, BUSY]})
    code, said = drive(cloud)
    assert code == 0 and cloud.slept >= 40 and "UNAVAILABLE" in said


@pytest.mark.parametrize("verb", ["setup", "start", "wait"])
def test_ssh_is_tried_again_while_the_machine_boots(verb):
    cloud = Cloud(**{verb: [SSH, SSH]})
    assert drive(cloud)[0] == 0
    assert calls(cloud, verb) == [verb] * 3 and calls(cloud, "create") == ["create"]


def test_ssh_that_never_comes_ends_the_run():
    code, said = drive(Cloud(setup=[SSH] * 9))
    assert code == 1 and "could not be reached in 3 attempts" in said and "Connection refused" in said


def test_a_line_that_drops_after_it_held_is_taken_up_as_often_as_it_drops():
    def drop(cloud):
        cloud.now += 4000
        return SSH

    cloud = Cloud(wait=[drop] * 20)
    assert drive(cloud)[0] == 0
    assert calls(cloud, "start") == ["start"]  # training went on all the while


@pytest.mark.parametrize(("verb", "answer"), [("create", DENIED), ("create", QUOTA), ("describe", DENIED),
                                              ("setup", DENIED)])
def test_what_cannot_help_is_not_tried_again(verb, answer):
    cloud = Cloud(**{verb: [answer]})
    code, said = drive(cloud)
    assert code == 1 and said.count(answer.err[-20:]) == 1 and calls(cloud, "start") == []


def test_slices_that_are_there_are_taken_up():
    cloud = Cloud(there=True)
    assert drive(cloud)[0] == 0 and calls(cloud, "create") == []
    cloud = Cloud(create=[lambda cloud: cloud._create() and EXISTS])  # another call of ours had got through
    assert drive(cloud)[0] == 0


@pytest.mark.parametrize("state", ["SUSPENDED", "FAILED", "SUSPENDING"])
@pytest.mark.parametrize("verb", ["setup", "start", "wait"])
def test_preempted_slices_are_asked_for_again(verb, state):
    cloud = Cloud()
    cloud.script[verb] = [cloud.lose(state), cloud.lose(state)]
    code, said = drive(cloud)
    assert code == 0 and calls(cloud, "create") == ["create"] * 3 and "asking for them again" in said


def test_an_error_of_training_while_its_machines_go_is_a_preemption():
    cloud = Cloud()
    cloud.script["wait"] = [cloud.lose(code=2)]
    assert drive(cloud)[0] == 0 and calls(cloud, "create") == ["create"] * 2


def test_a_request_that_fails_while_it_waits_is_made_again():
    cloud = Cloud(states=["WAITING_FOR_RESOURCES", "FAILED"], create=[])
    cloud.script["delete"] = [lambda cloud: setattr(cloud, "path", ["ACTIVE"])]
    assert drive(cloud)[0] == 0 and calls(cloud, "create") == ["create"] * 2


def test_no_slices_in_time():
    code, said = drive(Cloud(states=["WAITING_FOR_RESOURCES"]))
    assert code == 1 and "no slices within 1 hours" in said


def test_saved_training_is_started_again_without_counting():
    cloud = Cloud(wait=[Done(75)] * 5)
    assert drive(cloud)[0] == 0 and calls(cloud, "start") == ["start"] * 6 and calls(cloud, "create") == ["create"]


@pytest.mark.parametrize("code", [76, 137])
def test_lost_processes_are_started_again_so_many_times(code):
    assert drive(Cloud(wait=[Done(code)] * 2))[0] == 0
    failed, said = drive(Cloud(wait=[Done(code)] * 3))
    assert failed == 1 and "lost 3 times" in said


def test_an_error_of_training_is_final_and_said():
    cloud = Cloud(wait=[Done(2, "", "lgm train: config.batch_size=3 is not divisible")])
    code, said = drive(cloud)
    assert code == 2 and "config.batch_size=3" in said and calls(cloud, "start") == ["start"]


def test_an_environment_that_fails_to_install():
    assert drive(Cloud(setup=[Done(1, "", "pip: no route")] * (SETUPS - 1)))[0] == 0
    code, said = drive(Cloud(setup=[Done(1, "", "pip: no such package")] * SETUPS))
    assert code == 1 and "could not be set up" in said and "no such package" in said


def test_slices_that_cannot_be_deleted_are_named():
    cloud = Cloud(delete=[BUSY] * 9)
    said = []
    order = dict(name="run", accelerator=["--accelerator-type=v6e-16"], slices=1, runtime="r", runs=None,
                 project="project", zone="zone", spot=False, reserved=False, network="", service_account="", restarts=2,
                 tries=3, pause_seconds=1.0, wait_hours=1.0)
    assert Driver(order, "", cloud, cloud.sleep, say=said.append).run() == 1
    assert "delete run by hand" in said[-1]


def test_a_sweep_is_run_by_run():
    cloud = Cloud()
    assert drive(cloud, runs=[0, 4])[0] == 0
    assert calls(cloud, *WORK) == ["create", "setup", "start", "wait", "setup", "start", "wait", "delete"]


@pytest.mark.parametrize(("told", "wanted"), [
    (None, f"lgm[tpu]=={lgm.__version__}"),
    ('{"url": "https://x.example/lgm.whl"}', "lgm[tpu] @ https://x.example/lgm.whl"),
    ('{"url": "https://git.example/lgm", "vcs_info": {"vcs": "git", "commit_id": "abc"}}',
     "lgm[tpu] @ git+https://git.example/lgm@abc"),
])
def test_workers_install_what_was_installed_here(monkeypatch, told, wanted):
    monkeypatch.setattr(tpu_vm.importlib.metadata, "distribution", lambda name: types.SimpleNamespace(
        read_text=lambda file: told))  # fmt: skip
    assert tpu_vm._requirement("") == wanted
    assert tpu_vm._requirement("https://mine.example/lgm.whl") == "lgm[tpu] @ https://mine.example/lgm.whl"


def test_a_wheel_of_this_machine_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(tpu_vm.importlib.metadata, "distribution", lambda name: types.SimpleNamespace(
        read_text=lambda file: '{"url": "file:///home/me/lgm-0.1.0-py3-none-any.whl"}'))  # fmt: skip
    with pytest.raises(ConfigError, match="/home/me/lgm-0.1.0-py3-none-any.whl, which TPU VMs.*site.tpu_vm.package"):
        tpu_vm._requirement("")


@pytest.mark.parametrize("have", [lgm.__version__, "0.0.1"])
def test_a_worker_installs_the_package_and_no_other_version(tmp_path, monkeypatch, have):
    job = jobs.job("tpu-vm", jobs.read("configs/quickstart.py")[0], monkeypatch,
                   tpu_vm=dict(package="https://x.example/lgm.whl"))  # fmt: skip
    script = next(text for path, text in job.files.items() if path.name == "worker.sh")
    python = tmp_path / "lgm-quickstart/venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/told\n[[ $1 == -c ]] && echo {have}\nexit 0\n')
    (tmp_path / "gcsfuse").write_text("")  # it is there already
    for program in (python, tmp_path / "gcsfuse"):
        program.chmod(0o755)
    where = {"HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-s", "setup"], input=script, env=where, capture_output=True, text=True)
    assert "-m pip install --quiet lgm[tpu] @ https://x.example/lgm.whl" in (tmp_path / "told").read_text()
    assert done.returncode == (have != lgm.__version__) and ("not the launched" in done.stderr) == done.returncode
    assert (tmp_path / "lgm-quickstart/ready").exists() == (not done.returncode)


def test_a_whole_launch_with_a_fake_gcloud(tmp_path, monkeypatch, capfd):
    """From `lgm launch` to the worker's script: the fake runs what it is sent, here, with a fake training program."""
    ssh = tmp_path / "worker"
    python = ssh / "lgm-quickstart/venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/trained\n[[ -f {tmp_path}/once ]] || '
                      f'{{ touch {tmp_path}/once; exit 75; }}\n')
    python.chmod(0o755)
    (ssh / "lgm-quickstart/ready").write_text(jobs.COMMIT)
    programs = tmp_path / "bin"
    programs.mkdir()
    fake = f"""#!{sys.executable}
import json, os, pathlib, subprocess, sys
sys.path.append({str(Path(__file__).parent)!r})
import gcloud_flags
gcloud_flags.parse(["gcloud", *sys.argv[1:]])
words, state = sys.argv[1:], pathlib.Path("{tmp_path}/state")
with open("{tmp_path}/recorded", "a") as file:
    file.write(json.dumps(words) + "\\n")
verb = words[3] if words[:2] == ["compute", "tpus"] else words[0]
if verb == "create":
    state.write_text("ACTIVE")
elif verb == "describe":
    sys.exit(print(state.read_text()) if state.exists() else "ERROR: NOT_FOUND")
elif verb == "delete":
    state.unlink(missing_ok=True)
elif verb == "ssh":
    command = next(w for w in words if w.startswith("--command=")).removeprefix("--command=")
    os.environ["HOME"] = "{ssh}"
    sys.exit(subprocess.run(["sh", "-c", command], cwd="{ssh}").returncode)
"""
    for name, text in {"gcloud": fake, "sudo": "#!/bin/sh\nexec \"$@\"\n"}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    site = tmp_path / "site.toml"
    site.write_text(f"""
[env]
GREETING = "a 'quoted' $HOME"
[tpu_vm]
project = "p"
zone = "us-east5-a"
pause_seconds = 0.05
mount = "{tmp_path}/mnt"
""")
    monkeypatch.setattr(tpu_vm, "_code", lambda repository: (jobs.COMMIT, "https://git.example/lgm"))
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(jobs.ROOT))
    monkeypatch.chdir(tmp_path)
    words = ["launch", "--on=tpu-vm", f"--config={jobs.ROOT}/configs/quickstart.py", "--workdir=runs/q",
             "--topology=v6e:1x1", f"--site={site}"]
    assert main([*words, "--dry-run"]) == 0
    dry = capfd.readouterr().out
    assert "tpus queued-resources create quickstart --node-id=quickstart --accelerator-type=v6e-1 --runtime" in dry
    assert not (tmp_path / "runs").exists() and not (tmp_path / "recorded").exists()
    assert main(words) == 0
    told = capfd.readouterr().out
    assert "queued-resources delete quickstart" in told and "tail -F runs/q/launch/job.log" in told
    log = tmp_path / "runs/q/launch/job.log"
    deadline = time.monotonic() + 120
    while not (log.exists() and re.search(r"done|ended with", log.read_text())) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert log.read_text().rstrip().endswith("done"), log.read_text()
    assert "training saved and stopped: starting again" in log.read_text()
    lines = (tmp_path / "trained").read_text().splitlines()
    assert lines == [f"-m lgm.cli train --config={ssh}/lgm-quickstart/config.json --workdir={tmp_path}/mnt/runs/q"] * 2
    stored = json.loads((ssh / "lgm-quickstart/config.json").read_text())
    assert stored["name"] == "quickstart"
    verbs = [(json.loads(line) + [""] * 4)[3] for line in Path(tmp_path / "recorded").read_text().splitlines()]
    assert [v for v in verbs if v != "describe"] == ["create", "ssh", "ssh", "ssh", "ssh", "ssh", "ssh", "delete"]
    assert not subprocess.run(["pgrep", "-f", str(tmp_path / "mnt")], capture_output=True).stdout
