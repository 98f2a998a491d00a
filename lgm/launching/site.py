"""A site's settings: what is true of a cluster and of no run, in one TOML file."""

import dataclasses
import os
import re
import tomllib
from pathlib import Path
from typing import Literal

from lgm.launching import forms
from lgm.parsing import ConfigError, parse

SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY", re.I)
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclasses.dataclass(frozen=True)
class Slurm:
    """[slurm]. gpu: a kind of `launch/flags.toml`, or "cpu". tasks: one process a "node" or a "gpu". cpus_per_task: of
    a process; 0 takes the node's CPUs in equal parts where the job has all its GPUs, and so the node for itself unless
    `exclusive` is false, and 8 a GPU where it has some. mem: of a node, as "200G" ("0": all; the default where
    the node is the job's own). time: limit; the run saves `save_seconds` before it and queues again. restarts: how
    often a run whose process was killed starts again without a new checkpoint. container: "pyxis" or "apptainer", then
    with `image` and `mounts` (SRC:DST). setup: shell lines before the run. options: more for sbatch. python: what runs
    lgm (default: the launching one). env: variables of jobs here, besides the site's.
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    time: str = ""
    gpu: str = "h100"
    gpus_per_node: int = 8
    cpus_per_task: int = 0
    exclusive: bool = True
    mem: str = ""
    tasks: Literal["node", "gpu"] = "node"
    save_seconds: int = 180
    restarts: int = 3
    container: Literal["none", "pyxis", "apptainer"] = "none"
    image: str = ""
    mounts: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    python: str = ""
    env: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class GKE:
    """[gke]. work: "gs://BUCKET" (mounted by the GCS FUSE driver) or "pvc:CLAIM", seen by the run as `mount`. queue: a
    LocalQueue of Kueue; flavor: the ResourceFlavor out of which a sweep's bound is made. grace_seconds: for the save at
    a preemption. ttl_seconds: how long a finished JobSet stays. spot: run on spot nodes. priority: a PriorityClass.
    cpu, memory: asked for a pod, as "100" and "400Gi" (default: 80% of what its chips' part of a node has).
    fast_network: join several whole GPU nodes by TCPX, TCPXO or RDMA, as their kind has it (launch/gke/networks.toml);
    networks: what the cluster calls those networks, if not as GKE's guides do; network_daemon: the image of TCPX's or
    TCPXO's daemon, in another version. env: variables of runs here, besides the site's.
    secrets: variables by the Secret and key that hold them, "SECRET/KEY".
    """

    image: str = ""
    namespace: str = "default"
    work: str = ""
    mount: str = "/mnt/lgm"
    queue: str = ""
    flavor: str = ""
    service_account: str = ""
    gpu: str = "h100"
    gpus_per_node: int = 8
    grace_seconds: int = 300
    restarts: int = 3
    ttl_seconds: int = 604_800
    spot: bool = False
    priority: str = ""
    cpu: str = ""
    memory: str = ""
    fast_network: bool = True
    networks: tuple[str, ...] = ()
    network_daemon: str = ""
    env: dict[str, str] = dataclasses.field(default_factory=dict)
    secrets: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class TpuVm:
    """[tpu_vm]. repository: what is cloned, at the launched commit, where lgm is a checkout (default: its origin).
    package: what the workers' pip installs instead, a wheel of this version ("https://.../lgm.whl") or its code
    ("git+https://...@COMMIT"); where lgm is no checkout, by default what pip installed here, from the index or an
    address. spot: may be preempted, and is then asked for again. restarts: of training whose process was killed. work:
    "gs://BUCKET", mounted on every worker as `mount`. python: of the workers (default: the newest of 3.11 or later that
    their image has, else one that uv fetches). setup: shell lines before the install. env: variables of runs here,
    besides the site's. secrets: variables by the name of the secret in Secret Manager that holds them.
    """

    project: str = ""
    zone: str = ""
    repository: str = ""
    package: str = ""
    network: str = ""
    service_account: str = ""
    runtime: str = ""
    reserved: bool = False
    spot: bool = False
    restarts: int = 3
    work: str = ""
    mount: str = "/mnt/lgm"
    python: str = ""
    setup: tuple[str, ...] = ()
    env: dict[str, str] = dataclasses.field(default_factory=dict)
    secrets: dict[str, str] = dataclasses.field(default_factory=dict)
    tries: int = 10
    pause_seconds: float = 20.0
    wait_hours: float = 168.0


@dataclasses.dataclass(frozen=True)
class Local:
    """[local]: processes on this machine. devices: how many JAX sees in each; restarts as in [slurm]."""

    devices: int = 1
    restarts: int = 3
    python: str = ""


@dataclasses.dataclass(frozen=True)
class Site:
    """env: variables of every job anywhere, none of them secret; [slurm.env], [gke.env] and [tpu_vm.env] are those of
    one place. Secrets are named in [gke.secrets] and [tpu_vm.secrets]; Slurm and this machine take them from the
    environment of the launch. templates: a folder whose files go before those of `launch/`.
    """

    env: dict[str, str] = dataclasses.field(default_factory=dict)
    templates: str = ""
    slurm: Slurm = Slurm()
    gke: GKE = GKE()
    tpu_vm: TpuVm = TpuVm()
    local: Local = Local()


def read(path: str | None) -> Site:
    """The site of --site=FILE, $LGM_SITE or ~/.config/lgm/site.toml; the defaults where there is none.

    Raises ConfigError, one line, for an unknown key, a wrong type, a value that no cluster takes (`forms`) or one that
    looks like a secret.
    """
    home = Path(os.environ.get("XDG_CONFIG_HOME", Path.home() / ".config")) / "lgm" / "site.toml"
    named = path or os.environ.get("LGM_SITE")
    if not named and not home.is_file():
        return Site()
    file = Path(named) if named else home
    try:
        values = tomllib.loads(file.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"--site={file}: {getattr(error, 'strerror', None) or error}") from None
    if "secrets" in values:
        raise ConfigError(f"{file}: site.secrets is kept where the secrets are: [gke.secrets], as \"SECRET/KEY\", and "
                          "[tpu_vm.secrets], by the name in Secret Manager")
    site = parse(Site, values, f"{file}: site")
    tables = {"env": site.env, "slurm.env": site.slurm.env, "gke.env": site.gke.env, "tpu_vm.env": site.tpu_vm.env,
              "gke.secrets": site.gke.secrets, "tpu_vm.secrets": site.tpu_vm.secrets}
    for table, found in tables.items():
        for name, value in found.items():
            if not VARIABLE.fullmatch(name):
                raise ConfigError(f"{file}: site.{table}.{name} is no name of a variable")
            if not isinstance(value, str):
                raise ConfigError(f"{file}: site.{table}.{name}={value!r} has the wrong type; give a string")
            if table.endswith("env"):
                forms.check_variable(name, value, f"{file}: site.{table}.{name}")
            if table.endswith("env") and SECRET.search(name):
                raise ConfigError(f"{file}: site.{table}.{name} looks like a secret, which would stand in every job; "
                                  "name it in [gke.secrets] or [tpu_vm.secrets] instead, without its value")
    forms.check(site, str(file))
    return site
