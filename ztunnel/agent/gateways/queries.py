# SPDX-License-Identifier: Apache-2.0
"""Queries the gateway process about a gateway pod: Envoy's configuration, and what it accepted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from ztunnel.agent.workers.handlers import InvalidMessageError, MessageHandlers, SessionObserver
from ztunnel.agent.workers.registry import SessionRegistry
from ztunnel.agent.workers.session import Session
from ztunnel.ipc.gateway_messages import GatewayQuery, GatewayReply, GatewayView

MAX_TOTAL_BYTES = 64 << 20  # of one reply
TIMEOUT_S = 10.0


class GatewayQueryError(Exception):
    """There is no reply; the text states why."""


class _Query:
    def __init__(self, session: Session) -> None:
        self.session = session
        self.data = bytearray()
        self.done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()


class GatewayQueries(SessionObserver):
    """One per agent. The process is not trusted: replies are bounded."""

    def __init__(self, sessions: SessionRegistry) -> None:
        self._sessions = sessions
        self._open: dict[int, _Query] = {}
        self._last = 0

    def register(self, handlers: MessageHandlers) -> None:
        """Register the handler of replies."""
        handlers.register(GatewayReply, self._receive)

    async def query(self, pod_uid: str, view: GatewayView, log_level: str = "") -> bytes:
        """The reply about a pod: JSON text. Raises GatewayQueryError."""
        sessions = self._sessions.sessions
        if not sessions:
            raise GatewayQueryError(
                "no gateway process is connected; hint: start `ztunnel gateway` on the node"
            )
        self._last += 1
        number, query = self._last, _Query(sessions[-1])
        self._open[number] = query
        try:
            query.session.send(GatewayQuery(number, pod_uid, view, log_level))
            return await asyncio.wait_for(query.done, TIMEOUT_S)
        except TimeoutError:
            raise GatewayQueryError(f"no reply within {TIMEOUT_S:.0f} s") from None
        finally:
            del self._open[number]

    def closed(self, session: Session) -> None:
        for query in self._of(session):
            if not query.done.done():
                query.done.set_exception(GatewayQueryError("the gateway process has ended"))

    def _of(self, session: Session) -> Iterator[_Query]:
        return (query for query in self._open.values() if query.session is session)

    def _receive(self, session: Session, reply: GatewayReply, fds: list[int]) -> None:
        query = self._open.get(reply.id)
        if query is None or query.session is not session or query.done.done():
            return
        if reply.error:
            query.done.set_exception(GatewayQueryError(reply.error))
            return
        query.data += reply.data
        if len(query.data) > MAX_TOTAL_BYTES:
            query.done.set_exception(GatewayQueryError("the reply is too large"))
            raise InvalidMessageError(f"a reply of more than {MAX_TOTAL_BYTES} bytes")
        if not reply.more:
            query.done.set_result(bytes(query.data))
