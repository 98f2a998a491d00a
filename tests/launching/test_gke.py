"""GKE manifests against the schemas of Kubernetes and the field names of JobSet and Kueue."""

import copy
import json
import subprocess

import jobs
import jobset_api
import kubernetes_validate
import pytest
import yaml

from lgm.launching import gke, machines, networks
from lgm.launching.job import Request
from lgm.parsing import ConfigError

VERSION = "1.33"
VARIANTS = {
    "tpu": ("gke-tpu", {}, {}),
    "gpu": ("gke-gpu", {}, {}),
    "everything": ("gke-tpu", {}, dict(gke=dict(spot=True, service_account="runner", priority="high", namespace="lgm",
                                                grace_seconds=25))),
    "sweep": ("gke-tpu", dict(runs=(0, 3), at_once=2), {}),
    "gpu sweep": ("gke-gpu", dict(runs=(0, 3)), {}),
}


@pytest.fixture(scope="module")
def values():
    return jobs.read("configs/quickstart.py")[0]


def documents(values, monkeypatch, variant):
    engine, words, changes = VARIANTS[variant]
    text = next(iter(jobs.job(engine, values, monkeypatch, **words, **changes).files.values()))
    return list(yaml.safe_load_all(text))


def validate(document):
    """Against the schema of Kubernetes, nothing unknown allowed."""
    kubernetes_validate.validate(document, VERSION, strict=True)


def as_job(jobset):
    """The Job that the JobSet controller makes of the one replicated job, and the Pod that is made of that."""
    replicated = jobset["spec"]["replicatedJobs"][0]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": f"{jobset['metadata']['name']}-0"},
           **replicated["template"]}
    template = job["spec"]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", **template["metadata"]},
           "spec": template["spec"]}
    return job, pod


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_part_is_valid(values, monkeypatch, variant):
    found = documents(values, monkeypatch, variant)
    schemas = {"JobSet": jobset_api.JOBSET, "ClusterQueue": jobset_api.CLUSTER_QUEUE,
               "LocalQueue": jobset_api.LOCAL_QUEUE}
    for document in found:
        if document["kind"] in schemas:
            assert jobset_api.mistakes(document, schemas[document["kind"]]) == []
        else:
            validate(document)
    for jobset in (d for d in found if d["kind"] == "JobSet"):
        for part in as_job(jobset):
            validate(part)


def test_the_validators_see_mistakes(values, monkeypatch):
    jobset = documents(values, monkeypatch, "tpu")[1]
    wrong = copy.deepcopy(jobset)
    wrong["spec"]["replicatedJobs"][0]["replica"] = 2
    assert jobset_api.mistakes(wrong, jobset_api.JOBSET) == [".spec.replicatedJobs[0].replica is no field"]
    wrong = copy.deepcopy(jobset)
    wrong["spec"]["failurePolicy"]["rules"][0]["action"] = "Restart"
    assert len(jobset_api.mistakes(wrong, jobset_api.JOBSET)) == 1
    job, pod = as_job(jobset)
    for part, change in ((job, lambda s: s.update(backofLimit=0)), (pod, lambda s: s.update(restartpolicy="Never")),
                         (pod, lambda s: s["containers"][0].update(imagee="x"))):
        broken = copy.deepcopy(part)
        change(broken["spec"])
        with pytest.raises(Exception, match="additional|unexpected|Additional|not allowed|imagee|restartpolicy|backof"):
            validate(broken)


def test_slices_hosts_and_chips(values, monkeypatch):
    jobset = documents(values, monkeypatch, "tpu")[1]
    part = jobset["spec"]["replicatedJobs"][0]
    job, pod = as_job(jobset)
    assert part["replicas"] == 2 and job["spec"]["parallelism"] == job["spec"]["completions"] == 4
    assert pod["spec"]["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["spec"]["nodeSelector"] == {"cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
                                           "cloud.google.com/gke-tpu-topology": "4x4"}
    assert pod["spec"]["terminationGracePeriodSeconds"] == 300
    assert jobset["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "vision" and jobset["spec"]["suspend"]
    assert pod["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"} | {
        f"gke-gcsfuse/{what}-limit": "0" for what in ("cpu", "memory", "ephemeral-storage")}  # none


def test_gpu_pods_find_each_other(values, monkeypatch):
    jobset = documents(values, monkeypatch, "gpu")[1]
    _, pod = as_job(jobset)
    env = {v["name"]: v.get("value", v.get("valueFrom")) for v in pod["spec"]["containers"][0]["env"]}
    name = jobset["metadata"]["name"]
    # <jobset>-<replicated job>-<job>-<pod>.<subdomain, which is the jobset's name>
    assert env["LGM_COORDINATOR"] == f"{name}-{jobset['spec']['replicatedJobs'][0]['name']}-0-0.{name}:8476"
    assert env["LGM_PROCESSES"] == "2" and "job-completion-index" in env["LGM_PROCESS_ID"]["fieldRef"]["fieldPath"]


def test_a_preemption_does_not_count_and_a_lost_process_does(values, monkeypatch):
    jobset = documents(values, monkeypatch, "tpu")[1]
    job, _ = as_job(jobset)
    codes, disruption = job["spec"]["podFailurePolicy"]["rules"]
    assert codes["onExitCodes"]["values"] == [75] and disruption["onPodConditions"][0]["type"] == "DisruptionTarget"
    policy = jobset["spec"]["failurePolicy"]
    assert policy["rules"][0]["action"] == "RestartJobSetAndIgnoreMaxRestarts" and policy["maxRestarts"] == 3


def test_a_sweep_is_one_jobset_a_run_within_its_own_quota(values, monkeypatch):
    queue, local, _, *sets = documents(values, monkeypatch, "sweep")
    assert [s["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]["command"][-1]
            for s in sets] == ["--only=0", "--only=3"]
    resource = queue["spec"]["resourceGroups"][0]["flavors"][0]["resources"][0]
    assert resource == {"name": "google.com/tpu", "nominalQuota": 2 * 2 * 16}  # runs x slices x chips
    covered = queue["spec"]["resourceGroups"][0]["coveredResources"]  # all that its pods ask for
    pod = sets[0]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert set(covered) == set(pod["containers"][0]["resources"]["requests"])
    assert {s["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] for s in sets} == {local["metadata"]["name"]}


@pytest.mark.parametrize(("changes", "part"), [
    (dict(gke=dict(work="")), "site.gke.work"), (dict(gke=dict(work="gs://a/b")), "site.gke.work"),
    (dict(gke=dict(image="")), "--image"), (dict(gke=dict(secrets={"HF_TOKEN": "x"})), "SECRET/KEY"),
])
def test_what_is_missing_is_named(values, monkeypatch, changes, part):
    with pytest.raises(ConfigError, match=part):
        jobs.job("gke-tpu", values, monkeypatch, **changes)


def test_jobsets_in_words(monkeypatch):
    def item(terminal="", suspend=False, ready=0):
        return {"spec": {"suspend": suspend, "replicatedJobs": [{"replicas": 2}]},
                "status": {"terminalState": terminal, "replicatedJobsStatus": [{"ready": ready}]}}

    def answer(*items, code=0):
        done = gke.subprocess.CompletedProcess([], code, json.dumps({"items": items}), "no such cluster")
        monkeypatch.setattr(gke.subprocess, "run", lambda *a, **k: done)
        return gke.state({"namespace": "default", "name": "x"})

    assert answer(item(ready=2)) == "RUNNING" and answer(item(suspend=True)) == "QUEUED"
    assert answer(item("Completed")) == "" and answer(item("Failed")) == "FAILED" and answer() == ""
    assert answer(item("Completed"), item(ready=2), item(suspend=True)) == "1 Completed, 1 Running, 1 Queued"
    assert answer(code=1) == "unknown (no such cluster)"


def test_a_single_gpu_node_needs_nobody(values):
    request = Request("one", values, "runs/one", jobs.site(gke=dict(work="pvc:x")), machines.gpu_nodes("h100", 1, 8))
    assert "LGM_PROCESS" not in next(iter(gke.job(request).files.values()))


@pytest.mark.parametrize(("machine", "cpu", "memory"), [
    (machines.tpu_slices("v5e:4x4", 1), "76", "153G"), (machines.tpu_slices("v6e:1x1", 1), "17", "140G"),
    (machines.tpu_slices("v5p:4x4x4", 1), "166", "358G"), (machines.gpu_nodes("h100", 2, 8), "166", "1497G"),
    (machines.gpu_nodes("h200", 1, 8), "179", "2361G"), (machines.gpu_nodes("b200", 1, 1), "22", "396G"),
])
def test_a_pod_asks_for_four_fifths_of_what_its_chips_have_of_a_node(values, monkeypatch, machine, cpu, memory):
    """As a3-highgpu-8g's 208 vCPUs and 1,872 GB; of v5e the smallest nodes' 24 vCPUs and 48 GB a chip."""
    monkeypatch.setitem(jobs.ENGINES, "gke-tpu", (gke, machine, {}))
    text = next(iter(jobs.job("gke-tpu", values, monkeypatch).files.values()))
    pod = list(yaml.safe_load_all(text))[1]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    requests = pod["containers"][0]["resources"]["requests"]
    assert (requests.pop("cpu"), requests.pop("memory")) == (cpu, memory) and len(requests) == 1
    assert set(pod["containers"][0]["resources"]["limits"]) == set(requests)  # what is bounded is the chips alone


def test_a_site_says_what_a_pod_asks_for(values, monkeypatch):
    text = next(iter(jobs.job("gke-tpu", values, monkeypatch, gke=dict(cpu="900m", memory="3Gi")).files.values()))
    assert 'cpu: "900m"' in text and 'memory: "3Gi"' in text
    with pytest.raises(ConfigError, match="site.gke.memory='3 GB' is no quantity"):
        jobs.job("gke-tpu", values, monkeypatch, gke=dict(memory="3 GB"))


def pod_of(values, machine, **settings):
    """(the text, the Pod, a container's variables) of a run on GPU nodes, each part held to the schema."""
    request = Request("one", values, "runs/one", jobs.site(gke=dict(work="pvc:x", **settings)), machine)
    text = next(iter(gke.job(request).files.values()))
    for part in as_job(list(yaml.safe_load_all(text))[1]):
        validate(part)
    env = {entry["name"]: entry.get("value") for entry in part["spec"]["containers"][0]["env"]}
    return text, part, env


@pytest.mark.parametrize(("kind", "label", "names", "daemon", "profile"), [
    ("h100", "nvidia-h100-80gb", ["vpc1", "vpc4"], "tcpx-daemon", None),
    ("h100-mega", "nvidia-h100-mega-80gb", ["vpc1", "vpc8"], "tcpxo-daemon", "nccl-env-profile.sh"),
    ("h200", "nvidia-h200-141gb", ["rdma-0", "rdma-7"], None, "set_nccl_env.sh"),
    ("b200", "nvidia-b200", ["rdma-0", "rdma-7"], None, "set_nccl_env.sh"),
])
def test_nodes_are_joined_by_the_network_of_their_kind(values, kind, label, names, daemon, profile):
    """A3 high, mega and ultra, and A4, as GKE's own tests of NCCL ask for them; InfiniBand joins none of them."""
    text, pod, env = pod_of(values, machines.gpu_nodes(kind, 2, 8))
    assert "NCCL_IB_" not in text and "NCCL_NVLS" not in text
    assert pod["spec"]["nodeSelector"]["cloud.google.com/gke-accelerator"] == label
    annotations = pod["metadata"]["annotations"]
    joined = json.loads(annotations["networking.gke.io/interfaces"])
    assert joined[0] == {"interfaceName": "eth0", "network": "default"}
    assert [joined[1]["network"], joined[-1]["network"]] == names
    mounts = {mount["mountPath"] for mount in pod["spec"]["containers"][0]["volumeMounts"]}
    assert env["LD_LIBRARY_PATH"].split(":")[-1] == "/usr/local/nvidia/lib64"
    assert mounts & {"/usr/local/nvidia", "/usr/local/nvidia/lib64"}
    beside = pod["spec"].get("initContainers", [])
    assert [(one["name"], one["restartPolicy"]) for one in beside] == ([(daemon, "Always")] if daemon else [])
    if daemon:
        devices = yaml.safe_load(annotations[f"devices.gke.io/container.{daemon}"])
        assert {"path": "/dev/nvidia7"} in devices
        assert "NET_ADMIN" in beside[0]["securityContext"]["capabilities"]["add"]
    command = pod["spec"]["containers"][0]["command"]
    assert command[-4:-2] == ["lgm", "train"]
    assert (command[:2] == ["bash", "-c"] and profile in command[2]) if profile else len(command) == 4
    assert env.get("NCCL_GPUDIRECTTCPX_SOCKET_IFNAME") == ("eth1,eth2,eth3,eth4" if kind == "h100" else None)


def test_a_network_is_for_several_whole_nodes_and_as_the_site_says(values):
    for kind, nodes, gpus in (("h100", 1, 8), ("h100", 2, 4), ("a100", 2, 8)):
        assert "networking.gke.io" not in pod_of(values, machines.gpu_nodes(kind, nodes, gpus))[0]
    two = machines.gpu_nodes("h100", 2, 8)
    assert "tcpx" not in pod_of(values, two, fast_network=False)[0].lower()
    own = dict(networks=("a", "b", "c", "d"), network_daemon="x/y:1", env={"NCCL_ALGO": "Tree"})
    text, pod, env = pod_of(values, two, **own)
    assert '\\"network\\": \\"d\\"' in text and pod["spec"]["initContainers"][0]["image"] == "x/y:1"
    assert env["NCCL_ALGO"] == "Tree" and text.count("NCCL_ALGO") == 1
    with pytest.raises(ConfigError, match="site.gke.networks has 1 names; nodes of h100 have 4"):
        pod_of(values, two, networks=("a",))


def test_the_profile_leaves_no_shell_before_the_run(tmp_path):
    """SIGTERM must reach the run itself."""
    (tmp_path / "profile").write_text("export FROM_PROFILE=1\n")
    network = networks.Network({}, {}, str(tmp_path / "profile"), None, (), ())
    said = subprocess.run(network.command(["bash", "-c", 'echo $FROM_PROFILE $$ "$@"', "x", "a b", "$c"]),
                          capture_output=True, text=True, check=True)  # fmt: skip
    first, pid, *rest = said.stdout.split()
    assert first == "1" and rest == ["a", "b", "$c"]
    absent = networks.Network({}, {}, str(tmp_path / "absent"), None, (), ())
    assert subprocess.run(absent.command(["true"]), capture_output=True).returncode


def test_the_config_can_be_read_in_the_manifest(values, monkeypatch):
    text = next(iter(jobs.job("gke-tpu", values, monkeypatch).files.values()))
    assert '\n      "batch_size": 16,\n' in text
    assert json.loads(next(yaml.safe_load_all(text))["data"]["config.json"]) == values


def test_variables_of_one_place_reach_no_other(values, monkeypatch):
    text = lambda engine, **changes: "".join(jobs.job(engine, values, monkeypatch, **changes).files.values())
    places = dict(slurm=dict(env={"FROM_SLURM": "1"}), gke=dict(env={"FROM_GKE": "1"}),
                  tpu_vm=dict(env={"FROM_TPU_VM": "1"}))  # fmt: skip
    for engine, own in (("slurm", "FROM_SLURM"), ("gke-tpu", "FROM_GKE"), ("tpu-vm", "FROM_TPU_VM")):
        found = text(engine, **places)
        assert [name for name in ("FROM_SLURM", "FROM_GKE", "FROM_TPU_VM") if name in found] == [own]
