"""Field names of the JobSet API v1alpha2 and of Kueue's queues v1beta1 as published, with the values some may have.

From kubernetes-sigs/jobset (jobset_types.go) and kubernetes-sigs/kueue (clusterqueue_types.go, localqueue_types.go).
A dict is an object's fields, a list of one a list of such, a tuple the values that may be, a type a plain value, a
pattern the whole of a text or number; ANY is checked elsewhere.
"""

import re

ANY = object()
QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|[kMGTPE]i?)?")  # resource.Quantity, written as a number or a text
JOBSET = {
    "apiVersion": ("jobset.x-k8s.io/v1alpha2",), "kind": ("JobSet",), "metadata": ANY,
    "spec": {
        "replicatedJobs": [{
            "name": str, "groupName": str, "template": ANY, "replicas": int,
            "dependsOn": [{"name": str, "status": ("Ready", "Complete")}],
        }],
        "network": {"enableDNSHostnames": bool, "subdomain": str, "publishNotReadyAddresses": bool},
        "successPolicy": {"operator": ("All", "Any"), "targetReplicatedJobs": [str]},
        "failurePolicy": {
            "maxRestarts": int, "restartStrategy": ("Recreate", "BlockingRecreate"),
            "rules": [{
                "name": str, "action": ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"),
                "onJobFailureReasons": [("BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes",
                                         "MaxFailedIndexesExceeded", "PodFailurePolicy")],
                "onJobFailureMessagePatterns": [str], "targetReplicatedJobs": [str],
            }],
        },
        "startupPolicy": {"startupPolicyOrder": ("AnyOrder", "InOrder")}, "suspend": bool,
        "coordinator": {"replicatedJob": str, "jobIndex": int, "podIndex": int}, "managedBy": str,
        "ttlSecondsAfterFinished": int,
    },
}
CLUSTER_QUEUE = {
    "apiVersion": ("kueue.x-k8s.io/v1beta1",), "kind": ("ClusterQueue",), "metadata": ANY,
    "spec": {
        "resourceGroups": [{"coveredResources": [str], "flavors": [{"name": str, "resources": [
            {"name": str, "nominalQuota": QUANTITY, "borrowingLimit": QUANTITY, "lendingLimit": QUANTITY}]}]}],
        "cohort": str, "queueingStrategy": ("StrictFIFO", "BestEffortFIFO"), "namespaceSelector": ANY,
        "flavorFungibility": ANY, "preemption": ANY, "admissionChecks": [str], "admissionChecksStrategy": ANY,
        "stopPolicy": ("None", "Hold", "HoldAndDrain"), "fairSharing": ANY, "admissionScope": ANY,
    },
}
LOCAL_QUEUE = {
    "apiVersion": ("kueue.x-k8s.io/v1beta1",), "kind": ("LocalQueue",), "metadata": ANY,
    "spec": {"clusterQueue": str, "stopPolicy": ("None", "Hold", "HoldAndDrain"), "fairSharing": ANY},
}


def mistakes(value, schema, path=""):
    """What of `value` the API does not know, as lines."""
    if schema is ANY:
        return []
    if isinstance(schema, re.Pattern):
        return [] if schema.fullmatch(str(value)) else [f"{path}={value!r} does not read {schema.pattern}"]
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return [f"{path} is no object"]
        return [line for key, part in value.items() for line in (
            mistakes(part, schema[key], f"{path}.{key}") if key in schema else [f"{path}.{key} is no field"])]
    if isinstance(schema, list):
        if not isinstance(value, list):
            return [f"{path} is no list"]
        return [line for i, part in enumerate(value) for line in mistakes(part, schema[0], f"{path}[{i}]")]
    if isinstance(schema, tuple):
        return [] if value in schema else [f"{path}={value!r} is none of {schema}"]
    return [] if type(value) is schema else [f"{path}={value!r} is no {schema.__name__}"]
