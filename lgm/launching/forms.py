"""What the values of a site's file may be, beyond their types: what Slurm, Kubernetes and Google Cloud would refuse,
hours later or in words that name no key, is refused first."""

import math
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lgm.parsing import ConfigError

LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
DOTTED = rf"{LABEL}(\.{LABEL})*"
NAME = "a name of Kubernetes, of lower case letters, digits, - and ."
PLACE = (r"(/[A-Za-z0-9._-]+)+", 'a folder, as "/mnt/lgm"')
FORMS = {  # by key: what it matches unless it is empty, and that in words
    "slurm.time": (r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}|UNLIMITED|INFINITE",
                   'a time limit of Slurm, as "24:00:00" or "2-00:00:00"'),
    "slurm.mem": (r"\d+[KMGTkmgt]?[Bb]?", 'memory, as "200G"; "0" is all of a node'),
    "gke.namespace": (LABEL, "a namespace, of lower case letters, digits and -"),
    "gke.queue": (DOTTED, NAME), "gke.flavor": (DOTTED, NAME), "gke.priority": (DOTTED, NAME),
    "gke.service_account": (DOTTED, NAME), "gke.image": (r"\S+", "an image, as REGISTRY/NAME:TAG"),
    "gke.mount": PLACE, "tpu_vm.mount": PLACE,
    "gke.work": (rf"gs://[a-z0-9][a-z0-9._-]+/?|pvc:{DOTTED}", '"gs://BUCKET" or "pvc:CLAIM", where runs are kept'),
    "tpu_vm.package": (r"(git\+)?https?://\S+", 'an address for pip, as "https://.../lgm.whl" or "git+https://...@COMMIT"'),
    "tpu_vm.zone": (r"[a-z]+-[a-z]+\d+-[a-z]", 'a zone, as "europe-west4-b"'),
    "tpu_vm.project": (r"[A-Za-z0-9.:_-]+", "a project's ID"),
    "tpu_vm.network": (r"[a-z0-9._/-]+", "a network's name"),
    "tpu_vm.service_account": (r"[^@\s]+@[^@\s]+", "an account's address, as NAME@PROJECT.iam.gserviceaccount.com"),
}  # fmt: skip
BOUNDS = {  # the least and the most, both allowed
    "slurm.gpus_per_node": (0, math.inf), "slurm.cpus_per_task": (0, math.inf), "slurm.save_seconds": (1, 65_535),
    "slurm.restarts": (0, math.inf), "gke.gpus_per_node": (0, 8), "gke.grace_seconds": (0, math.inf),
    "gke.restarts": (0, math.inf), "gke.ttl_seconds": (0, math.inf), "tpu_vm.restarts": (0, math.inf),
    "tpu_vm.tries": (1, math.inf), "tpu_vm.pause_seconds": (0, math.inf), "tpu_vm.wait_hours": (0, math.inf),
    "local.devices": (1, math.inf), "local.restarts": (0, math.inf),
}  # fmt: skip
# options of sbatch that the job's script rests on, and those that have keys of their own
OURS = ("job-name", "nodes", "ntasks", "ntasks-per-node", "output", "open-mode", "chdir", "array", "signal", "requeue",
        "no-requeue")  # fmt: skip
KEYED = {"partition": "partition", "account": "account", "qos": "qos", "time": "time", "mem": "mem",
         "cpus-per-task": "cpus_per_task", "gpus-per-node": "gpus_per_node"}  # fmt: skip
RANKS = ("LGM_COORDINATOR", "LGM_PROCESSES", "LGM_PROCESS_ID")  # which process this is, that the job says to each


def check(site: Any, file: str) -> None:
    """Raise ConfigError, one line with its key, for the first value that cannot be of a `lgm.launching.site.Site`."""
    for key, (pattern, what) in FORMS.items():
        value = _of(site, key)
        if value and not re.fullmatch(pattern, value):
            raise ConfigError(f"{file}: site.{key}={value!r} is not {what}")
    for key, (least, most) in BOUNDS.items():
        if not least <= (value := _of(site, key)) <= most:
            limit = f"at least {least}" if most == math.inf else f"from {least} to {most}"
            raise ConfigError(f"{file}: site.{key}={value} must be {limit}")
    _check_slurm(site.slurm, file)
    if not site.gke.namespace:
        raise ConfigError(f'{file}: site.gke.namespace is empty; leave it out for "default"')
    if site.tpu_vm.spot and site.tpu_vm.reserved:
        raise ConfigError(f"{file}: site.tpu_vm.spot and site.tpu_vm.reserved do not go together; leave one out")
    if site.templates and not Path(site.templates).is_dir():
        raise ConfigError(f"{file}: site.templates={site.templates!r} is no folder")
    for table, lines in {"slurm": site.slurm.setup, "tpu_vm": site.tpu_vm.setup}.items():
        _check_shell(lines, f"{file}: site.{table}.setup")


def check_variable(name: str, value: str, key: str) -> None:
    """Raise ConfigError, one line, for a variable of an [env] that would do what nobody means."""
    if name in RANKS:
        raise ConfigError(f"{key}={value!r}: the job itself says it to each process; leave it out")
    if re.search(rf"\${name}\b|\${{{name}\b", value):
        raise ConfigError(f"{key}={value!r}: values are taken as they are, so ${name} in it stays those letters; write "
                          f"`export {name}=...` as a line of `setup`")


def _check_slurm(slurm: Any, file: str) -> None:
    key = f"{file}: site.slurm"
    if slurm.time and slurm.save_seconds >= seconds(slurm.time):
        raise ConfigError(f"{key}.save_seconds={slurm.save_seconds} is not less than site.slurm.time={slurm.time!r}: "
                          "the job would stop as it starts; give a longer time")
    if slurm.mounts and slurm.container == "none":
        raise ConfigError(f'{key}.mounts={list(slurm.mounts)} needs site.slurm.container = "pyxis" or "apptainer"')
    for option in slurm.options:
        name = option.removeprefix("--").partition("=")[0]
        if not re.fullmatch(r"--[a-z][a-z0-9-]+(=.+)?", option):
            raise ConfigError(f'{key}.options={option!r} is no long option of sbatch; give one as "--mail-type=END"')
        if name in OURS:
            raise ConfigError(f"{key}.options={option!r}: lgm launch says --{name} itself; leave it out")
        if name in KEYED:
            raise ConfigError(f"{key}.options={option!r}: give site.slurm.{KEYED[name]} instead")


def seconds(time: str) -> float:
    """A time limit of Slurm: minutes, M:S, H:M:S, D-H, D-H:M, D-H:M:S, or none."""
    if not time[0].isdigit():
        return math.inf
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    units = (3600, 60, 1) if dash or len(parts) == 3 else (60, 1)
    return 86_400 * int(days or 0) + sum(part * unit for part, unit in zip(parts, units, strict=False))


def _check_shell(lines: Sequence[str], key: str) -> None:
    """Ask bash, where there is one, whether lines of a script are such."""
    if not lines:
        return
    try:
        done = subprocess.run(["bash", "-n"], input="\n".join(lines) + "\n", capture_output=True, text=True)
    except OSError:
        return
    if done.returncode:
        raise ConfigError(f"{key} is no shell script: {done.stderr.strip().splitlines()[-1]}")


def _of(site: Any, key: str) -> Any:
    table, _, name = key.partition(".")
    return getattr(getattr(site, table), name)
