# SPDX-License-Identifier: Apache-2.0
"""The L7 half of one term as leader: watches, a queue of its own, and its threads.

    change ──▶ model ──▶ the object's own item, at once
                     ──▶ `ALL`, after a moment: which statuses differ because of the change

A flood of routes therefore does not delay certificates.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import structlog

from ztunnel.controller.l7.backend_certificates import BackendCertificates
from ztunnel.controller.l7.computers import Computers, WaypointState
from ztunnel.controller.l7.gateway_classes import OUR_CLASSES, GatewayClasses, is_our_class
from ztunnel.controller.l7.gateways.certificate_watches import CertificateWatches
from ztunnel.controller.l7.gateways.certificates import GatewayCertificates
from ztunnel.controller.l7.gateways.objects import GatewayObjects
from ztunnel.controller.l7.gateways.reconciler import Cluster, Gateways
from ztunnel.controller.l7.ingresses import MADE_KINDS, Ingresses
from ztunnel.controller.l7.model import Model
from ztunnel.controller.l7.object_client import ObjectClient, Ref
from ztunnel.controller.l7.rejections import Rejections
from ztunnel.controller.l7.statuses import Statuses
from ztunnel.controller.l7.virtual_addresses import KIND as SERVICE_ENTRY
from ztunnel.controller.l7.virtual_addresses import VirtualAddresses
from ztunnel.controller.l7.watches import INGRESS_KINDS, OWNED_KINDS, POD, Watches
from ztunnel.controller.workqueue import WorkQueue
from ztunnel.kube.client.reflector import Reflector
from ztunnel.kube.client.request import CONFLICT, ApiError
from ztunnel.kube.objects.fields import Object
from ztunnel.kube.objects.l7_kinds import BACKEND_TLS_POLICY
from ztunnel.kube.objects.policy_status import PolicyCondition
from ztunnel.l7.deployment.parameters import names_parameters
from ztunnel.l7.deployment.resources import possible_gateways
from ztunnel.l7.deployment.settings import (
    ALL_NAMESPACES,
    GATEWAY_LABEL,
    DeploymentSettings,
)
from ztunnel.l7.inputs import Settings
from ztunnel.l7.names import is_ingress_class
from ztunnel.l7.traffic.backend_ca import RefError

THREADS = 2
SETTLE_S = 0.5  # several changes lead to one pass over all statuses
ADDRESSES_SETTLE_S = 0.1  # the same over all ServiceEntries, whose applications wait for it
_GATEWAY, _CLASS, _NAMESPACE = "Gateway", "GatewayClass", "Namespace"

log = structlog.get_logger()


@dataclass(frozen=True)
class L7Options:
    """Settings of the mesh, and of the pods of gateways.

    `certificate_namespaces`: whose Secrets and ConfigMaps gateways may use; `*` stands for all.
    """

    mesh: Settings = field(default_factory=Settings)
    deployment: DeploymentSettings = field(default_factory=DeploymentSettings)
    certificate_namespaces: frozenset[str] = frozenset({ALL_NAMESPACES})


class Task(Enum):
    """What an item of the queue stands for."""

    CLASS = "gateway class"
    GATEWAY = "gateway"
    STATUS = "status"
    REJECTION = "rejected configuration"
    CERTIFICATES = "backend certificates"
    ADDRESSES = "virtual addresses"
    INGRESSES = "ingresses"
    ALL = "all statuses"


@dataclass(frozen=True)
class Item:
    """`ref`: the object; of ALL, empty."""

    task: Task
    ref: Ref


_ALL = Item(Task.ALL, Ref("", "", ""))
_ADDRESSES = Item(Task.ADDRESSES, Ref("", "", ""))  # of all entries, which must differ
_INGRESSES = Item(Task.INGRESSES, Ref("", "", ""))
_OF_LISTENERS = frozenset({"ListenerSet", "ReferenceGrant"})  # besides Gateways and namespaces
_FOR_INGRESSES = frozenset({*INGRESS_KINDS, *MADE_KINDS, _GATEWAY, "Service"})


class L7Session:
    """Started once, closed once."""

    def __init__(
        self, client: Any, options: L7Options, on_pass: Callable[[], None] = lambda: None
    ) -> None:
        """`on_pass` is called after changes that may affect the status of other objects."""
        self._on_pass = on_pass
        objects = ObjectClient(client)
        self._queue: WorkQueue[Item] = WorkQueue()
        self._model = Model(options.mesh)
        self._watches = Watches(client, self._changed, self._listed)
        self._classes = GatewayClasses(objects, self._watches)
        self._rejections = Rejections(objects, self._watches)
        self._secrets = CertificateWatches(
            client, options.certificate_namespaces, self._secret_changed, self._secrets_listed
        )
        owned = GatewayObjects(objects, self._watches)
        self._gateway_certificates = GatewayCertificates(
            objects, self._watches, self._secrets, owned
        )
        self._gateways = Gateways(
            Cluster(objects, self._watches, self._classes, self._model),
            self._gateway_certificates,
            owned,
            options.deployment,
            self._rejections.of_gateway,
        )
        self._computers = Computers(
            self._model,
            self._waypoint_state,
            self._rejections.by_service,
            self._ref_errors,
        )
        self._certificates = BackendCertificates(
            objects, self._watches, self._computers.is_enforced, self._certificates_read
        )
        self._addresses = VirtualAddresses(
            objects, self._watches, options.mesh.cluster_domain, self._model.has_address
        )
        self._statuses = Statuses(objects, self._watches, self._computers, time.monotonic)
        self._ingresses = Ingresses(objects, self._watches, self._model.port_number)
        self._handlers: dict[Task, Callable[[Ref], float | None]] = {
            Task.CLASS: self._reconcile_class,
            Task.GATEWAY: lambda ref: self._gateways.reconcile(f"{ref.namespace}/{ref.name}"),
            Task.STATUS: self._statuses.reconcile,
            Task.REJECTION: self._read_rejection,
            Task.CERTIFICATES: self._certificates.reconcile,
            Task.ADDRESSES: self._allocate_addresses,
            Task.INGRESSES: lambda _: self._ingresses.reconcile(),
            Task.ALL: self._find_outdated,
        }
        self._unlisted = {reflector.resource.kind for reflector in self._watches.reflectors}
        self._threads = [
            threading.Thread(target=self._work, name=f"reconcile-l7-{number}", daemon=True)
            for number in range(THREADS)
        ]

    @property
    def reflectors(self) -> list[Reflector]:
        """To be started and stopped by the caller."""
        return [*self._watches.reflectors, *self._secrets.reflectors]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop; waits for reconciliations in progress."""
        self._queue.close()
        for thread in self._threads:
            thread.join()

    def policy_condition(self, policy: Object) -> PolicyCondition | None:
        """The condition of an AuthorizationPolicy that waypoints enforce; None if nodes do."""
        return self._computers.authorization_condition(policy)

    def namespace_changed(self, name: str, namespace: Object | None) -> None:
        """A Namespace, which the caller watches, has changed; None if it is gone."""
        obj = namespace or {"kind": _NAMESPACE, "metadata": {"name": name}}
        if namespace is not None:
            self._model.put(obj)
        else:
            self._model.remove(obj)
        self._add_ingress_gateways()
        self._queue.add(_ALL, SETTLE_S)

    # Called in the reflectors' threads

    def _listed(self, kind: str) -> None:
        """Nothing is written before every kind is known: a status would name missing objects."""
        self._unlisted.discard(kind)
        if kind == _CLASS:
            for name in OUR_CLASSES:
                self._add(Task.CLASS, Ref(_CLASS, "", name))
        if not self._unlisted:
            self._queue.add(_ALL)
            self._queue.add(_ADDRESSES)
            self._queue.add(_INGRESSES)
            for gateway in self._watches.objects(_GATEWAY):
                self._add(Task.GATEWAY, _ref(gateway))
            for policy in self._watches.objects(BACKEND_TLS_POLICY):
                self._add(Task.CERTIFICATES, _ref(policy))

    def _changed(self, obj: Object) -> None:
        ref = _ref(obj)
        current = self._watches.of(ref)
        if ref.kind == POD:
            self._pod_changed(ref, current or obj)
            return
        if ref.kind not in OWNED_KINDS:
            if current is not None:
                self._model.put(current)
            else:
                self._model.remove(obj)
        if ref.kind in OWNED_KINDS or ref.kind in (_GATEWAY, "Service"):
            for name in possible_gateways(ref.name):
                self._add(Task.GATEWAY, Ref(_GATEWAY, ref.namespace, name))
        if ref.kind in _OF_LISTENERS:
            self._add_ingress_gateways()
        if ref.kind == BACKEND_TLS_POLICY:
            self._add(Task.CERTIFICATES, ref)
        if ref.kind == SERVICE_ENTRY:
            self._queue.add(_ADDRESSES, ADDRESSES_SETTLE_S)
        if ref.kind == _CLASS:
            self._class_changed(ref, current)
        if ref.kind in self._computers.kinds:
            self._add(Task.STATUS, ref)
        if ref.kind in _FOR_INGRESSES:
            self._queue.add(_INGRESSES, SETTLE_S)
        self._queue.add(_ALL, SETTLE_S)

    def _class_changed(self, ref: Ref, current: Object | None) -> None:
        self._add(Task.CLASS, ref)
        is_relevant = current is None or is_our_class(current)
        for gateway in self._watches.objects(_GATEWAY) if is_relevant else ():
            self._add(Task.GATEWAY, _ref(gateway))

    def _pod_changed(self, ref: Ref, obj: Object) -> None:
        self._add(Task.REJECTION, ref)
        labels = obj["metadata"].get("labels") or {}
        name = labels.get(GATEWAY_LABEL)
        if isinstance(name, str) and name:
            self._add(Task.GATEWAY, Ref(_GATEWAY, ref.namespace, name))

    def _secret_changed(self, ref: Ref) -> None:
        """A Secret or ConfigMap: with certificates, or of a Gateway's parametersRef."""
        users = set(self._gateway_certificates.users(ref))
        for gateway in self._watches.objects(_GATEWAY) if ref.kind == "ConfigMap" else ():
            if names_parameters(gateway, ref.namespace, ref.name):
                users.add(_ref(gateway))
        for user in users:
            self._add(Task.GATEWAY, user)
        for policy in self._certificates.users(ref):
            self._add(Task.CERTIFICATES, policy)

    def _secrets_listed(self) -> None:
        if not self._unlisted:
            self._add_ingress_gateways()

    def _add_ingress_gateways(self) -> None:
        """Of all: which ListenerSets and grants concern a Gateway is known when it is reconciled.

        A reconciliation without changes makes no request.
        """
        for gateway in self._watches.objects(_GATEWAY):
            spec = gateway.get("spec")
            if isinstance(spec, dict) and is_ingress_class(spec.get("gatewayClassName")):
                self._add(Task.GATEWAY, _ref(gateway))

    def _add(self, task: Task, ref: Ref) -> None:
        self._queue.add(Item(task, ref))

    # Called in the worker threads

    def _reconcile_class(self, ref: Ref) -> None:
        self._classes.reconcile(ref.name)

    def _read_rejection(self, ref: Ref) -> None:
        if self._rejections.reconcile(ref):
            self._queue.add(_ALL)
            for gateway in self._watches.objects(_GATEWAY):
                if gateway["metadata"].get("namespace") == ref.namespace:
                    self._add(Task.GATEWAY, _ref(gateway))

    def _allocate_addresses(self, ref: Ref) -> None:
        self._addresses.reconcile(ref)

    def _ref_errors(self, ref: Ref) -> Sequence[RefError] | None:
        return self._certificates.errors(ref)

    def _certificates_read(self, ref: Ref) -> None:
        self._add(Task.STATUS, ref)

    def _waypoint_state(self, key: str) -> WaypointState:
        namespace, _, name = key.partition("/")
        gateway = self._watches.get(_GATEWAY, namespace, name)
        if gateway is None:
            return WaypointState(exists=False, ready=False)
        spec = gateway.get("spec")
        class_name = str(spec.get("gatewayClassName")) if isinstance(spec, dict) else ""
        foreign = self._classes.foreign_controller(class_name)
        return WaypointState(True, self._gateways.is_ready(key), foreign)

    def _find_outdated(self, _: Ref) -> None:
        self._computers.compile()
        self._on_pass()
        for ref in self._certificates.unread():
            self._add(Task.CERTIFICATES, ref)
        for ref in self._statuses.outdated():
            self._add(Task.STATUS, ref)
        self._add_ingress_gateways()

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._unlisted and item.task is not Task.CLASS:
                self._queue.done(item)  # `_listed` adds all again
                continue
            try:
                repeat_s = self._handlers[item.task](item.ref)
                self._queue.done(item)
            except Exception as error:
                self._retry(item, error)
                continue
            if repeat_s is not None:
                self._queue.add(item, repeat_s)

    def _retry(self, item: Item, error: Exception) -> None:
        backoff_s = self._queue.retry(item)
        if isinstance(error, ApiError) and error.status == CONFLICT:
            return  # the object changed in between: a retry reads it again
        log.warning(
            "reconciliation failed",
            kind=item.task.value,
            name=str(item.ref),
            error=str(error).splitlines()[0] if str(error) else type(error).__name__,
            retry_in_s=round(backoff_s, 1),
            exc_info=None if isinstance(error, ApiError) else error,
        )


def _ref(obj: Object) -> Ref:
    metadata = obj["metadata"]
    return Ref(obj["kind"], metadata.get("namespace") or "", metadata["name"])
