# SPDX-License-Identifier: Apache-2.0
"""The listening sockets of the agent link: `<run-dir>/agent.sock` and `gateway.sock`."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

import structlog

from ztunnel.agent.workers.handlers import MessageHandlers, SessionObserver
from ztunnel.agent.workers.registry import SessionTable
from ztunnel.agent.workers.session import Peer, Session

BACKLOG = 64  # connections that wait to be accepted
ACCEPT_PAUSE_S = 0.5  # after an error: the listener stays readable while descriptors lack
_UCRED = struct.Struct("3i")  # pid, uid, gid: unix(7)

log = structlog.get_logger()


class AgentLinkServer:
    """Accepts workers and adds their sessions to the table."""

    def __init__(
        self,
        path: Path,
        proxy_uid: int,
        sessions: SessionTable,
        handlers: MessageHandlers,
        observers: Sequence[SessionObserver],
        *,
        process: str = "proxy",
    ) -> None:
        """Sessions notify `observers` in their order. Raises ValueError if a message type has no
        handler."""
        Session.register(handlers)
        if missing := handlers.missing():
            raise ValueError(f"messages without a handler: {', '.join(missing)}")
        self._path = path
        self._proxy_uid = proxy_uid
        self._sessions = sessions
        self._handlers = handlers
        self._observers = observers
        self._process = process
        self._listener: socket.socket | None = None
        self._resume: asyncio.TimerHandle | None = None  # while accepting pauses

    def start(self) -> None:
        """Listen, for root and the proxy's user only. Raises OSError."""
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.setblocking(False)
        try:
            before = os.umask(0o117)  # mode 0660 from the moment the path exists
            try:
                listener.bind(str(self._path))
            finally:
                os.umask(before)
            if os.geteuid() == 0:
                os.chown(self._path, self._proxy_uid, -1)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
        self._listener = listener
        self._watch()

    def close(self) -> None:
        """Stop listening and close all sessions; workers continue with their current state."""
        if self._listener is not None:
            self._cancel_resume()
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None
            self._path.unlink(missing_ok=True)
        self._sessions.close_all("agent stopping")

    def _watch(self) -> None:
        assert self._listener is not None
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)

    def _cancel_resume(self) -> None:
        if self._resume is not None:
            self._resume.cancel()

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # the worker closed already
            return
        except OSError as error:  # the agent is out of descriptors or memory
            log.warning("accept paused", error=str(error), seconds=ACCEPT_PAUSE_S)
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._listener.fileno())
            self._resume = loop.call_later(ACCEPT_PAUSE_S, self._watch)
            return
        sock.setblocking(False)
        peer = _peer(sock)
        if peer.uid not in (0, self._proxy_uid):
            log.warning(
                "worker refused",
                process=self._process,
                pid=peer.pid,
                uid=peer.uid,
                expected=self._proxy_uid,
            )
            sock.close()
            return
        if self._sessions.is_full:
            log.warning(
                "worker refused",
                process=self._process,
                pid=peer.pid,
                uid=peer.uid,
                reason="too many sessions",
            )
            sock.close()
            return
        session = Session(
            sock,
            peer,
            self._handlers,
            observers=self._observers,
            on_close=self._sessions.remove,
            on_rejected=self._sessions.count_rejected,
            process=self._process,
        )
        self._sessions.add(session)


def _peer(sock: socket.socket) -> Peer:
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _ = _UCRED.unpack(raw)
    return Peer(pid, uid)
