# SPDX-License-Identifier: Apache-2.0
"""From the mirror of the cluster to those who live by it: workers, the reconciler, certificates.

    source --> Mirror --changed()--> same-node traffic: verdicts void, policies taken in
                                 |-> UDP: where it goes, who is let in
                                 \\-> MeshDelta to every worker
                                 \\-> this node's enrolled pods to the reconciler
                                 \\-> their identities to the certificate store

Also the workers' `Events`: a worker that joins gets the same as a stream from the beginning.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from ztunnel.agent.pods.enroller import Enroller
from ztunnel.agent.pods.unenroll_grace import UnenrollGrace
from ztunnel.agent.traffic.same_node import SameNodeTraffic
from ztunnel.agent.traffic.udp_authorizer import UdpAuthorizer
from ztunnel.agent.traffic.udp_redirect import Udp
from ztunnel.agent.workers import delta_chunks
from ztunnel.agent.workers.session import Session, Workers
from ztunnel.identity.certificate_store import CertificateStore, KeyPair
from ztunnel.ipc.messages import (
    Certificate,
    CertificateRemoved,
    ConnectUdpUnsupported,
    Hello,
    MeshDelta,
    SameNodeAllowed,
    SocketRequest,
    UdpSocketRequest,
)
from ztunnel.kube.view.cluster_view import Change, ClusterView
from ztunnel.mesh.model import Workload
from ztunnel.mesh.policy.engine import PolicyEngine

log = structlog.get_logger()


class Dispatcher:
    """One per agent; called from the event loop only."""

    def __init__(
        self,
        *,
        node: str,
        mirror: ClusterView,
        enroller: Enroller,
        same_node: SameNodeTraffic,
        udp: Udp,
        judge: UdpAuthorizer,
        policies: PolicyEngine,
        workers: Callable[[], Workers],
        store: Callable[[], CertificateStore],
        greet: Callable[[Session], None] = lambda _: None,
        registry_only: bool = False,
    ) -> None:
        """`greet` says to a worker that joins what it must know first."""
        self.revision = 0
        self._node = node
        self._mirror = mirror
        self._enroller = enroller
        self._same_node = same_node
        self._udp = udp
        self._judge = judge
        self._policies = policies
        self._workers = workers
        self._store = store
        self._leaving = UnenrollGrace(self._take_local)
        self._greet = greet
        self._registry_only = registry_only
        self._local_uids: set[str] = set()
        self._local: tuple[dict[str, Workload], set[str]] | None = None

    def changed(self) -> None:
        """The mirror took in news."""
        change = self._mirror.drain()
        concerns_verdicts = False
        if change:
            is_local = self._is_local(change)
            concerns_verdicts = is_local or bool(change.policies or change.removed_policies)
            if concerns_verdicts:
                self._same_node.revoke()
            self._policies.apply(change)
            self.revision += 1
            delta = MeshDelta(
                revision=self.revision,
                workloads=change.workloads,
                services=change.services,
                removed_workloads=change.removed_workloads,
                removed_services=change.removed_services,
                policies=change.policies,
                removed_policies=change.removed_policies,
            )
            for part in delta_chunks.change(delta):
                self._workers().broadcast(part)
            self._udp.changed(change)
        self._take_local()
        if concerns_verdicts:
            self._judge.changed()
            self._same_node.recheck()

    def certified(self, pair: KeyPair) -> None:
        """A certificate is new: every worker gets it."""
        self._workers().broadcast(_certificate(pair))

    # Events of workers

    def adopt(self, session: Session, hello: Hello, fds: list[int]) -> None:
        self._enroller.adopt(session, hello, fds)

    def joined(self, session: Session) -> None:
        """Snapshot, certificates, pods: in this order a worker can serve each pod at once."""
        self._greet(session)
        now = self._mirror.snapshot()
        for part in delta_chunks.snapshot(
            self.revision,
            now.workloads,
            now.services,
            now.policies,
            registry_only=self._registry_only,
        ):
            packet = session.encode(part)
            session.allow(len(packet))
            session.send_packet(packet)
        for pair in self._store().current():
            session.send(_certificate(pair))
        self._enroller.joined(session)

    def pod_ready(self, session: Session, pod_uid: str) -> None:
        self._enroller.pod_ready(session, pod_uid)

    def need_sockets(self, session: Session, need: SocketRequest) -> None:
        self._enroller.need_sockets(session, need)

    def need_udp(self, session: Session, need: UdpSocketRequest) -> None:
        self._udp.need(session, need)

    def no_udp(self, session: Session, news: ConnectUdpUnsupported) -> None:
        self._udp.silent(news)

    def allowed(self, session: Session, news: SameNodeAllowed) -> None:
        if news.pod_uid in session.ready:
            self._same_node.allowed(news, self.revision)

    def left(self, session: Session) -> None:
        """With the last worker go the verdicts too: without a proxy nothing new is let in."""
        if not self._workers().sessions:
            self._same_node.revoke()
        self._udp.left(session)
        self._enroller.left(session)

    def _is_local(self, change: Change) -> bool:
        """Whether a pod of this node is other than it was, or comes or goes."""
        before = self._local_uids
        self._local_uids = {pod.uid for pod in self._mirror.pods_on(self._node)}
        changed = {workload.uid for workload in change.workloads}
        changed.update(change.removed_workloads)
        return not changed.isdisjoint(before | self._local_uids)

    def _take_local(self) -> None:
        """This node's pods, if anything about them is new."""
        pods = self._mirror.pods_on(self._node)
        enrolled = self._leaving.kept(pods, set(self._local[0] if self._local else ()))
        local = enrolled, {pod.pod_uid for pod in pods}
        if local == self._local:
            return
        self._local = local
        store, wanted = self._store(), {pod.identity for pod in enrolled.values()}
        for identity in wanted:
            store.ensure(identity)
        self._enroller.want(*local)
        for identity in store.identities() - wanted:
            store.remove(identity)
            self._workers().broadcast(CertificateRemoved(identity))


def _certificate(pair: KeyPair) -> Certificate:
    return Certificate(
        identity=pair.identity,
        chain_pem=pair.chain_pem,
        key_pem=pair.key_pem,
        roots_pem=pair.roots_pem,
        not_after=pair.not_after,
    )
