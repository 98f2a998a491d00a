"""Jobs on a real Slurm cluster that are preempted, killed and refused, and sweeps as arrays.

That one that is cancelled goes on when it is launched again, a walk of tests/test_wheel.py shows.
"""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import slurm_cluster
from run_state import final, small_config
from slurm_cluster import SWEEP, last_step, shown, wait_until

from lgm.cli import main

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    """SLURM_CONF of a running cluster."""
    with slurm_cluster.running() as folder:
        yield folder


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    path = tmp_path_factory.mktemp("site") / "site.toml"
    cache = os.environ["JAX_COMPILATION_CACHE_DIR"]
    path.write_text(f"""
[env]
JAX_PLATFORMS = "cpu"
JAX_COMPILATION_CACHE_DIR = "{cache}"
JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS = "0"
PYTHONPATH = "{ROOT}"
[slurm]
gpu = "cpu"
python = "{sys.executable}"
""")
    return path


def launch(*words):
    """(exit code, what was printed) of `lgm launch`."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["launch", *map(str, words)])
    return code, out.getvalue() + err.getvalue()


def log_of(workdir):
    return "".join(path.read_text() for path in (workdir / "launch").glob("job-*.log"))


def training_process(job, rank):
    """The process that trains as `rank` of a job: the child of the task that Slurm started."""
    wanted = {f"SLURM_JOB_ID={job}".encode(), f"SLURM_PROCID={rank}".encode()}
    for place in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            variables = set(place.read_bytes().split(b"\0"))
            if wanted <= variables and any(v.startswith(b"LGM_MEMBER=") for v in variables):
                return int(place.parent.name)
    return None


def test_a_job_preempted_and_killed_ends_with_the_bits_of_an_undisturbed_one(cluster, site, tmp_path):
    config = tmp_path / "small.py"
    config.write_text(small_config(images=1600))
    words = ["--on=slurm", f"--config={config}", f"--site={site}", "--nodes=2"]
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"

    code, text = launch(*words, f"--workdir={undisturbed}")
    assert code == 0, text
    job = re.search(r"submitted (\d+) to slurm", text).group(1)
    assert f"scancel {job}" in text and "resume:  lgm" in text
    code, text = launch(*words, f"--workdir={undisturbed}")
    assert code == 2 and f"has been launched to slurm as {job}" in text  # no second writer of one folder
    wait_until(lambda: shown(job) == ["COMPLETED"], "end", undisturbed)
    assert last_step(undisturbed) == 200
    assert {path.name for path in (undisturbed / "launch" / "logs").iterdir()} == {"rank-0.log", "rank-1.log"}

    code, text = launch(*words, f"--workdir={disturbed}")
    job = re.search(r"submitted (\d+) to slurm", text).group(1)
    wait_until(lambda: last_step(disturbed) >= 2, "step", disturbed)
    urgent = subprocess.run(
        ["sbatch", "--parsable", "--partition=high", "--nodes=2", "--output=/dev/null", "--wrap=true"],
        capture_output=True, text=True, check=True).stdout.strip()
    wait_until(lambda: shown(urgent) == ["COMPLETED"], "end of the job that goes first", disturbed)
    wait_until(lambda: "start 1 of job" in log_of(disturbed), "second start", disturbed)
    assert "DUE TO PREEMPTION" in log_of(disturbed)
    saved, _ = final(disturbed)  # all processes saved one step when they were told to stop
    assert 2 <= saved < 200
    assert f"stopped by SIGTERM at step {saved}" in (disturbed / "launch/logs/rank-1.log").read_text()

    wait_until(lambda: last_step(disturbed) > saved + 2, "step after the restart", disturbed)
    os.kill(training_process(job, 1), signal.SIGKILL)
    wait_until(lambda: "queued again" in log_of(disturbed), "requeue", disturbed)
    for rank in (0, 1):
        log = (disturbed / f"launch/logs/rank-{rank}.log").read_text()
        assert re.search(r"process 1 \(n2, pid \d+\) was killed by SIGKILL .* after step \d+", log), log
    wait_until(lambda: shown(job) == ["COMPLETED"], "end after the kill", disturbed)

    (step, ours), (_, theirs) = final(disturbed), final(undisturbed)
    assert step == 200 and all(a.tobytes() == b.tobytes() for a, b in zip(ours, theirs, strict=True))
    assert log_of(disturbed).count("start ") == 3


def test_a_sweep_is_an_array_whose_missing_run_is_completed_by_launching_again(cluster, site, tmp_path):
    config = tmp_path / "sweep.py"
    config.write_text(SWEEP)
    workdir = tmp_path / "sweep"
    words = ["sweep", "--on=slurm", f"--config={config}", f"--site={site}", f"--workdir={workdir}", "--at-once=2"]
    code, text = launch(*words)
    assert code == 0, text
    job = re.search(r"submitted (\d+)", text).group(1)
    wait_until(lambda: "RUNNING" in shown(f"{job}_1"), "start of run 1", workdir)
    assert shown(f"{job}_2") != ["RUNNING"]  # two at once
    subprocess.run(["scancel", f"{job}_1"], check=True)
    wait_until(lambda: not subprocess.run(["squeue", "--noheader", f"--jobs={job}"], capture_output=True,
                                          text=True).stdout, "end of the others", workdir)
    table = (workdir / "runs.csv").read_text().splitlines()
    assert len(table) == 3  # a header and two runs
    code, text = launch(*words, "--dry-run")
    assert code == 0 and "--array=1%2\n" in text  # what is finished is not run again
    code, text = launch(*words)
    job = re.search(r"submitted (\d+)", text).group(1)
    wait_until(lambda: not subprocess.run(["squeue", "--noheader", f"--jobs={job}"], capture_output=True,
                                          text=True).stdout, "end of run 1", workdir)
    assert len((workdir / "runs.csv").read_text().splitlines()) == 4
    code, text = launch(*words)
    assert code == 0 and "all 3 runs are finished" in text


def test_what_cannot_work_is_refused_before_the_queue_hears_of_it(cluster, site, tmp_path):
    config = tmp_path / "small.py"
    config.write_text(small_config(images=1600))
    before = subprocess.run(["squeue", "--noheader"], capture_output=True, text=True).stdout
    workdir = tmp_path / "run"
    for override, part in (("--config.batch_size=9", "config.batch_size=9"), ("--config.mesh.fsdp=3", "fsdp=3"),
                           ("--config.optimizer.lrr=1", "did you mean 'lr'")):
        code, text = launch("--on=slurm", f"--config={config}", f"--site={site}", f"--workdir={workdir}", "--nodes=2",
                            override)
        assert code == 2 and part in text and len(text.splitlines()) == 1 and not workdir.exists()
    code, text = launch("--on=slurm", f"--config={config}", f"--site={site}", f"--workdir={workdir}", "--nodes=2",
                        "--partition=nowhere")
    assert code == 2 and "sbatch refused the job" in text and "partition" in text and not workdir.exists()
    assert subprocess.run(["squeue", "--noheader"], capture_output=True, text=True).stdout == before


def test_a_process_of_a_gpu_node_may_use_the_nodes_cpus(cluster, tmp_path):
    """Without a word to srun it is one CPU. The process says what it may use and ends: no GPU is here."""
    assert len(os.sched_getaffinity(0)) >= 2, "one CPU is all that is here, whose part is the whole"
    told, python, site = tmp_path / "told", tmp_path / "python", tmp_path / "site.toml"
    python.write_text(f"#!/bin/bash\necho $(nproc) $SLURM_CPUS_PER_TASK $SLURM_GPUS_ON_NODE > {told}\n")
    python.chmod(0o755)
    site.write_text(f'[slurm]\npartition = "gpu"\npython = "{python}"\n')
    code, text = launch("--on=slurm", f"--config={ROOT}/configs/quickstart.py", f"--workdir={tmp_path}/run",
                        f"--site={site}")  # fmt: skip
    assert code == 0, text
    job = re.search(r"submitted (\d+)", text).group(1)
    wait_until(lambda: "ended with code" in log_of(tmp_path / "run"), f"end of job {job}", tmp_path / "run", 120)
    print("affinity, CPUs a task and GPUs of the process of a node of 2 CPUs and 8 GPUs:", told.read_text())
    assert told.read_text().split() == ["2", "2", "8"]
