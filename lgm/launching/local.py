"""This machine: so many processes of one run, started by a small shell script in the background; a sweep run by run."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from lgm.launching.job import Job, Request, command, gathering, start_here, words_of
from lgm.launching.render import render


def job(request: Request) -> Job:
    """The script and what goes with it."""
    settings = request.site.local
    workdir = Path(request.workdir).absolute()
    place = workdir / "launch"
    config = place / "config.json"
    words = command(settings.python or sys.executable, request, str(config), str(workdir))
    variables = [{"name": name, "value": value} for name, value in request.site.env.items()]
    if settings.devices > 1:
        variables.append({"name": "XLA_FLAGS", "value": f"--xla_force_host_platform_device_count={settings.devices}"})
    script = render("local/run.sh", dict(
        title=f"{request.label}: {request.machines.processes} processes on this machine, launched by lgm",
        folder=str(Path.cwd()), variables=variables, logs=str(place / "logs"), processes=request.machines.processes,
        command=words, gather=gathering(words), runs=request.runs, restarts=settings.restarts,
    ), request.site.templates)
    rank = "rank-0.log" if request.runs is None else f"run-{request.runs[0]}-rank-0.log"
    return Job(files={config: json.dumps(request.values, indent=2) + "\n", place / "run.sh": script},
               submit=("bash", str(place / "run.sh")), watch=(f"tail -F {place}/logs/{rank}",), cancel="kill {id}")


def submit(job: Job) -> str:
    """Start it in the background, in a session of its own; returns its process number."""
    return start_here(job, Path(job.submit[-1]).parent / "job.log")


def state(record: dict[str, Any]) -> str:
    """RUNNING while the script's process is there."""
    return "RUNNING" if os.fsencode(f"{record['workdir']}/launch/run.sh") in words_of(record["id"]) else ""
