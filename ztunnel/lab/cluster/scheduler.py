# SPDX-License-Identifier: Apache-2.0
"""The lab's scheduler: the pods that must exist, each with a node and addresses. Pure.

    Deployment, DaemonSet ──▶ its pods ──▶ node ──▶ addresses ──▶ Pod, phase Pending
    Pod                   ─────────────────▲

The caller provides uids and the time. `ztunnel.lab.runtime.kubelet` runs the pods.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ztunnel.lab.cluster.deployments import (
    WORKLOAD_KINDS,
    daemon_set_pods,
    deployment_pods,
    is_rolling,
    workload_of,
)
from ztunnel.lab.cluster.pod_fields import is_host_network, pod_ips
from ztunnel.lab.cluster.system_objects import node_object
from ztunnel.lab.network import addresses
from ztunnel.lab.network.addresses import Node
from ztunnel.lab.objects import Key, Object, Objects, key_of, of_kind

_UNSUPPORTED_FIELDS = ("initContainers",)


@dataclass
class PodPlan:
    """The pods that must exist, and the problems of those that cannot."""

    pods: list[Object] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def keys(self) -> set[Key]:
        """The keys of all pods."""
        return {key_of(pod) for pod in self.pods}


@dataclass
class _Cluster:
    """Where pods can go. `used_ips` includes those of old pods, which may still run."""

    nodes: Sequence[Node]
    labels: Mapping[str, dict[str, str]]
    used_ips: set[str]


def plan_pods(
    objects: Objects,
    nodes: Sequence[Node],
    *,
    uid: Callable[[Object], str],
    now: str,
) -> PodPlan:
    """All pods that must exist, with nodes and addresses. Pods that have them are unchanged.

    Pods with a nodeName or nodeSelector are scheduled first, so that the others balance the load.
    """
    plan = PodPlan()
    unscheduled = []
    labels = {node.name: _node_labels(objects, node) for node in nodes}
    for desired in _desired_pods(objects, labels):
        stored = objects.get(key_of(desired))
        if stored and _is_bound(stored):
            plan.pods.append(stored)
        elif problem := _admission_problem(desired, objects):
            plan.problems.append(problem)
        else:
            unscheduled.append(copy.deepcopy(desired))
            plan.problems += _ignored_fields(desired)
    cluster = _Cluster(
        nodes,
        labels,
        {ip for pod in of_kind(objects, "Pod") for ip in pod_ips(pod)},
    )
    for pod in sorted(unscheduled, key=lambda pod: not _is_constrained(pod)):
        pod["metadata"]["uid"] = uid(pod)
        pod["metadata"]["creationTimestamp"] = now
        if problem := _bind(pod, plan.pods, cluster, now):
            plan.problems.append(problem)
        cluster.used_ips.update(pod_ips(pod))
        plan.pods.append(pod)
    return plan


def surplus_pods(objects: Objects, plan: PodPlan) -> tuple[list[Object], list[Object]]:
    """The stored pods of Deployments and DaemonSets that are not in the plan, in two groups.

    The first group stays until its replacements are ready (a rolling update), the second does not.
    """
    rolling = {
        key_of(workload)
        for kind in WORKLOAD_KINDS
        for workload in of_kind(objects, kind)
        if is_rolling(workload)
    }
    replaced: list[Object] = []
    obsolete: list[Object] = []
    for pod in of_kind(objects, "Pod"):
        if pod["metadata"].get("ownerReferences") and key_of(pod) not in plan.keys:
            (replaced if workload_of(pod) in rolling else obsolete).append(pod)
    return replaced, obsolete


def _desired_pods(objects: Objects, node_labels: Mapping[str, dict[str, str]]) -> Iterator[Object]:
    for pod in of_kind(objects, "Pod"):
        if not pod["metadata"].get("ownerReferences"):
            yield _with_service_account(pod)
    for deployment in of_kind(objects, "Deployment"):
        yield from map(_with_service_account, deployment_pods(deployment))
    for daemon_set in of_kind(objects, "DaemonSet"):
        yield from map(_with_service_account, daemon_set_pods(daemon_set, node_labels))


def _with_service_account(pod: Object) -> Object:
    spec = pod["spec"]
    account = spec.get("serviceAccountName") or spec.get("serviceAccount") or "default"
    return {**pod, "spec": {**spec, "serviceAccountName": account}}


def _is_bound(pod: Object) -> bool:
    return bool(pod["metadata"].get("uid") and pod_ips(pod))


def _is_constrained(pod: Object) -> bool:
    return bool(pod["spec"].get("nodeName") or pod["spec"].get("nodeSelector"))


def _node_labels(objects: Objects, node: Node) -> dict[str, str]:
    stored = objects.get(Key("Node", "", node.name)) or node_object(node)
    return dict(stored["metadata"].get("labels", {}))


def _admission_problem(pod: Object, objects: Objects) -> str | None:
    key, account = key_of(pod), pod["spec"]["serviceAccountName"]
    if Key("Namespace", "", key.namespace) not in objects:
        return f"{key}: namespace {key.namespace!r} does not exist; hint: apply a Namespace"
    if Key("ServiceAccount", key.namespace, account) not in objects:
        return f"{key}: service account {account!r} does not exist; hint: apply a ServiceAccount"
    if not pod["spec"].get("containers"):
        return f"{key}: spec.containers is empty"
    return None


def _ignored_fields(pod: Object) -> Iterator[str]:
    for name in _UNSUPPORTED_FIELDS:
        if pod["spec"].get(name):
            yield f"{key_of(pod)}: spec.{name} is ignored: not supported by the lab"


def _bind(pod: Object, others: list[Object], cluster: _Cluster, now: str) -> str | None:
    """Bind the pod to a node and set its addresses. Returns the reason if that is impossible."""
    node, reason = _select_node(pod, others, cluster.nodes, cluster.labels)
    ips: Sequence[str] = ()
    if node:
        try:
            ips = _allocate_addresses(pod, node, cluster.used_ips)
        except ValueError as error:
            node, reason = None, str(error)
    condition = {"type": "PodScheduled", "status": "True" if node else "False"}
    pod["status"] = {"phase": "Pending", "conditions": [condition], "startTime": now}
    if not node:
        condition |= {"reason": "Unschedulable", "message": reason}
        return f"{key_of(pod)}: not scheduled: {reason}"
    pod["spec"]["nodeName"] = node.name
    host_ips = addresses.node_addresses(node.index)
    pod["status"] |= {
        "hostIP": host_ips[0],
        "hostIPs": [{"ip": ip} for ip in host_ips],
        "podIP": ips[0],
        "podIPs": [{"ip": ip} for ip in ips],
    }
    return None


def _select_node(
    pod: Object,
    others: Iterable[Object],
    nodes: Sequence[Node],
    labels: Mapping[str, dict[str, str]],
) -> tuple[Node | None, str]:
    """The matching node with the fewest pods of the same owner, then with the fewest pods."""
    node_name, selector = pod["spec"].get("nodeName"), pod["spec"].get("nodeSelector") or {}
    matching = [
        node
        for node in nodes
        if node_name in (None, "", node.name) and selector.items() <= labels[node.name].items()
    ]
    if not matching:
        names = ", ".join(node.name for node in nodes)
        constraint = f"nodeName {node_name!r}" if node_name else f"nodeSelector {selector}"
        return None, f"no node matches {constraint}; hint: this lab has {names}"
    owner = _owner(pod)
    placed = [(other["spec"].get("nodeName"), _owner(other)) for other in others]

    def load(node: Node) -> tuple[int, int, int]:
        siblings = sum(owner is not None and entry == (node.name, owner) for entry in placed)
        return siblings, sum(name == node.name for name, _ in placed), node.index

    return min(matching, key=load), ""


def _owner(pod: Object) -> tuple[str, str] | None:
    owners = pod["metadata"].get("ownerReferences")
    return (pod["metadata"]["namespace"], owners[0]["name"]) if owners else None


def _allocate_addresses(pod: Object, node: Node, used: set[str]) -> Sequence[str]:
    if is_host_network(pod):
        return addresses.node_addresses(node.index)
    return addresses.pod_addresses(node.index, used)
