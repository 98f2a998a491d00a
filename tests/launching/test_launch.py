"""`lgm launch` and `lgm status` from the command line: what is refused, what is said, and what this machine runs."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
import tomllib
import types
from pathlib import Path

import jobs
import pytest

from lgm.cli import main
from lgm.launching import forms, gke, machines, render, slurm, status
from lgm.launching import site as sites
from lgm.launching.job import Request
from lgm.launching.launch import Words, asked_for
from lgm.parsing import ConfigError, parse
from lgm.processes.affinity import ranges
from lgm.scaling.compute import Machine

QUICKSTART = str(jobs.ROOT / "configs/quickstart.py")


@pytest.fixture
def site(tmp_path):
    def write(text):
        path = tmp_path / "site.toml"
        path.write_text(text)
        return f"--site={path}"

    return write


def refused(capsys, *words):
    assert main(["launch", *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("lgm launch: "), lines
    return lines[0]


@pytest.mark.parametrize(("words", "parts"), [
    (["--on=slurm", "--nodes=3"], ["config.batch_size=16", "24 shares", "3 x 8 h100"]),
    (["--on=slurm", "--nodes=0"], ["--nodes=0"]),
    (["--on=slurm", "--topology=v5e:4x4"], ["--topology=v5e:4x4", "--nodes"]),
    (["--on=slurm", "--at-once=2"], ["--at-once", "lgm launch sweep"]),
    (["--on=slurm", "--config.mesh.fsdp=5"], ["config.mesh", "fsdp=5", "8 devices"]),
    (["--on=slurm", "--config.mesh.data=2"], ["config.mesh", "data=2", "8"]),
    (["--on=slurm", "--config.mesh.tensor=8"], ["config.mesh.tensor=8", "config.model.heads=4"]),
    (["--on=slurm", "--config.optimizer.lrr=1"], ["did you mean 'lr'"]),
    (["--on=slurm", "--image=x.sqsh"], ["--image", "container"]),
    (["--on=gke"], ["site.gke.image"]),
    (["--on=gke", "--topology=v5e:4x4", "--nodes=2"], ["--nodes", "--topology"]),
    (["--on=gke", "--topology=v5e:4x4x4"], ["v5e:4x4x4", "2 sides"]),
    (["--on=gke", "--topology=v5:4x4"], ["'v5'", "did you mean"]),
    (["--on=gke", "--topology=v5e:3x3"], ["v5e:3x3", "no such slices", "16x16"]),
    (["--on=gke", "--topology=v5e:8x8"], ["config.batch_size=16", "64"]),
    (["--on=gke", "--topology=v5e:4x4", "--slices=0"], ["--slices=0"]),
    (["--on=tpu-vm"], ["--topology is missing"]),
    (["--on=tpu-vm", "--topology=tpu7x:2x2x1"], ["tpu7x", "--on=gke"]),
    (["--on=tpu-vm", "--topology=v5e:4x4"], ["site.tpu_vm.project"]),
    (["--on=local", "--image=x"], ["--image=x", "slurm or gke"]),
    (["--on=gke", "--partition=x"], ["--partition=x", "slurm"]),
    (["--on=slurm", "--partition="], ["--partition= is empty"]),
    (["sweep", "--on=local", "--at-once=2"], ["--at-once=2", "slurm or gke"]),
    (["sweep", "--on=slurm", "--plan"], ["--plan", "one run"]),
])
def test_what_cannot_work_is_one_line_before_anything_is_written(capsys, tmp_path, words, parts):
    workdir = tmp_path / "run"
    line = refused(capsys, f"--config={QUICKSTART}", f"--workdir={workdir}", *words)
    assert all(part in line for part in parts), line
    assert not workdir.exists()


@pytest.mark.parametrize(("text", "parts"), [
    ("[slurm]\npartitoin = 'x'", ["site.slurm.partitoin", "did you mean 'partition'"]),
    ("[slurm]\ngpus_per_node = 'x'", ["site.slurm.gpus_per_node", "int"]),
    ("[slurm]\ngpu = 'h10'", ["'h10'", "did you mean 'h100'"]),
    ("[slurm]\npartition = 'a b'", ["site.slurm.partition", "' '"]),
    ("[slurm]\ncontainer = 'pyxis'", ["pyxis", "--image"]),
    ("[slurm", ["site.toml"]),
    ("[env]\nHF_TOKEN = 'x'", ["site.env.HF_TOKEN", "[gke.secrets]"]),
    ("[secrets]\nA = 'x'", ["site.secrets", "[gke.secrets]", "[tpu_vm.secrets]"]),
    ("[slurm.env]\nMY_TOKEN = 'x'", ["site.slurm.env.MY_TOKEN"]),
    ("[env]\n'A B' = 'x'", ["site.env.A B"]),
    ("[env]\nA = 1", ["site.env.A=1", "string"]),
    ("[env]\nPATH = '/x:$PATH'", ["site.env.PATH", "setup"]),
    ("[env]\nLGM_PROCESSES = '2'", ["site.env.LGM_PROCESSES", "leave it out"]),
    ("templates = '/nowhere'", ["site.templates='/nowhere'", "no folder"]),
    ("[slurm]\ngpus_per_node = -1", ["site.slurm.gpus_per_node=-1", "at least 0"]),
    ("[slurm]\ntime = '1 day'", ["site.slurm.time='1 day'", "24:00:00"]),
    ("[slurm]\ntime = 'soon'", ["site.slurm.time='soon'", "24:00:00"]),
    ("[slurm]\ntime = '00:02:00'", ["site.slurm.save_seconds=180", "longer time"]),
    ("[slurm]\nmem = '1.5T'", ["site.slurm.mem='1.5T'", "200G"]),
    ("[slurm]\ncpus_per_task = -4", ["site.slurm.cpus_per_task=-4"]),
    ("[slurm]\nrestarts = -1", ["site.slurm.restarts=-1"]),
    ("[slurm]\noptions = ['mail-type=END']", ["site.slurm.options='mail-type=END'", "--mail-type=END"]),
    ("[slurm]\noptions = ['-A x']", ["site.slurm.options='-A x'", "long option"]),
    ("[slurm]\noptions = ['--nodes=4']", ["site.slurm.options='--nodes=4'", "leave it out"]),
    ("[slurm]\noptions = ['--no-requeue']", ["site.slurm.options='--no-requeue'"]),
    ("[slurm]\noptions = ['--mem=4G']", ["site.slurm.mem instead"]),
    ("[slurm]\noptions = ['--comment=a b']", ["site.slurm.options='--comment=a b'", "' '"]),
    ("[slurm]\nsetup = ['if true']", ["site.slurm.setup", "syntax error"]),
    ("[slurm]\nmounts = ['/a:/b']", ["site.slurm.mounts", "container"]),
    ("[gke]\nnamespace = 'My_NS'", ["site.gke.namespace='My_NS'", "lower case"]),
    ("[gke]\nnamespace = ''", ["site.gke.namespace", "default"]),
    ("[gke]\nqueue = 'Team_A'", ["site.gke.queue='Team_A'"]),
    ("[gke]\nservice_account = 'a@b'", ["site.gke.service_account='a@b'"]),
    ("[gke]\nimage = 'a b'", ["site.gke.image='a b'"]),
    ("[gke]\nwork = 'gs://B_ucket'", ["site.gke.work='gs://B_ucket'", "gs://BUCKET"]),
    ("[gke]\nmount = 'lgm'", ["site.gke.mount='lgm'", "/mnt/lgm"]),
    ("[gke]\ngpus_per_node = 16", ["site.gke.gpus_per_node=16", "from 0 to 8"]),
    ("[tpu_vm]\nzone = 'us-central1'", ["site.tpu_vm.zone='us-central1'", "europe-west4-b"]),
    ("[tpu_vm]\nspot = true\nreserved = true", ["site.tpu_vm.spot", "site.tpu_vm.reserved"]),
    ("[tpu_vm]\ntries = 0", ["site.tpu_vm.tries=0"]),
    ("[local]\ndevices = 0", ["site.local.devices=0"]),
])
def test_a_site_that_cannot_be_is_one_line(capsys, tmp_path, site, text, parts):
    line = refused(capsys, f"--config={QUICKSTART}", f"--workdir={tmp_path}/run", "--on=slurm", site(text))
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(("time", "seconds"), [
    ("90", 5400), ("1:30", 90), ("1:00:00", 3600), ("2-12", 216_000), ("1-0:30", 88_200), ("UNLIMITED", float("inf"))])
def test_time_limits_are_read_as_slurm_reads_them(time, seconds):
    assert forms.seconds(time) == seconds


def test_the_example_site_is_one(capsys, tmp_path, monkeypatch):
    found = sites.read(str(jobs.ROOT / "launch/sites/example.toml"))
    assert found.slurm.gpu == "h100" and found.gke.secrets and found.tpu_vm.secrets
    monkeypatch.setenv("LGM_SITE", str(tmp_path / "nowhere.toml"))
    assert "nowhere.toml" in refused(capsys, f"--config={QUICKSTART}", "--workdir=x", "--on=slurm")


def directives(text):
    return dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in text.splitlines()
                if line.startswith("#SBATCH"))  # fmt: skip


def batch(site="", nodes=1, **changes):
    """(the #SBATCH lines, the script) of the quickstart on H100 nodes."""
    settings = {"python": "python3", **changes}
    values = jobs.read("configs/quickstart.py")[0]
    where = machines.gpu_nodes(settings.get("gpu", "h100"), nodes, settings.get("gpus_per_node", 8),
                               settings.get("tasks") == "gpu")  # fmt: skip
    request = Request(values["name"], values, "/shared/runs/x", parse(sites.Site, {"slurm": settings}, "site"), where)
    text = next(text for path, text in slurm.job(request).files.items() if path.name == "job.sbatch")
    return directives(text), text


def test_options_of_ones_own_are_sbatchs():
    found, _ = batch(options=["--mail-type=END", "--reservation=r1", "--constraint=[a|b&c*2]"])
    assert (found["mail-type"], found["reservation"], found["constraint"]) == ("END", "r1", "[a|b&c*2]")


def test_a_job_of_whole_nodes_has_them_for_itself_and_each_process_its_part():
    found, text = batch()
    assert "exclusive" in found and found["mem"] == "0" and "cpus-per-task" not in found
    assert "cpus=$(( ${SLURM_CPUS_ON_NODE:-1} / 1 ))" in text and 'srun --cpus-per-task="$(( cpus' in text
    assert "/ 8 ))" in batch(tasks="gpu")[1]
    found, text = batch(cpus_per_task=26, mem="200G", exclusive=False)
    assert "exclusive" not in found and (found["mem"], found["cpus-per-task"]) == ("200G", "26") and "cpus=26" in text
    found, _ = batch(gpu="cpu")
    assert not {"exclusive", "mem", "cpus-per-task", "gpus-per-node"} & set(found)


@pytest.mark.parametrize(("config", "expected"), [
    ("smoke.py", {"nodes": "1", "cpus-per-task": "2", "gpus-per-node": None, "mem": None, "exclusive": None}),
    ("one_gpu.py", {"nodes": "1", "cpus-per-task": "8", "gpus-per-node": "1", "mem": None, "exclusive": None}),
    ("pod.py:mmdit-flow", {"nodes": "32", "gpus-per-node": "8", "mem": "0", "exclusive": ""}),
])
def test_a_sweeps_run_asks_for_what_its_plan_says(config, expected, site):
    words = Words(on="slurm", config=str(jobs.ROOT / "configs/scaling" / config), workdir="runs/x", sweep=True)
    where = asked_for(words, sites.read(site("").removeprefix("--site=")))
    request = Request("x", {}, "/shared/runs/x", parse(sites.Site, {"slurm": {"python": "python3"}}, "site"), where,
                      runs=(0, 1))  # fmt: skip
    text = next(text for path, text in slurm.job(request).files.items() if path.name == "job.sbatch")
    assert {key: directives(text).get(key) for key in expected} == expected
    nodes = asked_for(dataclasses.replace(words, nodes=2), sites.Site())
    assert (nodes.groups, nodes.chips) == (2, 8)  # --nodes goes before the plan


def test_a_plan_that_fills_no_whole_nodes_is_refused():
    with pytest.raises(ConfigError, match="config.machine.chips=12 fill no whole number of nodes of 8 h100"):
        machines.of_a_plan(Machine(12, 1e15, 0.4), "h100", 8)


def test_a_folder_that_slurm_cannot_name_is_refused(capsys):
    assert "--workdir" in refused(capsys, "--on=slurm", f"--config={QUICKSTART}", "--workdir=/tmp/a b")
    assert "--workdir" in refused(capsys, "--on=slurm", f"--config={QUICKSTART}", "--workdir=/tmp/%j")


def test_a_cluster_that_is_not_here(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "--dry-run" in refused(capsys, "--on=slurm", f"--config={QUICKSTART}", f"--workdir={tmp_path}/run")
    assert not (tmp_path / "run").exists()


def test_the_compiler_is_asked_when_told(capsys, tmp_path, monkeypatch):
    asked = []

    def plan(config, topology, slices):
        asked.append((config.name, topology, slices))
        return types.SimpleNamespace(fits=slices == 2, reason="18 GiB of 16", speed="9 images/s at 4% MFU")

    monkeypatch.setitem(sys.modules, "lgm.planning", types.ModuleType("lgm.planning"))
    monkeypatch.setitem(sys.modules, "lgm.planning.plan", types.SimpleNamespace(plan=plan))
    words = ["--on=gke", f"--config={QUICKSTART}", "--config.batch_size=32", f"--workdir={tmp_path}/run", "--plan",
             "--topology=v5e:4x4", f"--site={jobs.ROOT}/launch/sites/example.toml", "--dry-run"]
    assert "1 x v5e:4x4" not in (line := refused(capsys, *words)) and "v5e:4x4 cannot hold it: 18 GiB of 16" in line
    assert main(["launch", *words, "--slices=2"]) == 0
    assert "fits 2 x v5e:4x4, 9 images/s at 4% MFU" in capsys.readouterr().err
    assert main(["launch", *words[1:], "--on=slurm", "--nodes=2"]) == 2
    assert [a[1:] for a in asked] == [("v5e:4x4", 1), ("v5e:4x4", 2)]


@pytest.mark.parametrize("topology", ["v5e:2x6", "v5e:32x32", "v6e:4x16", "v5p:2x3x4", "v5p:8x4x4", "v5p:4x4x2",
                                      "v4:16x16x16", "tpu7x:4x4x6", "v5p:16x16x32"])
def test_slices_that_are_not_there(topology):
    with pytest.raises(ConfigError, match="no such slices"):
        machines.tpu_slices(topology, 1)


def test_machines():
    several = machines.tpu_slices("v5p:4x4x8", 2)
    assert (several.hosts, several.chips, several.devices, several.processes) == (32, 4, 256, 64)
    assert machines.tpu_slices("v6e:2x4", 1).hosts == 1 and machines.tpu_slices("v6e:2x4", 1).chips == 8
    assert machines.tpu_slices("tpu7x:2x2x2", 1).devices == 16
    assert machines.gpu_nodes("h100", 2, 8, process_a_gpu=True).processes == 16
    assert ranges((0, 1, 2, 5, 7, 8)) == "0-2,5,7-8"


def test_every_flag_has_a_reason_and_is_known_to_xla(monkeypatch):
    table = tomllib.loads((render.folder() / "flags.toml").read_text())
    assert all(len(entry["why"]) > 20 for entry in table["variable"] + table["xla"])
    assert {kind for entry in table["variable"] for kind in entry["gpus"]} == set(machines.GPUS)
    # XLA ends a program at a flag that it does not know
    flags = " ".join(entry["flag"] for entry in table["xla"])
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", "import jax; jax.devices()"], env=env, check=True, capture_output=True)


def test_templates_of_a_site_go_before_ours(tmp_path):
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm/job.sbatch").write_text("own {{ title }}\n")
    assert render.render("slurm/job.sbatch", {"title": "a b"}, str(tmp_path)) == "own 'a b'\n"
    assert "mkdir" in render.render("local/run.sh", dict(
        title="", folder="/", variables=(), logs="x", processes=1, command=["x"], gather=[], runs=None, restarts=1,
    ), str(tmp_path))
    with pytest.raises(ConfigError, match="titel"):
        (tmp_path / "slurm/job.sbatch").write_text("{{ titel }}")
        render.render("slurm/job.sbatch", {"title": "x"}, str(tmp_path))


@pytest.fixture
def pretend(tmp_path, site):
    """A site whose python notes what it was told and ends with the codes in a file, one each time."""
    program = tmp_path / "python"
    program.write_text(f"""#!/bin/bash
echo "$LGM_PROCESS_ID of $LGM_PROCESSES: $*" >> {tmp_path}/said
code=$(head -n 1 {tmp_path}/codes-${{LGM_PROCESS_ID:-0}}); sed -i 1d {tmp_path}/codes-${{LGM_PROCESS_ID:-0}}
if [[ $code == wait ]]; then trap 'exit 75' TERM; while :; do sleep 0.1; done; fi
exit ${{code:-0}}
""")
    program.chmod(0o755)

    def codes(*lists):
        for index, numbers in enumerate(lists):
            (tmp_path / f"codes-{index}").write_text("".join(f"{n}\n" for n in numbers))
        return site(f'[local]\npython = "{program}"\nrestarts = 2\n')

    return codes


def until(true, seconds=60):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(("codes", "starts", "end"), [
    (((0,), (0,)), 1, 0), (((75, 0), (75, 0)), 2, 0), (((76, 75, 0), (137, 75, 0)), 3, 0),
    (((76, 76, 76, 0), (76, 76, 76, 0)), 3, 76), (((2,), (0,)), 1, 2),
])
def test_processes_on_this_machine(capsys, tmp_path, pretend, codes, starts, end):
    workdir = tmp_path / "run"
    assert main(["launch", "--on=local", f"--config={QUICKSTART}", f"--workdir={workdir}", "--nodes=2",
                 pretend(*codes)]) == 0
    assert re.search(r"submitted \d+ to local", capsys.readouterr().out)
    log = workdir / "launch/job.log"
    until(lambda: log.exists() and re.search(r"ended with code \d+\n$", log.read_text()))
    assert log.read_text().endswith(f"ended with code {end}\n")
    said = (tmp_path / "said").read_text().splitlines()
    assert len(said) == 2 * starts
    command = f"-m lgm.cli train --config={workdir}/launch/config.json --workdir={workdir}"
    assert set(said) == {f"{i} of 2: {command}" for i in range(2)}
    assert json.loads((workdir / "launch/config.json").read_text())["name"] == "quickstart"


def test_a_run_on_this_machine_is_one_job_that_can_be_cancelled(capsys, tmp_path, pretend):
    workdir = tmp_path / "run"
    words = ["launch", "--on=local", f"--config={QUICKSTART}", f"--workdir={workdir}", pretend(("wait",))]
    assert main(words) == 0
    pid = int(re.search(r"submitted (\d+)", capsys.readouterr().out).group(1))
    until((tmp_path / "said").exists)
    assert main(["status", str(workdir), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"run": str(workdir), "state": "RUNNING"}]
    assert "is RUNNING; cancel that first" in refused(capsys, *words[1:])
    os.kill(pid, 15)
    log = workdir / "launch/job.log"
    until(lambda: "ended with code 75" in log.read_text())
    assert len((tmp_path / "said").read_text().splitlines()) == 1  # told to stop is not started again


def test_status_of_a_run(tiny_run, capsys):
    assert main(["status", str(tiny_run)]) == 0
    text = capsys.readouterr().out
    assert "96/96" in text and "finished" in text
    assert main(["status", str(tiny_run), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)[0]
    assert row["images"] == row["checkpoint"] == 96 and row["seconds_left"] == 0 and 0 < row["loss"] < 10


def test_status_of_a_run_on_its_way(tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    (run / "launch").mkdir(parents=True)
    (run / "checkpoints/20").mkdir(parents=True)
    (run / "checkpoints/9").mkdir()
    (run / "config.json").write_text(json.dumps({"total_images": 1000, "batch_size": 10}))
    (run / "launch/job.json").write_text(json.dumps({"on": "slurm", "id": "7"}))
    rows = [{"step": 25, "images": 250, "loss": 0.5, "images_per_second": 50.0, "mfu": 0.5},
            {"step": 25, "images": 250, "heldout_loss": 0.4}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 26, "im')
    monkeypatch.setattr(slurm, "state", lambda record: f"RUNNING as {record['id']}")
    row = status.of_folder(run)[0]
    assert (row["state"], row["images"], row["loss"], row["checkpoint"]) == ("RUNNING as 7", 250, 0.5, 200)
    assert row["seconds_left"] == 15 and row["mfu"] == pytest.approx(0.5)
    assert main(["status", str(run)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "250/1,000" in text and "50%" in text and "0:00:15" in text
    monkeypatch.setattr(slurm, "state", lambda record: "")
    assert status.of_folder(run)[0]["state"] == "stopped"
    with pytest.raises(ConfigError, match="folder of no run"):
        status.of_folder(tmp_path / "nowhere")


def test_status_of_a_run_in_cloud_storage(tmp_path, monkeypatch, capsys):
    bucket = tmp_path / "bucket"
    (bucket / "runs/x/checkpoints/20").mkdir(parents=True)
    (bucket / "runs/x/config.json").write_text(json.dumps({"total_images": 1000, "batch_size": 10}))
    (bucket / "runs/x/metrics.jsonl").write_text('{"step": 25, "images": 250, "loss": 0.5, "images_per_second": 50}\n')
    (tmp_path / "gcloud").write_text(f"""#!/bin/bash
[[ $1 == storage ]] && path={bucket}/${{3#gs://b/}}
case $2 in cat) cat "$path" ;; ls) for x in "$path"*; do echo "gs://b/${{x#{bucket}/}}/"; done ;; esac
""")
    (tmp_path / "gcloud").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    run = tmp_path / "run"
    (run / "launch").mkdir(parents=True)
    (run / "launch/job.json").write_text(json.dumps({"on": "gke", "name": "x", "remote": "gs://b/runs/x"}))
    monkeypatch.setattr(gke, "state", lambda record: "RUNNING")
    row = status.of_folder(run)[0]
    assert (row["run"], row["state"], row["images"], row["checkpoint"]) == (str(run), "RUNNING", 250, 200)
    assert main(["status", str(run)]) == 0 and "250/1,000" in capsys.readouterr().out
    (bucket / "runs/x/metrics.jsonl").unlink()
    assert status.of_folder(run) == [{"run": str(run), "state": "RUNNING"}]


def test_a_launch_finds_its_templates_where_the_package_is(tmp_path):
    assert render.folder() == jobs.ROOT / "launch"
    assert (Path(render.folder()) / "Dockerfile").is_file()
