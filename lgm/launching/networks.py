"""What joins GKE's GPU nodes: `launch/gke/networks.toml`, as a pod's annotations, daemon, mounts and variables."""

import dataclasses
import json
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from lgm.launching.machines import Machines
from lgm.launching.render import folder
from lgm.parsing import ConfigError

WHOLE = 8  # GPUs of a node that has its networks for itself


@dataclasses.dataclass(frozen=True)
class Network:
    """annotations: of the pod. env: variables of the run. profile: a shell file of the plug-in's, "" for none, that
    sets NCCL's variables. daemon: {"name", "image", "command", "capabilities", "env", "mounts"} of the container beside
    the run, None for none. mounts: of the run, (volume, path). volumes: (name, path on the node; "" for an empty one).
    """

    annotations: Mapping[str, str]
    env: Mapping[str, str]
    profile: str
    daemon: Mapping[str, Any] | None
    mounts: Sequence[tuple[str, str]]
    volumes: Sequence[tuple[str, str]]

    def command(self, words: Sequence[str]) -> list[str]:
        """The words that run `words` with the variables of the profile; the shell is gone before they run."""
        return ["bash", "-c", f'source {self.profile} && exec "$0" "$@"', *words] if self.profile else list(words)


def network_of(machines: Machines, names: Sequence[str] = (), image: str = "") -> Network | None:
    """That of several whole nodes of a kind of GPU; None where there is one node, a part of one, or a kind without.

    names: what the cluster calls its networks, in the interfaces' order. image: the daemon's, in place of the table's.
    Raises ConfigError where names are not as many as interfaces.
    """
    table = tomllib.loads((folder() / "gke" / "networks.toml").read_text())
    found = next((entry for entry in table.values() if machines.kind in entry["gpus"]), None)
    if found is None or machines.groups * machines.hosts < 2 or machines.chips < WHOLE:
        return None
    interfaces, names = found["interfaces"], names or found["networks"]
    if len(names) != len(interfaces):
        raise ConfigError(f"site.gke.networks has {len(names)} names; nodes of {machines.kind} have {len(interfaces)} "
                          f"networks beside the default one, as {', '.join(found['networks'])}")
    joined = [{"interfaceName": "eth0", "network": "default"}]
    joined += [{"interfaceName": a, "network": b} for a, b in zip(interfaces, names, strict=True)]
    annotations = {"networking.gke.io/default-interface": "eth0", "networking.gke.io/interfaces": json.dumps(joined)}
    daemon, paths = found.get("daemon"), dict(found["mounts"])
    if daemon is not None:
        devices = "".join(f"- path: /dev/{device}\n" for device in daemon["devices"])
        annotations[f"devices.gke.io/container.{daemon['name']}"] = devices
        paths |= daemon["mounts"]
    volume = {path: f"network-{number}" for number, path in enumerate(paths)}
    if daemon is not None:
        daemon = {**daemon, "image": image or daemon["image"], "mounts": [(volume[p], p) for p in daemon["mounts"]],
                  "env": {"LD_LIBRARY_PATH": found["env"]["LD_LIBRARY_PATH"]}}
    mounts = [(volume[path], path) for path in found["mounts"]]
    return Network(annotations, found["env"], found.get("profile", ""), daemon, mounts,
                   [(volume[path], host) for path, host in paths.items()])
