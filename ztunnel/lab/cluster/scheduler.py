# SPDX-License-Identifier: Apache-2.0
"""What should run, decided from the stored objects alone: the lab's controllers and scheduler.

Pure: objects in, objects out; the caller gives uids and the time. `ztunnel.lab.cluster.services`
plans
virtual addresses and endpoints, `ztunnel.lab.runtime.pods` makes plans come true.

    Deployment ──▶ pods it wants ──▶ node ──▶ addresses ──▶ Pod, phase Pending
    Pod        ──────────────────────▲
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ztunnel.lab.network import addresses
from ztunnel.lab.objects import Key, Object, Objects, key_of, of_kind

HOSTNAME_LABEL = "kubernetes.io/hostname"
HASH_LABEL = "pod-template-hash"
APPLIED_ANNOTATION = "ztunnel-lab/applied-spec"  # hash of a pod's spec as the person wrote it
SYSTEM_NAMESPACES = ("default", "kube-system")

_SUFFIX_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"  # Kubernetes': spells no words
_NOT_PLAYED = {"initContainers": "init containers are not run", "volumes": "volumes not mounted"}


@dataclass(frozen=True)
class NodePlan:
    """A node of the lab; its index (from 1) decides all its addresses."""

    name: str
    index: int


@dataclass
class PodPlan:
    """The pods that should exist, and what a person should know about those that can't."""

    pods: list[Object] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def keys(self) -> set[Key]:
        return {key_of(pod) for pod in self.pods}


def make_nodes(count: int) -> list[NodePlan]:
    """`node1` … `nodeN`."""
    return [NodePlan(f"node{index}", index) for index in range(1, count + 1)]


def node_object(node: NodePlan) -> Object:
    """The Node as an API server would show it."""
    cidrs = list(addresses.pod_cidrs(node.index))
    internal = [
        {"type": "InternalIP", "address": ip} for ip in addresses.node_addresses(node.index)
    ]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name, "labels": {HOSTNAME_LABEL: node.name}},
        "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs},
        "status": {
            "addresses": [*internal, {"type": "Hostname", "address": node.name}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def system_objects(objects: Objects, nodes: Sequence[NodePlan]) -> list[Object]:
    """What exists without anybody's manifest: nodes, namespaces, default service accounts."""
    missing = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        for name in SYSTEM_NAMESPACES
        if Key("Namespace", "", name) not in objects
    ]
    names = {key.name for key in objects if key.kind == "Namespace"} | set(SYSTEM_NAMESPACES)
    accounts = [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": "default", "namespace": name},
        }
        for name in sorted(names)
        if Key("ServiceAccount", name, "default") not in objects
    ]
    return [*missing, *accounts, *(node_object(node) for node in nodes)]


def admit(new: Object, old: Object | None, uid: Callable[[], str], now: str) -> Object:
    """The object to store when `new` is applied over `old`.

    What the lab gave stays (uid, bound node, addresses, status); labels and annotations are
    joined, the manifest's winning, so that `lab label` outlives an apply. A bare pod whose spec
    changed loses its binding and so is made anew.
    """
    stored = copy.deepcopy(new)
    metadata = stored["metadata"]
    if new["kind"] == "Pod":
        digest = _digest(new.get("spec"))
        metadata.setdefault("annotations", {})[APPLIED_ANNOTATION] = digest
    if old is None:
        metadata.setdefault("uid", uid())
        metadata.setdefault("creationTimestamp", now)
        return unbound(stored) if new["kind"] == "Pod" else stored
    for field_name in ("labels", "annotations"):
        joined = {**old["metadata"].get(field_name, {}), **metadata.get(field_name, {})}
        if joined:
            metadata[field_name] = joined
    if new["kind"] == "Pod":
        return _admit_pod(stored, old)
    for field_name in ("uid", "creationTimestamp"):
        metadata.setdefault(field_name, old["metadata"].get(field_name))
    if new["kind"] == "Service":
        _keep_addresses(stored.setdefault("spec", {}), old.get("spec", {}))
    if "status" in old:
        stored.setdefault("status", copy.deepcopy(old["status"]))
    return stored


def _admit_pod(stored: Object, old: Object) -> Object:
    was = old["metadata"].get("annotations", {}).get(APPLIED_ANNOTATION)
    if was != stored["metadata"]["annotations"][APPLIED_ANNOTATION]:
        return unbound(stored)
    kept = copy.deepcopy(old)
    for field_name in ("labels", "annotations"):
        if field_name in stored["metadata"]:
            kept["metadata"][field_name] = stored["metadata"][field_name]
    return kept


def unbound(pod: Object) -> Object:
    """The pod as nobody scheduled it yet: no uid, no status, so that a plan makes it anew."""
    metadata = {name: value for name, value in pod["metadata"].items() if name != "uid"}
    rest = {name: value for name, value in pod.items() if name != "status"}
    return {**rest, "metadata": metadata}


def _keep_addresses(new: dict[str, Any], old: dict[str, Any]) -> None:
    if "clusterIP" in new or "clusterIPs" in new:
        return
    for name in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
        if name in old and old.get("clusterIP") != "None":
            new.setdefault(name, old[name])


def plan_pods(
    objects: Objects,
    nodes: Sequence[NodePlan],
    *,
    uid: Callable[[Object], str],
    now: str,
) -> PodPlan:
    """Every pod that should exist, bound to a node and addressed.

    Pods already bound stay as they are. Order: pods that name their node first, so that the rest
    spread around them.
    """
    plan = PodPlan()
    waiting = []
    for wanted in _wanted_pods(objects):
        stored = objects.get(key_of(wanted))
        if stored and _is_bound(stored):
            plan.pods.append(stored)
        elif problem := _inadmissible(wanted, objects):
            plan.problems.append(problem)
        else:
            waiting.append(copy.deepcopy(wanted))
            plan.problems += _not_played(wanted)
    labels = {node.name: _node_labels(objects, node) for node in nodes}
    for pod in sorted(waiting, key=lambda pod: not _names_node(pod)):
        pod["metadata"]["uid"] = uid(pod)
        pod["metadata"]["creationTimestamp"] = now
        if problem := _bind(pod, plan.pods, nodes, labels, now):
            plan.problems.append(problem)
        plan.pods.append(pod)
    return plan


def _wanted_pods(objects: Objects) -> Iterator[Object]:
    for pod in of_kind(objects, "Pod"):
        if not pod["metadata"].get("ownerReferences"):
            yield _defaulted(pod)
    for deployment in of_kind(objects, "Deployment"):
        yield from map(_defaulted, deployment_pods(deployment))


def deployment_pods(deployment: Object) -> Iterator[Object]:
    """The pods a Deployment wants: stable names, so that the same plan names the same pods."""
    spec, metadata = deployment["spec"], deployment["metadata"]
    template = spec["template"]
    digest = _spell(_digest(template), 10)
    replica_set = f"{metadata['name']}-{digest}"
    replicas = spec.get("replicas")
    for ordinal in range(1 if replicas is None else replicas):
        pod_metadata = copy.deepcopy(template.get("metadata") or {})
        suffix = _spell(_digest([metadata.get("uid"), digest, ordinal]), 5)
        pod_metadata |= {
            "name": f"{replica_set}-{suffix}",
            "namespace": metadata["namespace"],
            "labels": {**pod_metadata.get("labels", {}), HASH_LABEL: digest},
            "ownerReferences": [
                {
                    "apiVersion": "apps/v1",
                    "kind": "ReplicaSet",
                    "name": replica_set,
                    "uid": f"{metadata.get('uid')}-{digest}",
                    "controller": True,
                }
            ],
        }
        spec_copy = copy.deepcopy(template["spec"])
        yield {"apiVersion": "v1", "kind": "Pod", "metadata": pod_metadata, "spec": spec_copy}


def deployment_of(pod: Object) -> str | None:
    """The name of the Deployment a pod belongs to, by its ReplicaSet's name and hash."""
    digest = pod["metadata"].get("labels", {}).get(HASH_LABEL)
    for owner in pod["metadata"].get("ownerReferences", []):
        if digest and owner["kind"] == "ReplicaSet":
            return str(owner["name"]).removesuffix(f"-{digest}")
    return None


def deployment_status(deployment: Object, objects: Objects) -> dict[str, int]:
    """The counters of a Deployment's status."""
    name, namespace = deployment["metadata"]["name"], deployment["metadata"]["namespace"]
    pods = [
        pod
        for pod in of_kind(objects, "Pod")
        if pod["metadata"]["namespace"] == namespace and deployment_of(pod) == name
    ]
    ready = sum(is_ready(pod) for pod in pods)
    return {
        "replicas": len(pods),
        "updatedReplicas": len(pods),
        "readyReplicas": ready,
        "availableReplicas": ready,
    }


def is_ready(pod: Object) -> bool:
    """Whether the Ready condition is true."""
    conditions = pod.get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def host_network(pod: Object) -> bool:
    """Whether the pod lives in its node's own network namespace."""
    return bool(pod["spec"].get("hostNetwork"))


def pod_ips(pod: Object) -> list[str]:
    """The pod's addresses, IPv4 first; empty while it is not scheduled."""
    return [entry["ip"] for entry in pod.get("status", {}).get("podIPs", [])]


def _defaulted(pod: Object) -> Object:
    spec = pod["spec"]
    account = spec.get("serviceAccountName") or spec.get("serviceAccount") or "default"
    return {**pod, "spec": {**spec, "serviceAccountName": account}}


def _is_bound(pod: Object) -> bool:
    return bool(pod["metadata"].get("uid") and pod_ips(pod))


def _names_node(pod: Object) -> bool:
    return bool(pod["spec"].get("nodeName") or pod["spec"].get("nodeSelector"))


def _node_labels(objects: Objects, node: NodePlan) -> dict[str, str]:
    stored = objects.get(Key("Node", "", node.name)) or node_object(node)
    return dict(stored["metadata"].get("labels", {}))


def _inadmissible(pod: Object, objects: Objects) -> str | None:
    key, account = key_of(pod), pod["spec"]["serviceAccountName"]
    if Key("Namespace", "", key.namespace) not in objects:
        return f"{key}: namespace {key.namespace!r} does not exist; mend: apply a Namespace"
    if Key("ServiceAccount", key.namespace, account) not in objects:
        return f"{key}: service account {account!r} does not exist; mend: apply its manifest"
    if not pod["spec"].get("containers"):
        return f"{key}: spec.containers is empty"
    return None


def _not_played(pod: Object) -> Iterator[str]:
    for name, meaning in _NOT_PLAYED.items():
        if pod["spec"].get(name):
            yield f"{key_of(pod)}: spec.{name} is ignored ({meaning} by the lab)"


def _bind(
    pod: Object,
    others: list[Object],
    nodes: Sequence[NodePlan],
    labels: Mapping[str, dict[str, str]],
    now: str,
) -> str | None:
    """Give the pod a node and addresses, or mark it unschedulable and say why."""
    node, reason = _schedule(pod, others, nodes, labels)
    ips: Sequence[str] = ()
    if node:
        try:
            ips = _addresses(pod, node, others)
        except ValueError as error:
            node, reason = None, str(error)
    scheduled = {"type": "PodScheduled", "status": "True" if node else "False"}
    pod["status"] = {"phase": "Pending", "conditions": [scheduled], "startTime": now}
    if not node:
        scheduled |= {"reason": "Unschedulable", "message": reason}
        return f"{key_of(pod)}: not scheduled: {reason}"
    pod["spec"]["nodeName"] = node.name
    hosts = addresses.node_addresses(node.index)
    pod["status"] |= {
        "hostIP": hosts[0],
        "hostIPs": [{"ip": ip} for ip in hosts],
        "podIP": ips[0],
        "podIPs": [{"ip": ip} for ip in ips],
    }
    return None


def _schedule(
    pod: Object,
    others: Iterable[Object],
    nodes: Sequence[NodePlan],
    labels: Mapping[str, dict[str, str]],
) -> tuple[NodePlan | None, str]:
    """The fitting node with the fewest pods of the same owner, then the fewest pods at all."""
    named, selector = pod["spec"].get("nodeName"), pod["spec"].get("nodeSelector") or {}
    fitting = [
        node
        for node in nodes
        if named in (None, "", node.name) and selector.items() <= labels[node.name].items()
    ]
    if not fitting:
        have = ", ".join(node.name for node in nodes)
        asked = f"nodeName {named!r}" if named else f"nodeSelector {selector}"
        return None, f"no node matches {asked}; this lab has {have}"
    owner = _owner(pod)
    placed = [(other["spec"].get("nodeName"), _owner(other)) for other in others]

    def load(node: NodePlan) -> tuple[int, int, int]:
        siblings = sum(owner is not None and entry == (node.name, owner) for entry in placed)
        return siblings, sum(name == node.name for name, _ in placed), node.index

    return min(fitting, key=load), ""


def _owner(pod: Object) -> tuple[str, str] | None:
    owners = pod["metadata"].get("ownerReferences")
    return (pod["metadata"]["namespace"], owners[0]["name"]) if owners else None


def _addresses(pod: Object, node: NodePlan, others: Iterable[Object]) -> Sequence[str]:
    if host_network(pod):
        return addresses.node_addresses(node.index)
    taken = {ip for other in others for ip in pod_ips(other)}
    return addresses.pod_addresses(node.index, taken)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _spell(digest: str, length: int) -> str:
    number = int(digest, 16)
    letters = []
    for _ in range(length):
        number, rest = divmod(number, len(_SUFFIX_ALPHABET))
        letters.append(_SUFFIX_ALPHABET[rest])
    return "".join(letters)
