"""Cloud TPU VMs: a queued resource, and a script on all its workers over ssh, asked for again when it is preempted.

There is no engine on the machines themselves to restart a run, so `lgm launch` stays: it waits for the slices, sets the
workers up, starts training on them and watches. Started again, it goes on with what it finds.
"""

import hashlib
import importlib.metadata
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from lgm import __version__
from lgm.launching.flags import variable
from lgm.launching.job import Job, Request, mounted, start_here, words_of
from lgm.launching.machines import TPUS
from lgm.launching.render import render
from lgm.launching.tpu_drive import Driver, Names, run_command
from lgm.parsing import ConfigError

PYTHONS = ("python3.13", "python3.12", "python3.11")  # that lgm runs with, the first that a worker has


def job(request: Request) -> Job:
    """The workers' script, and the commands that are run for it."""
    settings, machines = request.site.tpu_vm, request.machines
    tpu = TPUS[machines.kind]
    if tpu.vm is None:
        raise ConfigError(f"--topology={machines.topology}: there are no TPU VMs of {machines.kind}; use --on=gke")
    for name in ("project", "zone"):
        if not getattr(settings, name):
            raise ConfigError(f"site.tpu_vm.{name} is missing; give the {name} that the TPUs are in")
    if settings.work and not re.fullmatch(r"gs://[a-z0-9][a-z0-9._-]+", settings.work):
        raise ConfigError(f"site.tpu_vm.work={settings.work!r} is not gs://BUCKET")
    if not settings.work and machines.processes > 1:
        raise ConfigError("site.tpu_vm.work is missing; several workers keep one run's checkpoints, so give gs://BUCKET")
    commit, repository = ("", "") if settings.package else _code(settings.repository)
    wanted = commit or _requirement(settings.package)
    config = json.dumps(request.values, indent=2)
    workdir = mounted(request.workdir, settings.mount)
    script = render("tpu-vm/worker.sh", dict(
        title=f"{request.label}: {machines}, launched by lgm", label=request.label, commit=commit, wanted=wanted,
        version=__version__, repository=repository, setup=settings.setup,
        pythons=[settings.python] if settings.python else list(PYTHONS),
        bucket=settings.work.removeprefix("gs://"), project=settings.project,
        mount=settings.mount, config=config, marker=hashlib.sha256(config.encode()).hexdigest()[:16],
        variables=[variable(name, value) for name, value in (request.site.env | settings.env).items()],
        secrets=_secrets(settings.secrets),
        logs=f"{workdir}/launch/logs", workdir=workdir, verb="train" if request.runs is None else "sweep",
    ), request.site.templates)
    place = Path(request.workdir) / "launch"
    names = Names(request.label, settings.project, settings.zone, machines.groups)
    order = {"name": request.label, "accelerator": tpu.accelerator(machines.shape), "slices": machines.groups,
             "runtime": settings.runtime or tpu.runtime, "runs": request.runs, "project": settings.project,
             "zone": settings.zone, "spot": settings.spot, "reserved": settings.reserved, "network": settings.network,
             "service_account": settings.service_account, "restarts": settings.restarts, "tries": settings.tries,
             "pause_seconds": settings.pause_seconds, "wait_hours": settings.wait_hours}
    where = f"--zone={settings.zone} --project={settings.project}"
    driver = Driver(order, script)
    told = [shlex.join(words) for words in driver.commands()]
    return Job(
        files={place / "worker.sh": script, place / "order.json": json.dumps(order, indent=2) + "\n"},
        submit=(sys.executable, "-m", "lgm.launching.tpu_vm", str(place)),
        watch=(f"tail -F {place}/job.log", f"gcloud compute tpus queued-resources describe {request.label} {where}",
               f"gcloud compute tpus tpu-vm ssh {names.nodes[0]} {where} --worker=0 --command="
               f"{shlex.quote(f'tail -n 20 {workdir}/launch/logs/*.log')}"),
        cancel=f"kill {{id}}; gcloud compute tpus queued-resources delete {request.label} {where} --force --quiet",
        notes=("# --- in this order; each again where the network fails, all of it again after a preemption", *told),
        remote=f"{settings.work}/{request.workdir.lstrip('/')}" if settings.work else "",
    )


def _secrets(secrets: dict[str, str]) -> dict[str, str]:
    for name, secret in secrets.items():
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,255}", secret):
            raise ConfigError(f"site.tpu_vm.secrets.{name}={secret!r} is no name of a secret in Secret Manager, which "
                              "has letters, digits, - and _")
    return secrets


def _code(repository: str) -> tuple[str, str]:
    """(commit, repository) that the workers check out: this checkout's, which must be committed and pushed; of lgm that
    is installed, nothing."""
    place = Path(__file__).resolve().parents[2]

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(place), *words], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    top = git("rev-parse", "--show-toplevel")  # of another project's, where an environment lies within it
    if not top or Path(top).resolve() != place:
        return "", ""
    commit = git("rev-parse", "HEAD")
    if git("status", "--porcelain", "--untracked-files=no"):
        raise ConfigError(f"{place} has changes that are not committed, which TPU VMs would not get; commit and push")
    repository = repository or git("remote", "get-url", "origin")
    if not repository:
        raise ConfigError("site.tpu_vm.repository is missing; give what the workers can clone")
    repository = re.sub(r"(?<=://)[^/@]*@", "", repository)  # whose password it was stays here
    return commit, repository


def _requirement(package: str) -> str:
    """What the workers' pip installs: `package`, or lgm as it was installed here, by its version from the index or from
    an address. Raises ConfigError, one line, where that is a file of this machine."""
    if package:
        return f"lgm[tpu] @ {package}"
    try:
        told = importlib.metadata.distribution("lgm").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        told = '{"url": "file:a folder"}'
    if told is None:
        return f"lgm[tpu]=={__version__}"
    found = json.loads(told)
    url, version = found["url"], found.get("vcs_info")
    if url.startswith("file:"):
        raise ConfigError(f"lgm was installed here from {url.removeprefix('file://')}, which TPU VMs cannot reach; put "
                          "that wheel where they can and name it in site.tpu_vm.package, as \"https://.../lgm.whl\"")
    return f"lgm[tpu] @ {version['vcs']}+{url}@{version['commit_id']}" if version else f"lgm[tpu] @ {url}"


def submit(job: Job) -> str:
    """Start the driver in the background, in a session of its own; returns its process number."""
    if shutil.which("gcloud") is None:
        raise ConfigError("gcloud is not here; install the Google Cloud CLI and log in, or see the job with --dry-run")
    return start_here(job, Path(job.submit[-1]) / "job.log")


def state(record: dict[str, Any]) -> str:
    """The queued resource's state while the driver is there, "" when it has gone."""
    if b"lgm.launching.tpu_vm" not in words_of(record["id"]):
        return ""
    return run_command(Names(record["name"], record["project"], record["zone"], 1).describe()).out.strip() or "RUNNING"


def main(place: str) -> int:
    """Drive what `place` holds: order.json and worker.sh."""
    order = json.loads((Path(place) / "order.json").read_text())
    return Driver(order, (Path(place) / "worker.sh").read_text()).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
