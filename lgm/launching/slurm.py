"""Slurm: one batch script, with `srun` starting a supervisor a node (or a GPU); a sweep is an array of it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from lgm.launching.flags import variables_of
from lgm.launching.job import Job, Request, command, counted, gathering, hand_over, plain_path
from lgm.launching.render import directive, render
from lgm.parsing import ConfigError
from lgm.processes.affinity import ranges

CPUS_A_GPU = 8  # asked for where a job has a part of a node: decoding and encoding images keep as many busy


def job(request: Request) -> Job:
    """The batch script and what goes with it."""
    settings, machines = request.site.slurm, request.machines
    workdir = plain_path(str(Path(request.workdir).absolute()), "--workdir")
    place = Path(workdir) / "launch"
    config = place / "config.json"
    array, runs = request.runs is not None, request.runs or ()
    gpu = machines.kind != "cpu"
    alone = gpu and settings.exclusive and machines.chips == settings.gpus_per_node  # the nodes are the job's own
    part = 0 if alone or not gpu else CPUS_A_GPU * machines.chips // machines.processes_a_host
    cpus = settings.cpus_per_task or machines.cores or part
    options = {
        "job-name": request.label, "nodes": machines.groups, "ntasks-per-node": machines.processes_a_host,
        "cpus-per-task": cpus or None, "gpus-per-node": machines.chips if gpu else None,
        "mem": settings.mem or ("0" if alone else None),
        "partition": request.partition or settings.partition, "account": settings.account, "qos": settings.qos,
        "time": settings.time, "signal": f"TERM@{settings.save_seconds}" if settings.time else None,
        "output": f"{place}/job-{'%A-%a' if array else '%j'}.log", "open-mode": "append",
        "chdir": plain_path(str(Path.cwd()), "the current folder"),
        "array": f"{ranges(runs)}{f'%{request.at_once}' if request.at_once else ''}" if array else None,
    }
    ours = ("output", "array")  # with Slurm's own patterns in them
    lines = [f"--{name}={value if name in ours else directive(value, f'site.slurm.{name}')}"
             for name, value in options.items() if value not in (None, "")]
    own = [directive(option, "site.slurm.options", "[]()|&*") for option in settings.options]
    lines += ["--exclusive"] * alone + ["--requeue", *own]
    image = request.image or settings.image
    srun, prefix = container(settings, image)
    words = command(settings.python or ("python3" if image else sys.executable), request, str(config), workdir)
    script = render("slurm/job.sbatch", dict(
        title=f"{request.label}: {machines}, launched by lgm", options=lines, kind=machines.kind,
        variables=variables_of(machines.kind, request.site.env | settings.env), cpus=cpus,
        tasks=machines.processes_a_host, setup=settings.setup,
        logs=str(place / "logs"), kept=str(place / "lost"), srun=srun, command=prefix + words,
        gather=gathering(words),
        rank_log="run-$SLURM_ARRAY_TASK_ID-rank-%t.log" if array else "rank-%t.log", array=array,
        restarts=settings.restarts, checkpoints=f"{workdir}/checkpoints",
    ), request.site.templates)
    rank = f"run-{runs[0]}-rank-0.log" if array else "rank-0.log"
    return Job(
        files={config: json.dumps(request.values, indent=2) + "\n", place / "job.sbatch": script},
        submit=("sbatch", "--parsable", str(place / "job.sbatch")),
        watch=("squeue --jobs={id}", f"tail -F {place}/logs/{rank}"), cancel="scancel {id}", notes=_alone(workdir),
    )


def _alone(workdir: str) -> tuple[str, ...]:
    """What is to be said of a folder that most clusters have on each machine by itself."""
    own = next((place for place in ("/tmp", "/var/tmp", "/dev/shm", "/scratch/local")
                if workdir.startswith(f"{place}/")), None)
    return () if own is None else (f"# note: {own} is most often each machine's own; the nodes must see {workdir} too",)


def container(settings, image: str) -> tuple[list[str], list[str]]:
    """(options of srun, words before the command) that run it in the image."""
    if settings.container == "none":
        if image:
            raise ConfigError("--image (or site.slurm.image) needs site.slurm.container = \"pyxis\" or \"apptainer\"")
        return [], []
    if not image:
        raise ConfigError(f"site.slurm.container={settings.container!r} needs --image or site.slurm.image")
    if settings.container == "pyxis":
        mounts = [f"--container-mounts={','.join(settings.mounts)}"] if settings.mounts else []
        return [f"--container-image={image}", *mounts], []
    binds = [word for mount in settings.mounts for word in ("--bind", mount)]
    return [], ["apptainer", "exec", "--nv", *binds, image]


def submit(job: Job) -> str:
    """Hand it to Slurm; returns the job's number."""
    return hand_over(job, "launch from a login node of the cluster").strip().split(";")[0]


def state(record: dict[str, Any]) -> str:
    """Where the job is: squeue's state, with its reason while it waits; of an array the number in each; "" when it has
    left the queue."""
    done = subprocess.run(["squeue", "--noheader", f"--jobs={record['id']}", "--array", "--format=%T %r"],
                          capture_output=True, text=True)
    rows = [line.split(maxsplit=1) for line in done.stdout.splitlines() if line.strip()]
    if not rows:
        return ""
    if len(rows) == 1:
        name, reason = rows[0][0], rows[0][1] if len(rows[0]) > 1 else ""
        return name if name != "PENDING" or reason in ("", "None") else f"{name} ({reason})"
    return counted(row[0] for row in rows)
