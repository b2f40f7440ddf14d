# SPDX-License-Identifier: Apache-2.0
"""Runs the control plane: the leader watches and reconciles, other replicas stand by.

wait for the lease ──▶ watch Secrets, requests, namespaces, ConfigMaps, policies ──▶ reconcile
        ▲                                                                             │
        └──────────────────────────────── lease lost ◀────────────────────────────────┘

`ztunnel.controller.l7` does the same for Gateways and the status of L7 objects.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from typing import Any

import structlog

from ztunnel.controller.ca_manager import CaManager, CaNotReadyError, RotationConfig
from ztunnel.controller.csr_controller import CsrController, is_finished
from ztunnel.controller.csr_policy import CsrPolicyConfig
from ztunnel.controller.kube_client import CSR_PATH, KubeClient
from ztunnel.controller.l7.session import L7Options, L7Session
from ztunnel.controller.leader_election import LeaderElector, LeaseTimings
from ztunnel.controller.policy_status_controller import PolicyStatusController, PolicyWatch
from ztunnel.controller.workqueue import WorkQueue
from ztunnel.identity.ca import CaError
from ztunnel.identity.csr_signer import CsrRejected
from ztunnel.kube.client.informer import Informer
from ztunnel.kube.client.reflector import Reflector, Resource, stop_all
from ztunnel.kube.client.request import CONFLICT, ApiError
from ztunnel.kube.constants import (
    AGENT_ACCOUNT,
    LEASE,
    NAMESPACE,
    PLUGGED_CA,
    ROOTS_CONFIGMAP,
    ROOTS_KEY,
    SELF_SIGNED_CA,
    SIGNER_NAME,
    service_account_user,
)
from ztunnel.kube.objects.fields import Object
from ztunnel.kube.objects.policy_status import evaluate
from ztunnel.mesh.model import DEFAULT_TRUST_DOMAIN

# Expected failures: their text is complete, a traceback adds nothing.
EXPECTED_ERRORS = (ApiError, CaNotReadyError, CaError, CsrRejected)
WORKER_THREADS = 4  # a certificate takes several API requests, during which a thread waits

log = structlog.get_logger()


@dataclass(frozen=True)
class Options:
    """`identity` is unique among the replicas."""

    identity: str
    namespace: str = NAMESPACE
    agent_account: str = AGENT_ACCOUNT
    trust_domain: str = DEFAULT_TRUST_DOMAIN
    ttl: timedelta = timedelta(hours=24)
    root_propagation_delay_s: float = 10.0
    lease_duration_s: int = 15
    l7: L7Options = field(default_factory=L7Options)

    @property
    def csr_policy(self) -> CsrPolicyConfig:
        agent = service_account_user(self.namespace, self.agent_account)
        return CsrPolicyConfig(self.trust_domain, agent, self.ttl)

    @property
    def rotation(self) -> RotationConfig:
        delay_s = self.root_propagation_delay_s
        retention_s = self.ttl.total_seconds() + delay_s
        return RotationConfig(self.namespace, self.trust_domain, retention_s, delay_s)


class WorkKind(Enum):
    """What is reconciled."""

    CA = "ca"
    REQUEST = "certificate request"
    ROOTS = "roots"
    POLICY = "policy"


@dataclass(frozen=True)
class WorkItem:
    """`name`: of the request, of the roots' namespace, or the policy's key."""

    kind: WorkKind
    name: str = ""


CA_ITEM = WorkItem(WorkKind.CA)


class Controller:
    """One replica, leading or standing by."""

    def __init__(self, client: Any, options: Options) -> None:
        self._client = client
        self._options = options
        timings = LeaseTimings.of(options.lease_duration_s)
        self._elector = LeaderElector(client, options.namespace, LEASE, options.identity, timings)

    def run(self) -> None:
        """Run until `stop`."""
        self._elector.run(self._lead)

    def stop(self) -> None:
        """From any thread, or a signal handler."""
        self._elector.stop()

    def is_healthy(self) -> bool:
        """Whether the API server answered recently."""
        return self._elector.seconds_since_response < 2 * self._options.lease_duration_s

    def _lead(self, lost: threading.Event) -> None:
        session = LeaderSession(self._client, self._options)
        try:
            session.start()
            lost.wait()
        finally:
            session.close()


class LeaderSession:
    """The state of one term as leader; the next term starts without any."""

    def __init__(self, client: Any, options: Options) -> None:
        cluster = KubeClient(client)
        self._namespace = options.namespace
        self._l7 = L7Session(client, options.l7, self._waypoints_changed)
        self._queue: WorkQueue[WorkItem] = WorkQueue()
        self._ca = CaManager(cluster, options.rotation)
        self._requests = CsrController(cluster, options.csr_policy, self._ca.current)
        self._policies = PolicyWatch(client, self._policy_changed)
        policy_status = PolicyStatusController(
            client,
            self._policies.get,
            lambda policy: self._l7.policy_condition(policy) or evaluate(policy),
        )
        self._reconcilers: dict[WorkKind, Callable[[str], None]] = {
            WorkKind.CA: self._reconcile_ca,
            WorkKind.REQUEST: self._requests.reconcile,
            WorkKind.ROOTS: self._reconcile_roots,
            WorkKind.POLICY: policy_status.reconcile,
        }
        self._namespaces = Informer(
            client,
            Resource("Namespace", "/api/v1/namespaces"),
            self._namespace_changed,
            resync=True,
        )
        self._published = Informer(
            client,
            Resource("ConfigMap", "/api/v1/configmaps", f"metadata.name={ROOTS_CONFIGMAP}"),
            self._roots_changed,
            resync=True,
        )
        self._reflectors = [
            *self._policies.reflectors,
            *self._l7.reflectors,
            self._watch_requests(client),
            self._namespaces.reflector,
            self._published.reflector,
            *(self._watch_secret(client, name) for name in (PLUGGED_CA, SELF_SIGNED_CA)),
        ]
        self._threads = [
            threading.Thread(target=self._work, name=f"reconcile-{number}", daemon=True)
            for number in range(WORKER_THREADS)
        ]

    def start(self) -> None:
        """Start watching and reconciling."""
        self._queue.add(CA_ITEM)
        for reflector in self._reflectors:
            reflector.start()
        for thread in self._threads:
            thread.start()
        self._l7.start()

    def close(self) -> None:
        """Stop; waits for reconciliations in progress."""
        self._queue.close()
        stop_all(self._reflectors)
        self._l7.close()
        for thread in self._threads:
            thread.join()

    def _watch_requests(self, client: Any) -> Reflector:
        selector = f"spec.signerName={SIGNER_NAME}"
        resource = Resource("CertificateSigningRequest", CSR_PATH, selector)
        return Reflector(
            client, resource, lambda event: self._request_changed(event.object), resync=True
        )

    def _watch_secret(self, client: Any, name: str) -> Reflector:
        path = f"/api/v1/namespaces/{self._namespace}/secrets"
        resource = Resource("Secret", path, f"metadata.name={name}")
        return Reflector(client, resource, lambda _: self._queue.add(CA_ITEM), resync=True)

    # Called in the reflectors' threads

    def _request_changed(self, csr: Object) -> None:
        if not is_finished(csr):
            self._queue.add(WorkItem(WorkKind.REQUEST, csr["metadata"]["name"]))

    def _namespace_changed(self, namespace: Object) -> None:
        name = namespace["metadata"]["name"]
        self._queue.add(WorkItem(WorkKind.ROOTS, name))
        self._l7.namespace_changed(name, self._namespaces.get("", name))

    def _roots_changed(self, config_map: Object) -> None:
        namespace = config_map["metadata"]["namespace"]
        is_own = namespace == self._namespace
        self._queue.add(CA_ITEM if is_own else WorkItem(WorkKind.ROOTS, namespace))

    def _policy_changed(self, key: str) -> None:
        self._queue.add(WorkItem(WorkKind.POLICY, key))

    # Called in the worker threads

    def _waypoints_changed(self) -> None:
        for key in self._policies.targeted_keys():
            self._queue.add(WorkItem(WorkKind.POLICY, key))

    def _reconcile_roots(self, namespace: str) -> None:
        """Compares with the cache first: every namespace is reconciled at each resync."""
        published = self._published.get(namespace, ROOTS_CONFIGMAP) or {}
        bundle = (published.get("data") or {}).get(ROOTS_KEY, "")
        if bundle.encode() != self._ca.bundle:
            self._ca.publish(namespace)

    def _reconcile_ca(self, _: str) -> None:
        before = self._ca.bundle
        after_s = self._ca.refresh()
        if after_s is not None:
            self._queue.add(CA_ITEM, after_s)
        if self._ca.bundle != before:
            for namespace in self._namespaces.names():
                self._queue.add(WorkItem(WorkKind.ROOTS, namespace))

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                self._reconcilers[item.kind](item.name)
                self._queue.done(item)
            except Exception as error:
                self._retry(item, error)

    def _retry(self, item: WorkItem, error: Exception) -> None:
        backoff_s = self._queue.retry(item)
        if isinstance(error, ApiError) and error.status == CONFLICT:
            return  # the object changed in between: a retry reads it again
        is_expected = isinstance(error, EXPECTED_ERRORS)
        log.warning(
            "reconciliation failed",
            kind=item.kind.value,
            name=item.name,
            error=str(error).splitlines()[0] if str(error) else type(error).__name__,
            retry_in_s=round(backoff_s, 1),
            exc_info=None if is_expected else error,
        )
