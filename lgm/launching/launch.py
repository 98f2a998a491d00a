"""From words to a submitted job: resolve, check, render, and print or submit."""

import dataclasses
import importlib
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lgm import config as schema
from lgm.config.reading import read_config_file
from lgm.files import is_remote, place, write_atomically, write_json
from lgm.launching import machines as kinds
from lgm.launching import site as sites
from lgm.launching.job import Job, Request, slug
from lgm.launching.machines import Machines
from lgm.parsing import ConfigError

ENGINES = {"slurm": "slurm", "gke": "gke", "tpu-vm": "tpu_vm", "local": "local"}
RECORD = "launch/job.json"  # in a run's folder: where it was launched to


@dataclasses.dataclass(frozen=True)
class Words:
    """The flags of `lgm launch`; None where they were not given."""

    on: str
    config: str
    workdir: str
    sweep: bool = False
    site: str | None = None
    nodes: int | None = None
    topology: str | None = None
    slices: int | None = None
    partition: str | None = None
    image: str | None = None
    at_once: int | None = None
    plan: bool = False
    dry_run: bool = False


def engine(on: str):
    """The module that speaks to a cluster: `job(request)`, `submit(job)` and `state(record)`."""
    return importlib.import_module(f"lgm.launching.{ENGINES[on]}")


def launch(words: Words, overrides: Sequence[tuple[str, str]]) -> int:
    """Print the job (--dry-run) or submit it and say how to watch, cancel and resume it.

    Raises ConfigError, one line, before anything is written or submitted, for a config that cannot work there.
    """
    if is_remote(place(words.workdir, "--workdir")):
        raise ConfigError(f"--workdir={words.workdir}: a launched run keeps its script and logs in its folder; give a "
                          "path that the cluster sees (on gke and tpu-vm one in the bucket of site.gke.work or "
                          "site.tpu_vm.work)")
    site = sites.read(words.site)
    machines = asked_for(words, site, overrides)
    values = json.loads(json.dumps(read_config_file(words.config, overrides)))
    if words.sweep:
        name, runs, finished = _sweep(words, overrides, machines)
        if not runs:
            print(f"all {finished} runs are finished: lgm sweep --config={words.config} --workdir={words.workdir} "
                  "--gather writes runs.csv")
            return 0
    else:
        if words.at_once is not None:
            raise ConfigError("--at-once bounds the runs of a sweep; write it with `lgm launch sweep`")
        config = schema.load(words.config, overrides)
        values, name, runs = schema.to_dict(config), config.name, None
        check(config, machines)
        if words.plan:
            _plan(config, machines)
    slug(name)
    request = Request(name, values, words.workdir, site, machines, runs, words.at_once, words.partition, words.image)
    module = engine(words.on)
    job = module.job(request)
    if words.dry_run:
        print(dry_run(job))
        return 0
    _refuse_running(words)
    new = [path for path in job.files if not path.exists()]
    for path, text in job.files.items():
        write_atomically(path, text.encode())
    try:
        number = module.submit(job)
    except ConfigError:
        _unwrite(new, Path(words.workdir))
        raise
    record = {"on": words.on, "id": number, "name": request.label, "workdir": str(Path(words.workdir).absolute()),
              "machines": str(machines), "launched": time.time(), "remote": job.remote,
              "namespace": site.gke.namespace, "zone": site.tpu_vm.zone, "project": site.tpu_vm.project}
    write_json(Path(words.workdir) / RECORD, record)
    print(spoken(job, number, words))
    return 0


def _unwrite(files: Sequence[Path], workdir: Path) -> None:
    """Leave no trace of a job that was refused."""
    for path in files:
        path.unlink(missing_ok=True)
    for folder in (workdir / "launch", workdir):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def dry_run(job: Job) -> str:
    """Every file under its name, then the command that would submit the job."""
    parts = [f"# --- {path}\n{text.rstrip()}\n" for path, text in job.files.items()]
    return "\n".join([*parts, f"# --- submit\n{shlex.join(job.submit)}", *job.notes])


def spoken(job: Job, number: str, words: Words) -> str:
    """What to do with a job that was submitted."""
    again = " ".join(shlex.quote(word) for word in ("lgm", *sys.argv[1:]))
    lines = [f"submitted {number} to {words.on}"]
    lines += [f"watch:   {line.format(id=number)}" for line in (*job.watch, f"lgm status {shlex.quote(words.workdir)}")]
    return "\n".join([*lines, f"cancel:  {job.cancel.format(id=number)}", f"resume:  {again}", *job.notes])


def asked_for(words: Words, site: sites.Site, overrides: Sequence[tuple[str, str]] = ()) -> Machines:
    """The machines of a launch; of each run of a sweep those that its plan's machine says, unless --nodes does. Raises
    ConfigError where flags do not go together or name nothing that is there."""
    if words.at_once is not None and words.at_once < 1:
        raise ConfigError(f"--at-once={words.at_once} must be at least 1")
    for flag, value, places in (("--partition", words.partition, ("slurm",)),
                                ("--image", words.image, ("slurm", "gke")),
                                ("--at-once", words.at_once, ("slurm", "gke"))):
        if value == "":
            raise ConfigError(f"{flag}= is empty; leave it out for the site's")
        if value is not None and words.on not in places:
            raise ConfigError(f"{flag}={value} goes with --on={' or '.join(places)}, not with {words.on}")
    if words.plan and words.sweep:
        raise ConfigError("--plan asks of one run; leave it out with `lgm launch sweep`")
    tpus = words.on == "tpu-vm" or (words.on == "gke" and words.topology is not None)
    if tpus:
        if words.nodes is not None:
            raise ConfigError("--nodes goes with GPUs; a TPU is asked for with --topology and --slices")
        if words.topology is None:
            raise ConfigError("--topology is missing; give one, as --topology=v5e:4x4")
        return kinds.tpu_slices(words.topology, 1 if words.slices is None else words.slices)
    for flag, value in (("--topology", words.topology), ("--slices", words.slices)):
        if value is not None:
            raise ConfigError(f"{flag}={value} goes with TPUs (--on=gke or tpu-vm); --on={words.on} takes --nodes")
    nodes = 1 if words.nodes is None else words.nodes
    if words.sweep and words.nodes is None and words.on in ("slurm", "gke"):
        from lgm.scaling import sweep

        machine = sweep.load(words.config, overrides).machine
        if machine and (machine.kind != "cpu" or words.on == "slurm"):
            here = getattr(site, words.on)
            return kinds.of_a_plan(machine, here.gpu, here.gpus_per_node, getattr(here, "tasks", "") == "gpu")
    if words.on == "slurm":
        return kinds.gpu_nodes(site.slurm.gpu, nodes, site.slurm.gpus_per_node, site.slurm.tasks == "gpu")
    if words.on == "gke":
        return kinds.gpu_nodes(site.gke.gpu, nodes, site.gke.gpus_per_node)
    cpu = kinds.gpu_nodes("cpu", nodes, 0)
    return dataclasses.replace(cpu, chips=site.local.devices)


def check(config: schema.Config, machines: Machines) -> None:
    """Raise ConfigError where the config's mesh, heads or batch do not fit the machines, as training itself checks."""
    from lgm.parallel.layout import batch_part
    from lgm.train.placing import layout_of

    try:
        layout = layout_of(config, machines.stand_ins())
        for process in range(machines.processes):
            batch_part(layout, process)
    except ValueError as error:
        raise ConfigError(f"{error} ({machines})") from None


def _sweep(words: Words, overrides, machines: Machines) -> tuple[str, tuple[int, ...], int]:
    """(name, runs that are not finished, how many there are), every run checked against the machines."""
    from lgm.scaling import results, sweep

    plan = sweep.load(words.config, overrides)
    runs = sweep.expand(plan)
    for config in {run.group: run.configs[0] for run in runs}.values():  # runs of a group share their shapes
        check(config, machines)
    missing = tuple(i for i, run in enumerate(runs) if not results.finished(Path(words.workdir), run))
    return plan.name, missing, len(runs)


def _plan(config: schema.Config, machines: Machines) -> None:
    """Ask the compiler whether the train step fits, and print what it says."""
    from lgm.planning.plan import plan

    if machines.kind == "cpu":
        raise ConfigError("--plan knows TPUs and GPUs; this launch has neither")
    found = plan(config, machines.topology, machines.groups if machines.shape else 1)
    if not found.fits:
        raise ConfigError(f"{machines} cannot hold it: {found.reason}")
    print(f"plan: fits {machines}, {found.speed}", file=sys.stderr)


def _refuse_running(words: Words) -> None:
    """Two jobs must not write one run's folder."""
    path = Path(words.workdir) / RECORD
    if not path.is_file():
        return
    record = json.loads(path.read_text())
    try:
        state = engine(record["on"]).state(record)
    except OSError:
        return  # launched from elsewhere, and cannot be asked here
    if state:
        raise ConfigError(f"{words.workdir} has been launched to {record['on']} as {record['id']} and is {state}; "
                          "cancel that first, or give another --workdir")
