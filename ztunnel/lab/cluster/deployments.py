# SPDX-License-Identifier: Apache-2.0
"""The lab's controllers of Deployments and DaemonSets. Pure."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

from ztunnel.lab.cluster.digest import digest, name_suffix
from ztunnel.lab.cluster.pod_fields import is_ready, is_terminating
from ztunnel.lab.objects import Key, Object, Objects, key_of, of_kind

HASH_LABEL = "pod-template-hash"
REVISION_LABEL = "controller-revision-hash"  # of the pods of DaemonSets
WORKLOAD_KINDS = ("Deployment", "DaemonSet")


def deployment_pods(deployment: Object) -> Iterator[Object]:
    """The pods of a Deployment. Names are stable: they follow from the template and an ordinal."""
    spec, metadata = deployment["spec"], deployment["metadata"]
    template = spec["template"]
    template_hash = name_suffix(digest(template), 10)
    replica_set = f"{metadata['name']}-{template_hash}"
    replicas = spec.get("replicas")
    for ordinal in range(1 if replicas is None else replicas):
        pod_metadata = copy.deepcopy(template.get("metadata") or {})
        suffix = name_suffix(digest([metadata.get("uid"), template_hash, ordinal]), 5)
        pod_metadata |= {
            "name": f"{replica_set}-{suffix}",
            "namespace": metadata["namespace"],
            "labels": {**pod_metadata.get("labels", {}), HASH_LABEL: template_hash},
            "ownerReferences": [
                {
                    "apiVersion": "apps/v1",
                    "kind": "ReplicaSet",
                    "name": replica_set,
                    "uid": f"{metadata.get('uid')}-{template_hash}",
                    "controller": True,
                }
            ],
        }
        pod_spec = copy.deepcopy(template["spec"])
        yield {"apiVersion": "v1", "kind": "Pod", "metadata": pod_metadata, "spec": pod_spec}


def daemon_set_pods(
    daemon_set: Object, node_labels: Mapping[str, Mapping[str, str]]
) -> Iterator[Object]:
    """The pods of a DaemonSet: one on each node, by name, whose labels its nodeSelector selects."""
    template, metadata = daemon_set["spec"]["template"], daemon_set["metadata"]
    revision = name_suffix(digest(template), 10)
    selector = template["spec"].get("nodeSelector") or {}
    for node, labels in node_labels.items():
        if not selector.items() <= labels.items():
            continue
        pod_metadata = copy.deepcopy(template.get("metadata") or {})
        suffix = name_suffix(digest([metadata.get("uid"), revision, node]), 5)
        pod_metadata |= {
            "name": f"{metadata['name']}-{suffix}",
            "namespace": metadata["namespace"],
            "labels": {**pod_metadata.get("labels", {}), REVISION_LABEL: revision},
            "ownerReferences": [
                {
                    "apiVersion": "apps/v1",
                    "kind": "DaemonSet",
                    "name": metadata["name"],
                    "uid": metadata.get("uid"),
                    "controller": True,
                }
            ],
        }
        pod_spec = {**copy.deepcopy(template["spec"]), "nodeName": node}
        yield {"apiVersion": "v1", "kind": "Pod", "metadata": pod_metadata, "spec": pod_spec}


def deployment_of(pod: Object) -> str | None:
    """The name of the pod's Deployment, from the name of its ReplicaSet."""
    template_hash = pod["metadata"].get("labels", {}).get(HASH_LABEL)
    for owner in pod["metadata"].get("ownerReferences", []):
        if template_hash and owner["kind"] == "ReplicaSet":
            return str(owner["name"]).removesuffix(f"-{template_hash}")
    return None


def workload_of(pod: Object) -> Key | None:
    """The Deployment or DaemonSet of the pod."""
    namespace, deployment = pod["metadata"]["namespace"], deployment_of(pod)
    if deployment is not None:
        return Key("Deployment", namespace, deployment)
    for owner in pod["metadata"].get("ownerReferences", []):
        if owner["kind"] == "DaemonSet":
            return Key("DaemonSet", namespace, str(owner["name"]))
    return None


def is_rolling(workload: Object) -> bool:
    """Whether old pods stay until the new ones are ready.

    That is the default of Deployments. Of DaemonSets, it is maxSurge, as in Kubernetes.
    """
    spec = workload["spec"]
    if workload["kind"] == "DaemonSet":
        rolling = (spec.get("updateStrategy") or {}).get("rollingUpdate") or {}
        return bool(rolling.get("maxSurge"))
    return bool((spec.get("strategy") or {}).get("type", "RollingUpdate") == "RollingUpdate")


def daemon_set_status(daemon_set: Object, objects: Objects) -> dict[str, int]:
    """The counts of a DaemonSet's status."""
    pods = [pod for pod in of_kind(objects, "Pod") if workload_of(pod) == key_of(daemon_set)]
    ready = sum(is_ready(pod) and not is_terminating(pod) for pod in pods)
    return {"desiredNumberScheduled": len(pods), "numberReady": ready, "numberAvailable": ready}


def deployment_status(deployment: Object, objects: Objects) -> dict[str, int]:
    """The replica counts of a Deployment's status."""
    name, namespace = deployment["metadata"]["name"], deployment["metadata"]["namespace"]
    pods = [
        pod
        for pod in of_kind(objects, "Pod")
        if pod["metadata"]["namespace"] == namespace
        and deployment_of(pod) == name
        and not is_terminating(pod)
    ]
    current = {pod["metadata"]["name"] for pod in deployment_pods(deployment)}
    ready = sum(is_ready(pod) for pod in pods)
    return {
        "replicas": len(pods),
        "updatedReplicas": sum(pod["metadata"]["name"] in current for pod in pods),
        "readyReplicas": ready,
        "availableReplicas": ready,
    }
