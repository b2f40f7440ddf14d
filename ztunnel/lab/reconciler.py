# SPDX-License-Identifier: Apache-2.0
"""Reconciles pods, endpoints and kube-proxy rules with the stored objects."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime

from ztunnel.lab.cluster import kube_proxy, load_balancer, services
from ztunnel.lab.cluster.admission import admit, terminating, unbound
from ztunnel.lab.cluster.deployments import (
    daemon_set_status,
    deployment_status,
    workload_of,
)
from ztunnel.lab.cluster.l7.backend_certificates import plan_certificates, with_certificates
from ztunnel.lab.cluster.l7.gateways import GatewayPlan, plan_gateways
from ztunnel.lab.cluster.l7.ingresses import plan_ingresses
from ztunnel.lab.cluster.l7.virtual_addresses import plan_entries
from ztunnel.lab.cluster.pod_fields import pod_ips
from ztunnel.lab.cluster.scheduler import plan_pods, surplus_pods
from ztunnel.lab.cluster.system_objects import SYSTEM_NAMESPACES, system_objects
from ztunnel.lab.errors import LabError
from ztunnel.lab.names import LabNames
from ztunnel.lab.network.addresses import Node
from ztunnel.lab.objects import Key, Object, ObjectStore, key_of, of_kind
from ztunnel.lab.runtime import capture_gate, volumes
from ztunnel.lab.runtime.kubelet import Kubelet
from ztunnel.lab.state import LabSettings

_APPLY_ORDER = ("Namespace", "ServiceAccount", "ConfigMap")  # before all other kinds


class Reconciler:
    """The controllers of a lab. The caller holds the lab's lock.

    `pod_uid` returns the uid of a new pod. `progress` receives a line for each step.
    """

    def __init__(
        self,
        names: LabNames,
        nodes: Sequence[Node],
        store: ObjectStore,
        settings: LabSettings,
        *,
        pod_uid: Callable[[Object], str],
        progress: Callable[[str], None],
    ) -> None:
        self._names = names
        self._nodes = nodes
        self._store = store
        self._settings = settings
        self._pod_uid = pod_uid
        self._progress = progress
        self._kubelet = Kubelet(names, nodes, store, self._wait_until_captured)

    def apply(self, objects: Sequence[Object]) -> list[Key]:
        """Store objects, namespaces first. Returns their keys in that order. Raises LabError."""
        stored = self._store.load()
        rank = {kind: number for number, kind in enumerate(_APPLY_ORDER)}
        ordered = sorted(objects, key=lambda obj: rank.get(obj["kind"], len(rank)))
        for obj in ordered:
            key = key_of(obj)
            if key.namespace and not _has_namespace(stored, key.namespace):
                raise LabError(
                    f"{key}: namespace {key.namespace!r} does not exist; hint: apply a Namespace"
                )
            admitted = admit(obj, stored.get(key), new_uid, _now())
            stored[key], _ = with_certificates(admitted, stored)
            self._store.put(stored[key])
        self._put_virtual_addresses()
        return [key_of(obj) for obj in ordered]

    def put_system_objects(self) -> None:
        """Store the objects that a cluster has without manifests."""
        self._put_all(system_objects(self._store.load(), self._nodes))

    def unbind_dead_pods(self) -> None:
        """Unbind the pods whose sandbox does not exist any more, so that they are created anew.

        This must precede waiting for agents, which are not ready while a pod cannot be found.
        """
        for pod in self._kubelet.dead_pods(self._store.load()):
            self._store.put(unbound(pod))

    def reconcile(self, deadline: float | None, *, wait_for_new_only: bool = False) -> list[str]:
        """Reconcile everything, and wait until pods are ready unless `deadline` is None.

        Returns the remaining problems. `wait_for_new_only`: probe other pods once, without waiting.
        """
        self.put_system_objects()
        ingress_problems = self._put_ingress_objects()
        gateway_plan = self._put_gateway_objects()
        problems = [
            *ingress_problems,
            *gateway_plan.problems,
            *self._put_certificates(),
            *self._put_virtual_addresses(),
        ]
        self._put_all(services.plan_services(self._store.load()))
        self.unbind_dead_pods()
        objects = self._store.load()
        plan = plan_pods(objects, self._nodes, uid=self._pod_uid, now=_now())
        replaced, obsolete = surplus_pods(objects, plan)
        if deadline is None:  # no later call would stop the replaced pods once the new are ready
            replaced, obsolete = [], [*replaced, *obsolete]
        self._terminate(obsolete)
        self._put_all(plan.pods)
        self.publish()
        self._kubelet.remove_others([*plan.pods, *replaced])
        pods = [self._kubelet.run(pod, objects) for pod in plan.pods if pod_ips(pod)]
        self._put_all(gateway_plan.annotated)
        old = [pod for pod in pods if wait_for_new_only and key_of(pod) in objects]
        new = [pod for pod in pods if pod not in old]
        self._kubelet.wait_ready(old, 0, self._progress)
        unready = self._kubelet.wait_ready(new, deadline or 0, self._progress)
        self.publish()
        self._terminate([pod for pod in replaced if not _waits_for(pod, unready)])
        reasons = [f"{key_of(pod)}: {each}" for pod in new for each in volumes.problems(pod)]
        reasons += [self._kubelet.unready_reason(pod) for pod in unready] if deadline else []
        return [*problems, *plan.problems, *reasons, *self._uncaptured(pods)]

    def _put_ingress_objects(self) -> list[str]:
        """Store the routes and listeners of Ingresses, remove others. Returns the problems."""
        stored = self._store.load()
        plan = plan_ingresses(stored)
        for key in plan.stale:
            self._store.remove(key)
        for obj in plan.objects:
            self._store.put(admit(obj, stored.get(key_of(obj)), new_uid, _now()))
        return plan.problems

    def _put_gateway_objects(self) -> GatewayPlan:
        """Store what runs the Gateways, and remove it with them."""
        stored = self._store.load()
        plan = plan_gateways(stored)
        for key in plan.stale:
            self._store.remove(key)
        for obj in plan.objects:
            self._store.put(admit(obj, stored.get(key_of(obj)), new_uid, _now()))
        return plan

    def _put_certificates(self) -> list[str]:
        """Store the certificates of BackendTLSPolicies. Returns the problems."""
        changed, problems = plan_certificates(self._store.load())
        self._put_all(changed)
        return problems

    def _put_virtual_addresses(self) -> list[str]:
        """Store the virtual addresses of ServiceEntries. Returns the problems."""
        changed, problems = plan_entries(self._store.load())
        self._put_all(changed)
        return problems

    def publish(self) -> None:
        """Update endpoints, status of deployments, and the rules of nodes and load balancer."""
        objects = self._store.load()
        slices = services.plan_slices(objects)
        self._put_all(slices)
        for key in services.stale_slices(objects, slices):
            self._store.remove(key)
        for deployment in of_kind(objects, "Deployment"):
            status = deployment_status(deployment, objects)
            self._store.put({**deployment, "status": status})
        for daemon_set in of_kind(objects, "DaemonSet"):
            self._store.put({**daemon_set, "status": daemon_set_status(daemon_set, objects)})
        frontends = list(kube_proxy.frontends(self._store.load()))
        for node in self._nodes:
            kube_proxy.apply(self._names.node_netns(node.name), kube_proxy.render(frontends, node))
        # after the nodes: until then, they forward to pods that terminate
        load_balancer.apply(
            self._names.external_netns, load_balancer.render(frontends, self._nodes)
        )

    def _wait_until_captured(self, pod: Object) -> None:
        if self._settings.mesh and capture_gate.must_be_captured(pod, self._store.load()):
            capture_gate.wait_until_captured(self._names, pod)

    def _uncaptured(self, pods: Sequence[Object]) -> Iterator[str]:
        """The reasons why pods are not captured that must be."""
        objects = self._store.load()
        for pod in pods:
            if self._settings.mesh and capture_gate.must_be_captured(pod, objects):
                problem = capture_gate.wait_until_captured(self._names, pod, timeout_s=0)
                if problem:
                    yield problem

    def _terminate(self, pods: Sequence[Object]) -> None:
        """Delete pods as Kubernetes does: out of the endpoints first, then SIGTERM, then gone."""
        if not pods:
            return
        for pod in pods:
            self._store.put(terminating(pod, _now()))
        self.publish()
        self._kubelet.stop(pods)
        for pod in pods:
            self._store.remove(key_of(pod))
        self.publish()
        self._kubelet.remove(pods)

    def _put_all(self, objects: Sequence[Object]) -> None:
        for obj in objects:
            self._store.put(obj)


def new_uid(_: Object | None = None) -> str:
    """A random uid."""
    return str(uuid.uuid4())


def _waits_for(pod: Object, unready: Sequence[Object]) -> bool:
    """Whether a pod of a Deployment or DaemonSet stays because its replacement is not ready."""
    return any(workload_of(other) == workload_of(pod) for other in unready)


def _has_namespace(objects: Mapping[Key, Object], name: str) -> bool:
    return name in SYSTEM_NAMESPACES or Key("Namespace", "", name) in objects


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
