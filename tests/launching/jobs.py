"""One of everything that can be launched, with nothing of this machine in it."""

import json
import sys
from pathlib import Path

from lgm.config.reading import read_config_file
from lgm.launching import gke, local, machines, slurm, tpu_vm
from lgm.launching import site as sites
from lgm.launching.job import Request
from lgm.parsing import parse

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SITE = dict(
    env={"HF_HUB_OFFLINE": "1"},
    slurm=dict(partition="train", account="vision", time="24:00:00", python="/shared/venv/bin/python",
               setup=("module load cuda",)),
    gke=dict(image="europe-docker.pkg.dev/project/lgm/lgm:1", work="gs://runs", queue="vision", flavor="tpus",
             secrets={"HF_TOKEN": "hugging-face/token"}),
    tpu_vm=dict(project="project", zone="europe-west4-a", repository="https://git.example/lgm", work="gs://runs",
                spot=True, secrets={"HF_TOKEN": "hugging-face-token"}),
    local=dict(python="python3"),
)
ENGINES = {  # name: (module, machines, changes of SITE)
    "slurm": (slurm, machines.gpu_nodes("h100", 2, 8), {}),
    "slurm-pyxis": (slurm, machines.gpu_nodes("b200", 4, 8, True), dict(slurm=dict(
        gpu="b200", tasks="gpu", container="pyxis", image="/shared/lgm.sqsh", mounts=("/shared:/shared",)))),
    "slurm-apptainer": (slurm, machines.gpu_nodes("a100", 1, 4), dict(slurm=dict(
        gpu="a100", gpus_per_node=4, container="apptainer", image="/shared/lgm.sif", mounts=("/shared:/shared",)))),
    "gke-tpu": (gke, machines.tpu_slices("v5e:4x4", 2), {}),
    "gke-gpu": (gke, machines.gpu_nodes("h100", 2, 8), dict(gke=dict(work="pvc:runs", queue="", spot=True))),
    "tpu-vm": (tpu_vm, machines.tpu_slices("v6e:8x8", 2), {}),
    "local": (local, machines.gpu_nodes("cpu", 2, 0), {}),
}
# those of configs/few_steps go on from a finished run, which is not here
CONFIGS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.py")
                 if path.parent.name != "few_steps")  # fmt: skip


def site(**changes) -> sites.Site:
    values = {**SITE, **{k: {**SITE[k], **v} if isinstance(v, dict) else v for k, v in changes.items()}}
    return parse(sites.Site, values, "site")


def job(engine: str, values: dict, patch, workdir="/shared/runs/x", name=None, runs=None, at_once=None, **changes):
    """The job of a config's plain `values` on an engine of the table; `patch` is pytest's monkeypatch."""
    module, where, more = ENGINES[engine]
    patch.setattr(tpu_vm, "_code", lambda repository: (COMMIT, repository))
    patch.setattr(sys, "executable", "python3")
    patch.chdir("/")
    request = Request(name or values["name"], values, workdir, site(**{**more, **changes}), where, runs, at_once)
    return module.job(request)


def read(config: str) -> tuple[dict, bool]:
    """(plain values of a file of configs/, whether it is a sweep)."""
    values = json.loads(json.dumps(read_config_file(str(ROOT / config))))
    return values, "architectures" in values
