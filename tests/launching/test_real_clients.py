"""What lgm runs is taken by the clients' own parsers, where they are installed: gcloud's and kubectl's.

Nothing is asked of anyone: both parse their words before they look for an account or a cluster, and there is none.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jobs
import pytest

from lgm.launching import machines, tpu_vm

pytestmark = pytest.mark.slow
READ_BY_GCLOUD = """  # loaded once; each command in a process of its own
import json, os, sys, tempfile
root = sys.argv[1]
sys.path[:0] = [f"{root}/lib", f"{root}/lib/third_party"]
from googlecloudsdk import gcloud_main
client, told = gcloud_main.CreateCLI([]), []
for words in json.load(sys.stdin):
    with tempfile.TemporaryFile("w+") as file:
        child = os.fork()
        if not child:
            os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
            code = 0
            try:
                client.Execute(words[1:])
            except SystemExit as end:
                code = end.code
            finally:
                sys.stderr.flush(), os._exit(code)
        _, status = os.waitpid(child, 0)
        file.seek(0)
        told.append([os.waitstatus_to_exitcode(status), file.read()])
print(json.dumps(told))
"""


@pytest.fixture
def nobody(tmp_path):
    """An environment without accounts or clusters."""
    return {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "CLOUDSDK_CONFIG": str(tmp_path),
            "KUBECONFIG": str(tmp_path / "none"), "CLOUDSDK_CORE_DISABLE_PROMPTS": "1"}  # fmt: skip


@pytest.fixture(scope="module")
def values():
    return jobs.read("configs/quickstart.py")[0]


def of_tpus(values, patch):
    """The commands of runs on TPU VMs: all of one, and how the slices of others are asked for."""
    found = []
    for topology, slices, changes in (("v6e:8x8", 2, {}), ("v4:2x2x4", 1, dict(spot=False, reserved=True)),
                                      ("v5e:4x4", 2, dict(network="n", spot=False)),
                                      ("v5p:2x2x2", 1, dict(service_account="s"))):  # fmt: skip
        patch.setitem(jobs.ENGINES, "tpu-vm", (tpu_vm, machines.tpu_slices(topology, slices), {}))
        job = jobs.job("tpu-vm", values, patch, tpu_vm=changes)
        told = [*job.notes, *job.watch, *job.cancel.split("; ")]
        words = [shlex.split(line) for line in told if line.startswith("gcloud")]
        found += words if not found else [one for one in words if "create" in one]
        script = next(text for path, text in job.files.items() if path.name == "worker.sh")
    secret = next(line for line in script.splitlines() if "gcloud secrets" in line)
    return [*found, shlex.split(secret.partition("$(")[2].rpartition(")")[0])]


def test_gcloud_takes_what_is_run(values, nobody, monkeypatch):
    if shutil.which("gcloud") is None:
        pytest.skip("gcloud is not installed; gcloud_flags.py beside this file has its flags as facts")
    root = Path(shutil.which("gcloud")).resolve().parents[1]
    asked = [*of_tpus(values, monkeypatch), ["gcloud", "storage", "cat", "gs://runs/x/config.json"],
             ["gcloud", "storage", "ls", "gs://runs/x/checkpoints/"]]  # fmt: skip
    assert {"create", "describe", "delete", "ssh", "access"} <= {word for words in asked for word in words}
    wrong = [*shlex.split("gcloud compute tpus queued-resources create x --node-id=x --type=v6e --topology=8x8"),
             "--runtime-version=r", "--zone=z", "--project=p"]  # fmt: skip
    done = subprocess.run([sys.executable, "-c", READ_BY_GCLOUD, str(root)], input=json.dumps([wrong, *asked]),
                          env=nobody, capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    (code, text), *told = json.loads(done.stdout)
    assert code == 2 and "Invalid choice: 'v6e'" in text  # what wrong words are told
    assert len(told) == len(asked)
    for words, (code, text) in zip(asked, told, strict=True):
        assert code == 1 and "active account" in text, (shlex.join(words), text)


def test_kubectl_takes_what_is_run(values, nobody, monkeypatch, tmp_path):
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    job = jobs.job("gke-gpu", values, monkeypatch)
    manifest = tmp_path / "jobset.yaml"
    manifest.write_text(next(iter(job.files.values())))
    submit = [str(manifest) if word.endswith("jobset.yaml") else word for word in job.submit]
    state = ["kubectl", "get", "jobsets", "--namespace=default", "--selector=lgm/launch=x", "--output=json"]
    for words in (submit, state, *map(shlex.split, (*job.watch, job.cancel))):
        done = subprocess.run(words, env=nobody, capture_output=True, text=True, timeout=60)
        assert "unknown" not in done.stderr and "refused" in done.stderr, (words, done.stderr)
