"""GKE: a JobSet of TPU slices or GPU nodes, queued by Kueue where the site has it; a sweep is one JobSet a run."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

from lgm.launching.flags import variable, variables_of
from lgm.launching.forms import DOTTED
from lgm.launching.job import Job, Request, counted, hand_over, mounted
from lgm.launching.machines import GPUS, TPUS
from lgm.launching.networks import network_of
from lgm.launching.render import render
from lgm.parsing import ConfigError

PORT = 8476  # where the supervisors of GPU pods meet
SHARE = 0.8  # of a node, that a run asks for
CPU, MEMORY = re.compile(r"[1-9]\d*m?"), re.compile(r"[1-9]\d*([KMGT]i?)?")
TPU_PORTS = (8471, 8080)  # what TPU hosts of one slice, and of several, speak over


def job(request: Request) -> Job:
    """The manifest: a ConfigMap with the run's config, the JobSets, and a sweep's queue where it is bounded."""
    settings, machines = request.site.gke, request.machines
    image = request.image or settings.image
    if not image:
        raise ConfigError("--image (or site.gke.image) is missing; launch/Dockerfile builds one")
    bucket, claim = _work(settings.work)
    tpu = machines.kind in TPUS
    if not tpu and machines.kind not in GPUS:
        raise ConfigError("--topology is missing for TPUs, or site.gke.gpu for GPUs; GKE runs need one of them")
    selector = {"cloud.google.com/gke-tpu-accelerator": TPUS[machines.kind].gke,
                "cloud.google.com/gke-tpu-topology": machines.shape} if tpu else {
                "cloud.google.com/gke-accelerator": GPUS[machines.kind].gke}
    if settings.spot:
        selector["cloud.google.com/gke-spot"] = "true"
    cpu, memory = _part_of_a_node(settings, machines)
    network = network_of(machines, settings.networks, settings.network_daemon) if settings.fast_network else None
    label, resource = request.label, "google.com/tpu" if tpu else "nvidia.com/gpu"
    own = request.site.env | settings.env
    sweep, runs = request.runs is not None, []
    for number in (None,) if request.runs is None else request.runs:
        name = label if number is None else f"{label}-{number}"
        words = ["lgm", "sweep" if sweep else "train", "--config=/etc/lgm/config.json",
                 f"--workdir={mounted(request.workdir, settings.mount)}"]
        words = words + ([f"--only={number}"] if sweep else [])
        # InfiniBand joins none of GKE's nodes; what does brings what NCCL is to be told
        theirs = () if tpu else ("NCCL_IB_",) if network is None else ("NCCL_IB_", "NCCL_NVLS_")
        variables = [one for one in variables_of(machines.kind, own) if one["name"] in own or not theirs
                     or not one["name"].startswith(theirs)]
        if network is not None:
            variables += [variable(name, value) for name, value in network.env.items() if name not in own]
        if not tpu and machines.processes > 1:
            variables += [variable("LGM_COORDINATOR", f"{name}-node-0-0.{name}:{PORT}"),
                          variable("LGM_PROCESSES", str(machines.processes))]
        command = words if network is None else network.command(words)
        runs.append({"name": name, "command": command, "variables": variables})
    bound = request.at_once is not None
    if bound and not settings.flavor:
        raise ConfigError("--at-once on GKE is a queue of Kueue's; name the ResourceFlavor of these nodes as "
                          "site.gke.flavor")
    text = render("gke/jobset.yaml", dict(
        title=f"{label}: {machines}, launched by lgm", label=label, namespace=settings.namespace, runs=runs,
        config=json.dumps(request.values, indent=2).splitlines(), cpu=cpu, memory=memory, bound=bound,
        at_once=request.at_once, flavor=settings.flavor,
        queue=label if bound else settings.queue, resource=resource,
        times=_times,
        pods=(request.at_once or 0) * machines.groups * machines.hosts, tpu=tpu, gpu=not tpu,
        ttl=settings.ttl_seconds, restarts=settings.restarts, part="slice" if tpu else "node",
        groups=machines.groups if tpu else 1, hosts=machines.hosts if tpu else machines.groups, bucket=bucket,
        claim=claim, grace=settings.grace_seconds, service_account=settings.service_account, priority=settings.priority,
        selector=selector, image=image, processes=machines.processes, chips=machines.chips, mount=settings.mount,
        network=network, mounts=network.mounts if network else (), volumes=network.volumes if network else (),
        ports=(TPU_PORTS if tpu else (PORT,)) if machines.processes > 1 else (), secrets=_secrets(settings.secrets),
    ), request.site.templates)
    path = Path(request.workdir) / "launch" / "jobset.yaml"
    chosen = f"--namespace={settings.namespace} --selector=lgm/launch={label}"
    return Job(
        files={path: text}, submit=("kubectl", "apply", "--filename", str(path), "--output=name"),
        watch=(f"kubectl get jobsets {chosen}", f"kubectl logs --follow --namespace={settings.namespace} --selector="
               f"jobset.sigs.k8s.io/jobset-name={runs[0]['name']},batch.kubernetes.io/job-completion-index=0"),
        cancel=f"kubectl delete jobsets {chosen}",
        remote=f"gs://{bucket}/{request.workdir.lstrip('/')}" if bucket else "",
    )


def submit(job: Job) -> str:
    """Hand it to Kubernetes; returns the names of what was made."""
    made = hand_over(job, "install it, then gcloud container clusters get-credentials")
    return ",".join(line.rpartition("/")[2] for line in made.splitlines() if line.startswith("jobset"))


def state(record: dict[str, Any]) -> str:
    """Where the JobSets are, "" when none is left to run."""
    done = subprocess.run(["kubectl", "get", "jobsets", f"--namespace={record['namespace']}",
                           f"--selector=lgm/launch={record['name']}", "--output=json"], capture_output=True, text=True)
    if done.returncode:
        return f"unknown ({done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'kubectl failed'})"
    states = [_state(item) for item in json.loads(done.stdout)["items"]]
    if not set(states) - {"Completed", "Failed"}:
        return "FAILED" if "Failed" in states else ""
    return states[0].upper() if len(states) == 1 else counted(states)


def _state(item: dict) -> str:
    status = item.get("status", {})
    if status.get("terminalState"):
        return status["terminalState"]
    if item["spec"].get("suspend"):
        return "Queued"
    ready = sum(part.get("ready", 0) for part in status.get("replicatedJobsStatus", []))
    wanted = sum(part.get("replicas", 1) for part in item["spec"]["replicatedJobs"])
    return "Running" if ready == wanted else "Pending"


def _work(work: str) -> tuple[str, str]:
    """(bucket, claim) of site.gke.work, one of them empty."""
    if work.startswith("gs://") and work[5:].strip("/") and "/" not in work[5:].strip("/"):
        return work[5:].strip("/"), ""
    if work.startswith("pvc:") and work[4:]:
        return "", work[4:]
    raise ConfigError(f"site.gke.work={work!r} is where runs are kept; give \"gs://BUCKET\" or \"pvc:CLAIM\"")


def _part_of_a_node(settings, machines) -> tuple[str, str]:
    """(CPUs, memory) that a pod asks for: it is not crowded out, and fits beside the node's own pods."""
    kinds: dict[str, Any] = {**TPUS, **GPUS}
    cpus, gigabytes = kinds[machines.kind].host
    cpu = settings.cpu or str(max(int(SHARE * cpus * machines.chips), 1))
    memory = settings.memory or f"{max(int(SHARE * gigabytes * machines.chips), 1)}G"
    for name, value, kind in (("cpu", cpu, CPU), ("memory", memory, MEMORY)):
        if not kind.fullmatch(value):
            raise ConfigError(f"site.gke.{name}={value!r} is no quantity of Kubernetes; give one as "
                              f"{'100' if name == 'cpu' else '400Gi'}")
    return cpu, memory


def _times(count: int, quantity: str) -> str:
    digits = len(quantity) - len(quantity.lstrip("0123456789"))
    return f"{count * int(quantity[:digits])}{quantity[digits:]}"


def _secrets(secrets: dict[str, str]) -> list[dict[str, str]]:
    found = []
    for name, where in secrets.items():
        secret, slash, key = where.partition("/")
        if not (slash and re.fullmatch(DOTTED, secret) and re.fullmatch(r"[A-Za-z0-9._-]+", key)):
            raise ConfigError(f"site.gke.secrets.{name}={where!r}: give the Secret and its key, as \"SECRET/KEY\"")
        found.append({"variable": name, "name": secret, "key": key})
    return found
