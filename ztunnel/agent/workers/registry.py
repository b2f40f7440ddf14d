# SPDX-License-Identifier: Apache-2.0
"""The sessions with this node's proxy workers, as other components of the agent see them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import msgspec

from ztunnel.agent.workers.session import Session
from ztunnel.ipc.introspection import View

MAX_SESSIONS = 256  # of a node; a worker needs one, and a second one while the proxy is replaced


@dataclass(frozen=True)
class WorkerReply:
    """One worker's reply to a query; `body` is None if the worker did not reply in time."""

    worker: int
    pid: int
    body: Any


class SessionRegistry:
    """Read-only: the sessions that receive changes."""

    def __init__(self) -> None:
        self._sessions: list[Session] = []
        self.rejected_messages = 0  # each closed its session

    @property
    def sessions(self) -> list[Session]:
        """The joined sessions, oldest first; without those that drain."""
        return [session for session in self._sessions if session.is_joined]

    def broadcast(self, message: msgspec.Struct) -> None:
        """Send a message to all sessions; it is encoded once."""
        sessions = self.sessions
        if not sessions:
            return
        packet = sessions[0].encode(message)
        for session in sessions:
            session.send_packet(packet)

    async def query(self, view: View, timeout_s: float) -> list[WorkerReply]:
        """Query all workers concurrently."""
        sessions = self.sessions
        bodies = await asyncio.gather(
            *(asyncio.wait_for(session.query(view), timeout_s) for session in sessions),
            return_exceptions=True,
        )
        return [
            WorkerReply(
                session.worker,
                session.peer.pid,
                None if isinstance(body, BaseException) else body,
            )
            for session, body in zip(sessions, bodies, strict=True)
        ]


class SessionTable(SessionRegistry):
    """The registry with the operations of its only writer, `server.AgentLinkServer`."""

    def add(self, session: Session) -> None:
        """List the session once it has joined."""
        self._sessions.append(session)

    @property
    def is_full(self) -> bool:
        """Whether there are `MAX_SESSIONS`."""
        return len(self._sessions) >= MAX_SESSIONS

    def count_rejected(self) -> None:
        """Count an invalid message."""
        self.rejected_messages += 1

    def remove(self, session: Session) -> None:
        """Forget a closed session."""
        self._sessions.remove(session)

    def close_all(self, reason: str) -> None:
        """Close every session, joined or not."""
        for session in list(self._sessions):
            session.close(reason)
