"""Which process this is, of how many, and where the first one is: from flags, environment, Slurm or a TPU's host."""

import dataclasses
import glob
import os
import re
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping

from lgm.parsing import ConfigError

PORT = 8476  # where supervisors meet, if nothing else says so
METADATA = "http://{}/computeMetadata/v1/instance/attributes/{}"


@dataclasses.dataclass(frozen=True)
class Place:
    """One process of a run. `address`: host:port where process 0's supervisor listens. `job`: what tells this run's
    processes from another's at the same port. `local_devices`: the devices of this machine that are its own, all if
    None. `names`: the machine of each process, as far as it is known before they have met.
    """

    index: int
    count: int
    address: str
    found: str
    job: str = ""
    local_devices: tuple[int, ...] | None = None
    names: tuple[str, ...] = ()


def find(coordinator: str | None = None, processes: int | None = None, process_id: int | None = None,
         environment: Mapping[str, str] | None = None) -> Place | None:
    """This process's place, or None where it is alone.

    Explicit values come first, then LGM_COORDINATOR, LGM_PROCESSES and LGM_PROCESS_ID, then a Slurm step of more than
    one task, then a TPU slice (GKE sets its variables; a TPU VM's metadata server knows them). Raises ConfigError, one
    line, where values are half given or do not fit.
    """
    env = os.environ if environment is None else environment
    explicit = _explicit(coordinator, processes, process_id, env)
    place = explicit or _slurm(env) or _tpu(env)
    return place if place and place.count > 1 else None


def _explicit(coordinator, processes, process_id, env) -> Place | None:
    words = {"--coordinator": coordinator or env.get("LGM_COORDINATOR"),
             "--processes": env.get("LGM_PROCESSES") if processes is None else processes,
             "--process-id": env.get("LGM_PROCESS_ID") if process_id is None else process_id}
    if all(word in (None, "") for word in words.values()):
        return None
    names = {"--coordinator": "HOST:PORT", "--processes": "N", "--process-id": "I"}
    missing = [f"{flag}={names[flag]}" for flag, word in words.items() if word in (None, "")]
    if missing:
        raise ConfigError(f"{' and '.join(missing)} missing: --coordinator, --processes and --process-id (or "
                          "LGM_COORDINATOR, LGM_PROCESSES and LGM_PROCESS_ID) go together")
    count, index = (_whole(flag, words[flag]) for flag in ("--processes", "--process-id"))
    if not 0 <= index < count:
        raise ConfigError(f"--process-id={index} must lie between 0 and --processes={count} less one")
    host, _, port = words["--coordinator"].rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"--coordinator={words['--coordinator']} is not HOST:PORT, as node1:{PORT}")
    return Place(index, count, f"{host}:{port}", "explicit addresses", job=f"{host}:{port}")


def _slurm(env) -> Place | None:
    """A task of a Slurm step. A batch script alone, outside `srun`, has no step's number of tasks."""
    if not {"SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_STEP_NODELIST"} <= set(env):
        return None
    if "SLURM_STEP_TASKS_PER_NODE" not in env:
        return None
    nodes = expand_nodes(env["SLURM_STEP_NODELIST"])
    per_node = tasks_per_node(env["SLURM_STEP_TASKS_PER_NODE"])
    names = tuple(node for node, tasks in zip(nodes, per_node, strict=False) for _ in range(tasks))
    job, step = env["SLURM_JOB_ID"], env["SLURM_STEP_ID"]
    port = env.get("LGM_PORT") or str(20_000 + (int(job) * 16 + int(step) % 16) % 12_000)
    restart = env.get("SLURM_RESTART_COUNT", "0")
    return Place(
        int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"]), f"{_reachable(nodes[0])}:{port}", "Slurm",
        job=f"slurm-{job}.{step}-{restart}", names=names,
        local_devices=_own_gpu(env, max(per_node)),
    )


def expand_nodes(text: str) -> list[str]:
    """The names in a Slurm node list: `n[1-2,07],gpu3` is n1, n2, n07 and gpu3."""
    names = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        head, bracket, tail = part.partition("[")
        if not bracket:
            names.append(part)
            continue
        inside, _, rest = tail.partition("]")
        for piece in inside.split(","):
            first, _, last = piece.partition("-")
            for number in range(int(first), int(last or first) + 1):
                names += [f"{head}{number:0{len(first)}d}{after}" for after in (expand_nodes(rest) if rest else [""])]
    return names


def tasks_per_node(text: str) -> list[int]:
    """`2(x3),1` is 2, 2, 2, 1."""
    counts = []
    for part in text.split(","):
        tasks, _, times = part.partition("(x")
        counts += [int(tasks)] * int(times.rstrip(")") or 1)
    return counts


def _own_gpu(env, most_tasks: int) -> tuple[int, ...] | None:
    """With several tasks a node each takes the GPU of its own number, unless Slurm shows it only one."""
    visible = env.get("CUDA_VISIBLE_DEVICES")
    if most_tasks < 2 or (visible is not None and "," not in visible):
        return None
    return (int(env.get("SLURM_LOCALID", 0)),)


def _reachable(node: str) -> str:
    """A node's name, or the address that Slurm has for it where the name does not resolve."""
    try:
        socket.getaddrinfo(node, None)
        return node
    except OSError:
        pass
    try:
        shown = subprocess.run(["scontrol", "show", "node", node, "-o"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return node
    found = re.search(r"NodeAddr=(\S+)", shown.stdout)
    return found.group(1) if found else node


def _tpu(env) -> Place | None:
    """A host of a TPU slice, or of several: numbered slice by slice, as JAX numbers them."""
    hosts, worker = env.get("TPU_WORKER_HOSTNAMES") or env.get("TPU_PROCESS_ADDRESSES"), env.get("TPU_WORKER_ID")
    get = env.get
    if not (hosts and worker):
        if env.get("TPU_SKIP_MDS_QUERY") or not (glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")):
            return None
        hosts, worker = _metadata(env, "worker-network-endpoints"), _metadata(env, "agent-worker-number")
        if not (hosts and worker):
            return None
        rows = (_metadata(env, "tpu-env") or "").splitlines()
        table = {k.strip(): v.strip().strip("'") for k, _, v in (row.partition(":") for row in rows)}
        get = lambda key, default=None: env.get(key) or table.get(key, default)
    names = [word.split(":")[2] if word.count(":") == 2 else word.split(":")[0] for word in hosts.split(",")]
    slices, this = int(get("MEGASCALE_NUM_SLICES") or 1), int(get("MEGASCALE_SLICE_ID") or 0)
    first = (get("MEGASCALE_COORDINATOR_ADDRESS") or "").split(":")[0]
    if slices > 1 and not first:
        raise ConfigError(f"MEGASCALE_NUM_SLICES={slices} without MEGASCALE_COORDINATOR_ADDRESS: the slices cannot "
                          "find each other; set it to the first host of slice 0")
    known = tuple(names) if slices == 1 else tuple(f"slice {s} worker {w}" for s in range(slices)
                                                   for w in range(len(names)))
    return Place(this * len(names) + int(worker), slices * len(names), f"{first or names[0]}:{get('LGM_PORT') or PORT}",
                 "TPU", job=f"tpu-{first or names[0]}", names=known)


def _metadata(env, key: str) -> str | None:
    """One attribute of a Google Cloud machine, None where there is no such server or key."""
    url = METADATA.format(env.get("GCE_METADATA_HOST", "metadata.google.internal"), key)
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.read().decode().strip()
    except (urllib.error.URLError, OSError):
        return None


def _whole(flag: str, word) -> int:
    try:
        return int(word)
    except ValueError:
        raise ConfigError(f"{flag}={word} is not a whole number") from None
