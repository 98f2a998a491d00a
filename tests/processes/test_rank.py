"""Where a process finds itself: flags, environment, Slurm, TPU slices and TPU VMs."""

import http.server
import threading

import pytest

from lgm.parsing import ConfigError
from lgm.processes import Bounds, find
from lgm.processes.rank import expand_nodes, tasks_per_node

SLURM = {
    "SLURM_JOB_ID": "1234", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2",
    "SLURM_STEP_NODELIST": "localhost,n[07-08]", "SLURM_STEP_TASKS_PER_NODE": "1,2,1", "SLURM_LOCALID": "0",
}


def test_alone_without_any_of_it():
    assert find(environment={}) is None
    batch = {k: v for k, v in SLURM.items() if not k.startswith("SLURM_STEP")} | {"SLURM_NTASKS": "4"}
    assert find(environment=batch) is None  # a batch script is no step
    assert find(environment=SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1",
                                     "SLURM_STEP_NODELIST": "localhost", "SLURM_PROCID": "0"}) is None


def test_a_slurm_step():
    place = find(environment=SLURM)
    assert (place.index, place.count, place.names) == (2, 4, ("localhost", "n07", "n07", "n08"))
    host, port = place.address.split(":")
    assert host == "localhost" and 20_000 <= int(port) < 32_768  # below the ports that a kernel gives away
    assert place.local_devices == (0,)  # two tasks on a node: each has its own GPU
    assert find(environment=SLURM | {"CUDA_VISIBLE_DEVICES": "3"}).local_devices is None  # Slurm has chosen it
    one_each = SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x4)", "SLURM_STEP_NODELIST": "localhost,n[1-3]"}
    assert find(environment=one_each).local_devices is None
    again = find(environment=SLURM | {"SLURM_RESTART_COUNT": "1"})
    assert again.address == place.address and again.job != place.job  # a process of the first start is refused


@pytest.mark.parametrize(("text", "names"), [
    ("n1", ["n1"]),
    ("n[1-3,07],gpu5", ["n1", "n2", "n3", "n07", "gpu5"]),
    ("rack[1-2]-n[08-10]", [f"rack{r}-n{n}" for r in (1, 2) for n in ("08", "09", "10")]),
])
def test_node_lists(text, names):
    assert expand_nodes(text) == names


def test_task_counts():
    assert tasks_per_node("2(x3),1") == [2, 2, 2, 1]


def test_explicit_addresses_come_first_and_go_together():
    place = find("node1:9000", 2, 1, environment=SLURM)
    assert (place.index, place.count, place.address) == (1, 2, "node1:9000")
    env = {"LGM_COORDINATOR": "h:1", "LGM_PROCESSES": "3", "LGM_PROCESS_ID": "0"}
    assert (find(environment=env).index, find(environment=env).count) == (0, 3)
    for given, part in (
        (("node1:9000", None, None), "--processes=N and --process-id=I missing"),
        (("node1:9000", 2, 2), "--process-id=2"),
        (("node1", 2, 0), "--coordinator=node1 is not HOST:PORT"),
        (("node1:99999", 2, 0), "--coordinator=node1:99999"),
    ):
        with pytest.raises(ConfigError, match=part):
            find(*given, environment={})
    with pytest.raises(ConfigError, match="LGM_PATIENCE=-1"):
        Bounds.read({"patience": -1.0})


def test_tpu_slices_are_numbered_slice_by_slice():
    env = {"TPU_WORKER_HOSTNAMES": "a,b,c,d", "TPU_WORKER_ID": "1"}
    place = find(environment=env)
    assert (place.index, place.count, place.address, place.names) == (1, 4, "a:8476", ("a", "b", "c", "d"))
    second = env | {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1",
                    "MEGASCALE_COORDINATOR_ADDRESS": "first-host:8080"}
    place = find(environment=second)
    assert (place.index, place.count, place.address) == (5, 8, "first-host:8476")
    assert place.names[5] == "slice 1 worker 1"
    with pytest.raises(ConfigError, match="MEGASCALE_COORDINATOR_ADDRESS"):
        find(environment=env | {"MEGASCALE_NUM_SLICES": "2"})


def test_a_tpu_vm_asks_its_metadata_server(monkeypatch):
    values = {
        "worker-network-endpoints": "x:8470:10.0.0.1,y:8470:10.0.0.2", "agent-worker-number": "1",
        "tpu-env": "ACCELERATOR_TYPE: 'v4-16'\nMEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n"
                   "MEGASCALE_COORDINATOR_ADDRESS: '10.0.9.9'\n",
    }

    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            value = values.get(self.path.rsplit("/", 1)[1])
            good = value is not None and self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200 if good else 404)
            self.end_headers()
            self.wfile.write((value or "").encode())

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    env = {"GCE_METADATA_HOST": f"127.0.0.1:{server.server_port}"}
    try:
        assert find(environment=env) is None  # no TPU in this machine, so nobody is asked
        monkeypatch.setattr("lgm.processes.rank.glob.glob", lambda pattern: ["/dev/accel0"])
        place = find(environment=env)
        assert (place.index, place.count, place.address) == (3, 4, "10.0.9.9:8476")
        values["tpu-env"] = ""
        assert find(environment=env).names == ("10.0.0.1", "10.0.0.2")
        values.clear()
        assert find(environment=env) is None
    finally:
        server.shutdown()
