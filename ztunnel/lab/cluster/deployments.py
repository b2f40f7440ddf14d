# SPDX-License-Identifier: Apache-2.0
"""The lab's Deployment controller. Pure."""

from __future__ import annotations

import copy
from collections.abc import Iterator

from ztunnel.lab.cluster.digest import digest, name_suffix
from ztunnel.lab.cluster.pod_fields import is_ready, is_terminating
from ztunnel.lab.objects import Object, Objects, of_kind

HASH_LABEL = "pod-template-hash"


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


def deployment_of(pod: Object) -> str | None:
    """The name of the pod's Deployment, from the name of its ReplicaSet."""
    template_hash = pod["metadata"].get("labels", {}).get(HASH_LABEL)
    for owner in pod["metadata"].get("ownerReferences", []):
        if template_hash and owner["kind"] == "ReplicaSet":
            return str(owner["name"]).removesuffix(f"-{template_hash}")
    return None


def is_rolling(deployment: Object) -> bool:
    """Whether old pods stay until the new ones are ready. The default, as in Kubernetes."""
    strategy = deployment["spec"].get("strategy") or {}
    return bool(strategy.get("type", "RollingUpdate") == "RollingUpdate")


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
