# SPDX-License-Identifier: Apache-2.0
"""The cluster's objects as workloads, services and policies, updated incrementally.

A source, a directory or a reflector, calls `upsert` with an object or `delete` with a name, in any
order. The cost of a change is proportional to what depends on it: a pod, the pods of a namespace,
the service of an EndpointSlice. If an object is invalid, its previous state remains in effect: a
pod that dropped out of the mesh would get plaintext. Not thread-safe.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
import structlog

from ztunnel.ipc.gateway_messages import L7ObjectBody
from ztunnel.kube.objects import translation
from ztunnel.kube.objects.fields import (
    Object,
    ObjectKey,
    TranslateError,
    is_mesh_kind,
    key_of,
    make_key,
)
from ztunnel.kube.objects.l7_kinds import L7_KINDS, STORED_KINDS
from ztunnel.kube.objects.waypoints import Traffic, gateway_of, requires_waypoint
from ztunnel.kube.view.cluster_claims import ServiceName
from ztunnel.kube.view.gateway_port_index import GatewayPortIndex
from ztunnel.kube.view.l7_index import L7Index
from ztunnel.kube.view.policy_index import PolicyIndex
from ztunnel.kube.view.service_entry_index import ServiceEntryIndex
from ztunnel.kube.view.service_index import ServiceIndex
from ztunnel.kube.view.tracked_map import TrackedMap
from ztunnel.kube.view.waypoint_index import WaypointIndex
from ztunnel.kube.view.waypoint_requirements import WaypointRequirements
from ztunnel.mesh.model import DEFAULT_ROOT_NAMESPACE, Service, Workload
from ztunnel.mesh.policy.model import Policy
from ztunnel.mesh.selectors import Selector, selects

_MAX_ERROR_CHARS = 1024

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ViewChange:
    """Complete new values, and the names of removed ones: `Workload.uid`, `Service.key`, the keys
    of policies.

    `revision` numbers the states of the view; an empty change has the revision of the last one.
    `l7` are the bodies of objects that configure L7, `removed_l7` the names of removed ones
    (`str(ObjectKey)`), which `revision` does not count. `local_pods` are all pods of the view's
    node in this state, enrolled or not. `local_changed`: one of them is new, different or gone.
    """

    workloads: tuple[Workload, ...] = ()
    services: tuple[Service, ...] = ()
    removed_workloads: tuple[str, ...] = ()
    removed_services: tuple[str, ...] = ()
    policies: tuple[Policy, ...] = ()
    removed_policies: tuple[str, ...] = ()
    l7: tuple[L7ObjectBody, ...] = ()
    removed_l7: tuple[str, ...] = ()
    revision: int = 0
    local_pods: tuple[Workload, ...] = ()
    local_changed: bool = False

    @property
    def affects_authorization(self) -> bool:
        """Whether connections between pods of this node may be decided differently now."""
        return self.local_changed or bool(self.policies or self.removed_policies)

    def __bool__(self) -> bool:
        return bool(
            self.workloads
            or self.services
            or self.removed_workloads
            or self.removed_services
            or self.policies
            or self.removed_policies
            or self.l7
            or self.removed_l7
        )


class ClusterView:
    """All workloads, services and policies of one cluster."""

    def __init__(
        self,
        trust_domain: str,
        cluster: str,
        cluster_domain: str = "cluster.local",
        root_namespace: str = DEFAULT_ROOT_NAMESPACE,
        discovery: Sequence[Selector] = (),
        *,
        node: str = "",
        annotated_only: bool = False,
    ) -> None:
        """`node`: its pods are `ViewChange.local_pods`.

        `discovery`: if not empty, namespaces that none of these selects are ignored.

        `annotated_only`: see `translation.Cluster`.
        """
        self.revision = 0
        self._node = node
        self._local_uids: set[str] = set()  # as of the last drain
        self._discovery = discovery
        self._cluster = translation.Cluster(trust_domain, cluster, cluster_domain, annotated_only)
        self._workloads: TrackedMap[Workload] = TrackedMap()
        self._services: TrackedMap[Service] = TrackedMap()
        self._errors: dict[str, str] = {}
        self._namespace_labels: dict[str, dict[str, str]] = {}
        self._node_addresses: dict[str, tuple[str, ...]] = {}
        self._pods: dict[str, dict[str, translation.Pod]] = defaultdict(dict)  # namespace → name
        self._uids_on: dict[str, dict[str, None]] = defaultdict(dict)  # node → Workload.uid
        self._uid_of_pod: dict[str, str] = {}  # metadata.uid → Workload.uid
        self._waypoints = WaypointIndex(self._labels_of)
        self._gateway_ports = GatewayPortIndex(self._labels_of)
        self._service_index = ServiceIndex(
            self._cluster, self._services, self._is_discovered, self._waypoints
        )
        self._policies = PolicyIndex(root_namespace, self._service_index.spec, self._services.get)
        self.entries = ServiceEntryIndex(
            cluster_domain, self._services, self._pods_in, self._waypoints
        )
        self._requirements = WaypointRequirements(self._workloads.get, self._policies.set_own)
        self._l7 = L7Index()
        self._upserts: dict[str, Callable[[ObjectKey, Object], str]] = {
            "Namespace": self._put_namespace,
            "Node": self._put_node,
            "Pod": self._put_pod,
            "Service": self._put_service,
            "EndpointSlice": self._service_index.put_slice,
            "AuthorizationPolicy": self._policies.put_authorization,
            "PeerAuthentication": self._policies.put_peer,
            "ServiceEntry": self.entries.put,
            "Gateway": self._put_gateway,
            "GatewayClass": self._put_gateway_class,
            "ListenerSet": self._put_listener_set,
        }
        self._deletes: dict[str, Callable[[ObjectKey], None]] = {
            "Namespace": self._drop_namespace,
            "Node": self._drop_node,
            "Pod": self._drop_pod,
            "Service": self._drop_service,
            "EndpointSlice": self._service_index.drop_slice,
            "AuthorizationPolicy": self._policies.drop,
            "PeerAuthentication": self._policies.drop,
            "ServiceEntry": self.entries.drop,
            "Gateway": self._drop_gateway,
            "GatewayClass": self._drop_gateway_class,
            "ListenerSet": self._drop_listener_set,
        }

    def upsert(self, obj: Object) -> None:
        """Add or replace an object. Kinds that the mesh does not use are ignored."""
        if not is_mesh_kind(obj):
            return
        name = str(obj["kind"])
        try:
            key = key_of(obj)
            name = str(key)
            message = self._put_l7(key, obj)
            if key.kind in self._upserts:
                message = self._upserts[key.kind](key, obj) or message
        except TranslateError as error:
            message = str(error)
        except Exception as error:  # a defect must not stop the other objects
            log.exception("object handler failed", object=name)
            message = f"{type(error).__name__}: {error}"
        self._set_error(name, message)

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """Remove an object, if it is known."""
        key = make_key(kind, namespace, name)
        if kind in STORED_KINDS:
            self._l7.drop(key)
        if kind in self._deletes:
            self._deletes[kind](key)
        self._set_error(str(key), "")

    def drain(self) -> ViewChange:
        """The difference to the last `drain`, however often it changed in between."""
        self._join_services()
        workloads, removed_workloads = self._workloads.drain()
        services, removed_services = self._services.drain()
        policies, removed_policies = self._policies.drain()
        l7, removed_l7 = self._l7.bodies.drain()
        if any(
            (workloads, services, removed_workloads, removed_services, policies, removed_policies)
        ):  # workers learn nothing of L7 objects
            self.revision += 1
        return ViewChange(
            workloads,
            services,
            removed_workloads,
            removed_services,
            policies,
            removed_policies,
            l7,
            removed_l7,
            self.revision,
            tuple(self.pods_on(self._node)),
            self._is_local({workload.uid for workload in workloads}.union(removed_workloads)),
        )

    def _is_local(self, uids: set[str]) -> bool:
        """Whether one of the workloads is, or was at the last drain, on the view's node.

        Call it once per drain: it records the local workloads for the next one.
        """
        before = self._local_uids
        self._local_uids = set(self._uids_on.get(self._node, ()))
        return not uids.isdisjoint(before | self._local_uids)

    def snapshot(self) -> ViewChange:
        """The complete state; the next `drain` is not affected."""
        self._join_services()
        return ViewChange(
            tuple(self._workloads),
            tuple(self._services),
            policies=tuple(self._policies.all()),
            l7=tuple(self._l7.bodies),
            revision=self.revision,
            local_pods=tuple(self.pods_on(self._node)),
        )

    def pods_on(self, node: str) -> list[Workload]:
        """The workloads on a node, enrolled or not."""
        found = (self._workloads.get(uid) for uid in self._uids_on.get(node, ()))
        return [workload for workload in found if workload is not None]

    def workload_by_pod_uid(self, uid: str) -> Workload | None:
        """The workload of the pod with this metadata.uid."""
        return self._workloads.get(self._uid_of_pod.get(uid, ""))

    def annotation(self, namespace: str, name: str, annotation: str) -> str:
        """An annotation of a pod; empty if the pod does not exist or lacks it."""
        pod = self._pods.get(namespace, {}).get(name)
        return pod.annotations.get(annotation, "") if pod else ""

    def node_addresses(self, node: str) -> list[str]:
        """The canonical addresses of a node; empty if it is unknown."""
        return list(self._node_addresses.get(node, ()))

    def errors(self) -> dict[str, str]:
        """The errors and warnings of objects, by object."""
        return dict(self._errors)

    def error_of(self, key: ObjectKey) -> str:
        """The error or warning of an object; empty if there is none."""
        return self._errors.get(str(key), "")

    def pod_privileges(self, namespace: str, name: str) -> str:
        """The privileges of a pod that let it bypass the capture; empty if there are none."""
        pod = self._pods.get(namespace, {}).get(name)
        return pod.privileges if pod is not None else ""

    def _put_l7(self, key: ObjectKey, obj: Object) -> str:
        return self._l7.put(key, obj) if key.kind in L7_KINDS else ""

    def _set_error(self, name: str, error: str) -> None:
        if not error:
            self._errors.pop(name, None)
        elif self._errors.get(name) != (error := error[:_MAX_ERROR_CHARS]):
            self._errors[name] = error
            log.warning("object invalid", object=name, error=error)

    def _put_namespace(self, key: ObjectKey, obj: Object) -> str:
        labels = translation.read_namespace_labels(obj)
        self._label_namespace(key.name, labels)
        metadata = {"name": key.name, "labels": labels}
        return self._l7.put(key, {"apiVersion": "v1", "kind": key.kind, "metadata": metadata})

    def _drop_namespace(self, key: ObjectKey) -> None:
        self._label_namespace(key.name, None)

    def _label_namespace(self, name: str, labels: dict[str, str] | None) -> None:
        before = self._namespace_labels.pop(name, {})
        if labels is not None:
            self._namespace_labels[name] = labels
        if before != (labels or {}):
            for pod in self._pods.get(name, {}).values():
                self._derive(pod)
            self._service_index.namespace_changed(name)
            self.entries.namespace_changed(name)
            self._gateway_ports_changed(self._gateway_ports.namespace_changed(name))

    def _labels_of(self, namespace: str) -> dict[str, str]:
        return self._namespace_labels.get(namespace, {})

    def _put_gateway(self, key: ObjectKey, obj: Object) -> str:
        self._gateway_ports_changed(self._gateway_ports.put_gateway(key, obj))
        self._waypoints_changed(self._waypoints.put(key, obj))
        return ""

    def _drop_gateway(self, key: ObjectKey) -> None:
        self._gateway_ports_changed(self._gateway_ports.drop_gateway(key))
        self._waypoints_changed(self._waypoints.drop(key))

    def _put_gateway_class(self, key: ObjectKey, obj: Object) -> str:
        self._gateway_ports_changed(self._gateway_ports.set_class(key.name, obj))
        self._waypoints_changed(self._waypoints.put_class(key, obj))
        return ""

    def _drop_gateway_class(self, key: ObjectKey) -> None:
        self._gateway_ports_changed(self._gateway_ports.set_class(key.name, None))
        self._waypoints_changed(self._waypoints.drop_class(key))

    def _put_listener_set(self, key: ObjectKey, obj: Object) -> str:
        self._gateway_ports_changed(self._gateway_ports.put_set(key, obj))
        return ""

    def _drop_listener_set(self, key: ObjectKey) -> None:
        self._gateway_ports_changed(self._gateway_ports.drop_set(key))

    def _gateway_ports_changed(self, gateways: set[str]) -> None:
        """Derive the pods of these Gateways again."""
        for gateway in gateways:
            namespace = gateway.partition("/")[0]
            for pod in self._pods.get(namespace, {}).values():
                if gateway_of(pod.labels, namespace) == gateway:
                    self._derive(pod)

    def _waypoints_changed(self, users: frozenset[ObjectKey]) -> None:
        """Resolve the waypoint of these objects again."""
        for key in sorted(users):
            match key.kind:
                case "Service":
                    self._service_index.waypoint_changed(key)
                case "ServiceEntry":
                    self.entries.waypoint_changed(key)
                case _:
                    self._derive(self._pods[key.namespace][key.name])

    def _put_node(self, key: ObjectKey, obj: Object) -> str:
        self._node_addresses[key.name] = translation.read_node_addresses(obj)
        self.entries.set_cluster_addresses(str(key), translation.read_all_node_addresses(obj))
        return ""

    def _drop_node(self, key: ObjectKey) -> None:
        self._node_addresses.pop(key.name, None)
        self.entries.set_cluster_addresses(str(key), ())

    def _put_service(self, key: ObjectKey, obj: Object) -> str:
        message = self._service_index.put(key, obj)
        spec = self._service_index.spec(f"{key.namespace}/{key.name}")
        self.entries.set_cluster_addresses(str(key), spec.vips if spec is not None else ())
        self.entries.put_cluster_service(ServiceName(key.namespace, key.name))
        return message

    def _drop_service(self, key: ObjectKey) -> None:
        self._service_index.drop(key)
        self.entries.set_cluster_addresses(str(key), ())
        self.entries.drop_cluster_service(ServiceName(key.namespace, key.name))

    def _put_pod(self, key: ObjectKey, obj: Object) -> str:
        pod = translation.read_pod(obj)
        self._pods[key.namespace][key.name] = pod
        uid = self._cluster.workload_uid(key.namespace, key.name)
        self._policies.deny_workload(key.namespace, key.name, uid, pod.denied)
        self._derive(pod)
        self.entries.set_cluster_addresses(str(key), pod.addresses if pod.is_workload else ())
        # an agent watches no other node than its own, but all pods
        self.entries.set_cluster_addresses(f"the node of {key}", pod.host_addresses)
        return pod.warning

    def _drop_pod(self, key: ObjectKey) -> None:
        pods = self._pods.get(key.namespace, {})
        if pods.pop(key.name, None) is not None and not pods:
            del self._pods[key.namespace]
        self.entries.set_cluster_addresses(str(key), ())
        self.entries.set_cluster_addresses(f"the node of {key}", ())
        self._waypoints.forget(key)
        uid = self._cluster.workload_uid(key.namespace, key.name)
        self._set_workload(uid, None)
        self._requirements.pod_changed(uid, required=None)
        self._policies.deny_workload(key.namespace, key.name, uid, "")
        self.entries.pods_changed(key.namespace)

    def _derive(self, pod: translation.Pod) -> None:
        labels = self._namespace_labels.get(pod.namespace, {})
        uid = self._cluster.workload_uid(pod.namespace, pod.name)
        waypoint, error, _ = self._waypoints.resolve(
            make_key("Pod", pod.namespace, pod.name), pod.labels, Traffic.WORKLOAD
        )
        found = translation.workload(pod, labels, self._cluster, waypoint, error)
        if found is not None and found.gateway and found.enrolled:
            ports = self._gateway_ports.ports(found.gateway)
            found = msgspec.structs.replace(found, gateway_ports=ports)
        self._set_workload(uid, found if self._is_discovered(pod.namespace) else None)
        inherited = requires_waypoint(labels, {}) or None  # `false` decides for no pod
        own = pod.requires_waypoint
        self._requirements.pod_changed(uid, required=inherited if own is None else own)
        self.entries.pods_changed(pod.namespace)

    def _is_discovered(self, namespace: str) -> bool:
        return selects(self._discovery, self._namespace_labels.get(namespace, {}))

    def _pods_in(self, namespace: str) -> Iterator[tuple[str, translation.Pod]]:
        if self._is_discovered(namespace):
            for pod in self._pods.get(namespace, {}).values():
                yield self._cluster.workload_uid(namespace, pod.name), pod

    def _set_workload(self, uid: str, new: Workload | None) -> None:
        old = self._workloads.get(uid)
        self._workloads.put(uid, new)
        if old is not None:
            self._uids_on[old.node].pop(uid, None)
            if not self._uids_on[old.node]:
                del self._uids_on[old.node]
            if self._uid_of_pod.get(old.pod_uid) == uid:
                del self._uid_of_pod[old.pod_uid]
        if new is not None:
            self._uids_on[new.node][uid] = None
            self._uid_of_pod[new.pod_uid] = uid

    def _join_services(self) -> None:
        """Update what is derived from several objects: once, however many of them changed."""
        for key in self._service_index.join():
            self._policies.service_changed(key)
            spec = self._service_index.spec(key)
            self._requirements.service_changed(
                key,
                self._services.get(key),
                required=spec is not None and spec.requires_waypoint is True,
            )
        self._requirements.join()
        for entry, message in self.entries.join().items():
            self._set_error(str(entry), message)
