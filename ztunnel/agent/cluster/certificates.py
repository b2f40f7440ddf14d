# SPDX-License-Identifier: Apache-2.0
"""Certificates of this node's pods: requested for each identity, sent to every worker."""

from __future__ import annotations

from collections.abc import Callable

from ztunnel.agent.pods.registry import CapturedPods
from ztunnel.agent.workers.handlers import SessionObserver
from ztunnel.agent.workers.registry import SessionRegistry
from ztunnel.agent.workers.session import Session
from ztunnel.identity.certificate_store import CertificateStore, KeyPair
from ztunnel.identity.csr_signer import Signer
from ztunnel.ipc.messages import Certificate, CertificateRemoved
from ztunnel.kube.view.cluster_view import ViewChange
from ztunnel.kube.view.publisher import ViewConsumer


class NodeCertificates(ViewConsumer, SessionObserver):
    """The store holds one certificate per identity of the pods to capture, and no other."""

    def __init__(
        self,
        signer: Signer,
        pods: CapturedPods,
        sessions: SessionRegistry,
        *,
        blocked_reason: Callable[[str], str] = lambda _: "",
    ) -> None:
        """`blocked_reason` returns why no certificate must be requested for an identity, or ""."""
        self.store = CertificateStore(signer, self._broadcast, blocked_reason=blocked_reason)
        self._pods = pods
        self._sessions = sessions

    def apply(self, change: ViewChange) -> None:
        wanted = {pod.workload.identity for pod in self._pods}
        known = self.store.identities()
        for identity in wanted - known:
            self.store.ensure(identity)
        for identity in known - wanted:
            self.store.remove(identity)
            self._sessions.broadcast(CertificateRemoved(identity))

    def joined(self, session: Session) -> None:
        for pair in self.store.current():
            session.send(_message(pair))

    def _broadcast(self, pair: KeyPair) -> None:
        self._sessions.broadcast(_message(pair))


def _message(pair: KeyPair) -> Certificate:
    return Certificate(
        identity=pair.identity,
        chain_pem=pair.chain_pem,
        key_pem=pair.key_pem,
        roots_pem=pair.roots_pem,
        not_after=pair.not_after,
    )
