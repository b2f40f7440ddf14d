# SPDX-License-Identifier: Apache-2.0
"""Sends settings and L7 objects to the gateway process: a snapshot when it joins, then changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import structlog

from ztunnel.agent.workers.handlers import SessionObserver
from ztunnel.agent.workers.registry import SessionRegistry
from ztunnel.agent.workers.session import Session
from ztunnel.ipc.gateway_messages import MAX_L7_BODY_BYTES, GatewaySettings, L7Delta, L7ObjectBody
from ztunnel.kube.view.cluster_view import ClusterView, ViewChange
from ztunnel.kube.view.publisher import ViewConsumer

CHUNK_BYTES = MAX_L7_BODY_BYTES + (64 << 10)  # of objects in a message; a body always fits
MAX_REMOVED = 1024  # names in a message
_OBJECT_FRAME_BYTES = 600  # kind, namespace and name

log = structlog.get_logger()


class L7Broadcast(ViewConsumer, SessionObserver):
    """A process that joins has the same objects as one that received every change."""

    def __init__(
        self, view: ClusterView, sessions: SessionRegistry, settings: GatewaySettings
    ) -> None:
        self._view = view
        self._sessions = sessions
        self._settings = settings

    def apply(self, change: ViewChange) -> None:
        if not self._sessions.sessions or not (change.l7 or change.removed_l7):
            return
        for at in range(0, len(change.removed_l7), MAX_REMOVED):
            self._sessions.broadcast(L7Delta(removed=change.removed_l7[at : at + MAX_REMOVED]))
        for part in _parts(change.l7):
            self._sessions.broadcast(L7Delta(objects=part))

    def joined(self, session: Session) -> None:
        session.send(self._settings)
        parts = list(_parts(self._view.snapshot().l7)) or [()]
        for index, part in enumerate(parts):
            delta = L7Delta(objects=part, reset=index == 0, complete=index == len(parts) - 1)
            packet = session.encode(delta)
            session.raise_queue_limit(len(packet))
            session.send_packet(packet)


def _parts(bodies: Sequence[L7ObjectBody]) -> Iterator[tuple[L7ObjectBody, ...]]:
    part: list[L7ObjectBody] = []
    size = 0
    for body in bodies:
        length = len(body.body) + _OBJECT_FRAME_BYTES
        if part and size + length > CHUNK_BYTES:
            yield tuple(part)
            part, size = [], 0
        part.append(body)
        size += length
    if part:
        yield tuple(part)
