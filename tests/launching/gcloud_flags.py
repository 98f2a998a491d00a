"""The flags of the gcloud commands that lgm runs, of release 528 of the Google Cloud CLI, as its reference has them; an
unknown one is refused as gcloud refuses it. What this cannot show: whether a zone has the accelerator, and quotas."""

import argparse


class Parser(argparse.ArgumentParser):
    def __init__(self, **options):
        super().__init__(allow_abbrev=False, add_help=False, **options)

    def error(self, message):
        raise ValueError(f"ERROR: (gcloud.compute.tpus) {message}")


def _command(name, *flags, switches=(), groups=(), needed=()):
    parser = Parser(prog=name)
    parser.add_argument("name")
    for flag in ("zone", "project", "format", *flags):  # the last two of these are of every command
        parser.add_argument(f"--{flag}", required=flag in needed)
    for flag in ("quiet", *switches):
        parser.add_argument(f"--{flag}", action="store_true")
    parser.set_defaults(groups=groups)
    return parser


COMMANDS = {
    ("queued-resources", "create"): _command(
        "create", "accelerator-type", "topology", "type", "runtime-version", "node-id", "node-count", "node-prefix",
        "boot-disk", "data-disk", "description", "labels", "metadata", "metadata-from-file", "network", "range",
        "scopes", "service-account", "subnetwork", "tags", "valid-after-duration", "valid-after-time",
        "valid-until-duration", "valid-until-time", "reservation-host-folder", "reservation-host-organization",
        "reservation-host-project",
        switches=("async", "guaranteed", "internal-ips", "reserved", "shielded-secure-boot", "spot"),
        groups=((("accelerator_type",), ("type", "topology")), (("node_id",), ("node_count", "node_prefix"))),
        needed=("zone", "runtime-version")),
    ("queued-resources", "describe"): _command("describe", needed=("zone",)),
    ("queued-resources", "delete"): _command("delete", switches=("async", "force"), needed=("zone",)),
    ("tpu-vm", "ssh"): _command(
        "ssh", "batch-size", "command", "output-directory", "ssh-key-expiration", "ssh-key-expire-after",
        "ssh-key-file", "strict-host-key-checking", "worker",
        switches=("dry-run", "force-key-file-overwrite", "internal-ip", "plain"), needed=("zone",)),
}  # fmt: skip
TYPES = ("v2", "v3", "v4")  # of --type


def parse(words):
    """The flags of `gcloud compute tpus GROUP COMMAND ...`. Raises ValueError with what gcloud would say."""
    assert list(words[:3]) == ["gcloud", "compute", "tpus"]
    if tuple(words[3:5]) not in COMMANDS:
        raise ValueError(f"ERROR: (gcloud.compute.tpus) Invalid choice: {words[3:5]}")
    found = COMMANDS[tuple(words[3:5])].parse_args(list(words[5:]))
    if getattr(found, "type", None) not in (None, *TYPES):
        raise ValueError(f"ERROR: (gcloud.compute.tpus) argument --type: Invalid choice: {found.type!r}")
    for choices in found.groups:
        given = [names for names in choices if any(getattr(found, name) for name in names)]
        if len(given) != 1 or not all(getattr(found, name) for name in given[0]):
            raise ValueError(f"ERROR: (gcloud.compute.tpus) Exactly one of {choices} must be specified, whole")
    return found
