# SPDX-License-Identifier: Apache-2.0
"""The agent's side of the link: proxy workers dial `<run-dir>/agent.sock`, each is a session.

    accepted --peer's uid is wrong--> closed
        | Hello (+ listeners it holds)
        v
    joined --> snapshot, certificates, pods, then changes as they come
        | Draining: from now on it is none of the workers, but its counts are heard
        | EOF, protocol error, or it reads too slowly
        v
    closed

A session never blocks the agent: what the socket does not take waits in a bounded queue, and a
worker that lets it fill up is cut off; it dials again and gets a fresh snapshot.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import structlog

from ztunnel.ipc.channel import Channel, LinkError
from ztunnel.ipc.messages import (
    ConnectUdpUnsupported,
    CounterAck,
    CounterReport,
    Draining,
    Hello,
    IntrospectionReply,
    IntrospectionRequest,
    PodReady,
    SameNodeAllowed,
    SocketRequest,
    ToAgent,
    UdpSocketRequest,
)

QUEUE_LIMIT = 16 << 20  # bytes that may wait for a slow worker, beyond its first snapshot
FD_LIMIT = 4096  # descriptors that may wait for it
TURN = 64  # messages of one worker handled before others get their turn
_UCRED = struct.Struct("3i")  # pid, uid, gid: unix(7)

log = structlog.get_logger()


class Events(Protocol):
    """Who acts on what workers say. Called from the event loop; must not block."""

    def adopt(self, session: Session, hello: Hello, fds: list[int]) -> None:
        """The listeners a worker holds; takes over `fds`. May come several times."""

    def joined(self, session: Session) -> None:
        """Its greetings are read: time for the snapshot."""

    def pod_ready(self, session: Session, pod_uid: str) -> None:
        """It serves the pod."""

    def need_sockets(self, session: Session, need: SocketRequest) -> None:
        """Its stock runs low."""

    def need_udp(self, session: Session, need: UdpSocketRequest) -> None:
        """It would carry a pod's UDP."""

    def no_udp(self, session: Session, news: ConnectUdpUnsupported) -> None:
        """It met a proxy that takes no connect-udp."""

    def allowed(self, session: Session, news: SameNodeAllowed) -> None:
        """It let a pod of this node in at another one."""

    def left(self, session: Session) -> None:
        """The session takes nothing new any more and is no longer among the hub's."""


class CounterSink(Protocol):
    """Receives what workers count (`ztunnel.agent.workers.counter_collector`)."""

    def collect(self, session: Session, report: CounterReport) -> None:
        """Count a report, unless it was counted before."""

    def session_closed(self, session: Session) -> None:
        """No further report arrives over this session."""


@dataclass(frozen=True)
class Peer:
    """Who dialled, as the kernel says."""

    pid: int
    uid: int


@dataclass(frozen=True)
class WorkerAnswer:
    """What one worker said to a query; `body` is None when it did not in time."""

    worker: int
    pid: int
    body: Any


class Session:
    """One worker. `ready` holds the uids of the pods it serves."""

    def __init__(
        self,
        sock: socket.socket,
        peer: Peer,
        events: Events,
        counter_sink: CounterSink | None = None,
    ) -> None:
        self.peer = peer
        self.worker = -1
        self.version = ""
        self.ready: set[str] = set()
        self.udp: dict[int, int] = {}  # port of its UDP socket by netns cookie
        self.held: set[tuple[str, str]] = set()  # (pod uid, ListenerKind) it has a descriptor of
        self._channel: Channel[ToAgent] = Channel(sock, ToAgent)  # type: ignore[arg-type]  # a union
        self._events = events
        self._counter_sink = counter_sink
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self._queued_bytes = 0
        self._queued_fds = 0
        self._allowance = QUEUE_LIMIT
        self._questions: dict[int, asyncio.Future[Any]] = {}
        self._next_question = 0
        self._joined = False
        self._draining = False
        self._closed = False
        self.on_closed: Callable[[Session], None] = lambda _: None
        self._loop.add_reader(sock.fileno(), self._readable)

    @property
    def is_joined(self) -> bool:
        """Whether it is told of changes."""
        return self._joined and not self._closed and not self._draining

    @property
    def is_synced(self) -> bool:
        """Whether all it was told has left for its socket."""
        return self.is_joined and not self._queue

    @property
    def queued_bytes(self) -> int:
        return self._queued_bytes

    def allow(self, more: int) -> None:
        """Let the queue grow: a snapshot is as large as the mesh is."""
        self._allowance += more

    def encode(self, message: msgspec.Struct) -> bytes:
        """The packet of a message, to be sent to several workers."""
        return self._channel.encode(message)

    def send(self, message: msgspec.Struct, fds: Sequence[int] = ()) -> None:
        """Send a message with copies of `fds`, or queue it; never raises, never blocks."""
        if not self._closed:
            self.send_packet(self.encode(message), fds)

    def send_packet(self, packet: bytes, fds: Sequence[int] = ()) -> None:
        """The same for a packet that is encoded already."""
        if self._closed:
            return
        if not self._queue and self._sent(packet, fds):
            return
        if self._closed:
            return
        # The caller may close its descriptors before ours are sent.
        self._queue.append((packet, [os.dup(fd) for fd in fds]))
        self._queued_bytes += len(packet)
        self._queued_fds += len(fds)
        if self._queued_bytes > self._allowance or self._queued_fds > FD_LIMIT:
            self.close(f"reads too slowly: {self._queued_bytes} bytes wait")

    async def ask(self, what: str) -> Any:
        """The worker's view as JSON-able data; ConnectionError when it goes away."""
        self._next_question += 1
        number = self._next_question
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._questions[number] = answer
        try:
            self.send(IntrospectionRequest(number, what))
            return await answer
        finally:
            self._questions.pop(number, None)

    def close(self, reason: str) -> None:
        """End the session. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._channel.fileno())
        self._loop.remove_writer(self._channel.fileno())
        self._channel.close()
        while self._queue:
            _close_all(self._queue.popleft()[1])
        for answer in self._questions.values():
            if not answer.done():
                answer.set_exception(ConnectionError(reason))
        log.info("worker left", worker=self.worker, pid=self.peer.pid, reason=reason)
        self.on_closed(self)
        if not self._draining:
            self._events.left(self)
        if self._counter_sink is not None:
            self._counter_sink.session_closed(self)

    def _sent(self, packet: bytes, fds: Sequence[int]) -> bool:
        try:
            self._channel.send_packet(packet, fds)
        except BlockingIOError:
            self._loop.add_writer(self._channel.fileno(), self._writable)
            return False
        except (BrokenPipeError, ConnectionResetError):
            # The worker has exited, but its last reports are unread: `_readable` closes at EOF.
            return True
        except (OSError, LinkError) as error:
            self.close(str(error))
            return False
        return True

    def _writable(self) -> None:
        while self._queue:
            packet, fds = self._queue[0]
            if not self._sent(packet, fds):
                return
            self._queue.popleft()
            self._queued_bytes -= len(packet)
            self._queued_fds -= len(fds)
            _close_all(fds)
        self._allowance = QUEUE_LIMIT
        self._loop.remove_writer(self._channel.fileno())

    def _readable(self) -> None:
        for _ in range(TURN):
            try:
                received = self._channel.receive()
            except BlockingIOError:
                break
            except ConnectionResetError:  # once, if the worker exited before it read all: unix(7)
                continue
            except (OSError, LinkError) as error:
                self.close(str(error))
                return
            if received is None:
                self.close("end of file")
                return
            self._handle(*received)
            if self._closed:
                return
        if (
            self.version and not self._joined and not self._draining
        ):  # only now: greetings may be several
            self._join()

    def _join(self) -> None:
        self._joined = True
        log.info("worker joined", worker=self.worker, pid=self.peer.pid)
        try:
            self._events.joined(self)
        except Exception as error:
            log.error("worker not served", worker=self.worker, exc_info=error)
            self.close("internal error")  # it dials again

    def _handle(self, message: ToAgent, fds: list[int]) -> None:
        try:
            self._dispatch(message, fds)
        except Exception as error:  # the fault of one message is no reason to end the agent
            log.error("message failed", message=type(message).__name__, exc_info=error)
        finally:
            _close_all(fds)

    def _dispatch(self, message: ToAgent, fds: list[int]) -> None:
        match message:
            case Hello():
                self.worker, self.version = message.worker, message.version or "unknown"
                if len(fds) != sum(len(pod.listeners) for pod in message.pods):
                    self.close("its greeting's descriptors do not match its pods")
                    return
                self._events.adopt(self, message, fds)
            case PodReady():
                self._events.pod_ready(self, message.pod_uid)
            case SocketRequest():
                self._events.need_sockets(self, message)
            case UdpSocketRequest():
                self._events.need_udp(self, message)
            case ConnectUdpUnsupported():
                self._events.no_udp(self, message)
            case SameNodeAllowed():
                self._events.allowed(self, message)
            case CounterReport():
                if self._counter_sink is not None:
                    self._counter_sink.collect(self, message)
                self.send(CounterAck(message.seq))
            case Draining():
                self._drain()
            case IntrospectionReply():
                answer = self._questions.get(message.id)
                if answer is not None and not answer.done():
                    answer.set_result(msgspec.msgpack.decode(message.body))

    def _drain(self) -> None:
        if not self._draining:
            self._draining = True
            log.info("worker drains", worker=self.worker, pid=self.peer.pid)
            self._events.left(self)


class Workers:
    """The listening socket and all sessions."""

    def __init__(
        self, path: Path, proxy_uid: int, events: Events, counter_sink: CounterSink | None = None
    ) -> None:
        self._path = path
        self._proxy_uid = proxy_uid
        self._events = events
        self._counter_sink = counter_sink
        self._listener: socket.socket | None = None
        self._sessions: list[Session] = []

    @property
    def sessions(self) -> list[Session]:
        """Those that have greeted, oldest first."""
        return [session for session in self._sessions if session.is_joined]

    def start(self) -> None:
        """Listen, for root and the proxy's user only. Raises OSError."""
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.setblocking(False)
        try:
            before = os.umask(0o117)  # 0660 from the first moment
            try:
                listener.bind(str(self._path))
            finally:
                os.umask(before)
            if os.geteuid() == 0:
                os.chown(self._path, self._proxy_uid, -1)
            listener.listen(64)
        except OSError:
            listener.close()
            raise
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener.fileno(), self._acceptable)

    def close(self) -> None:
        """Hang up on everybody; workers keep what they have."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None
            self._path.unlink(missing_ok=True)
        for session in list(self._sessions):
            session.close("agent ends")

    def broadcast(self, message: msgspec.Struct) -> None:
        """Send to all sessions, encoded once."""
        sessions = self.sessions
        if not sessions:
            return
        packet = sessions[0].encode(message)
        for session in sessions:
            session.send_packet(packet)

    async def ask(self, what: str, timeout: float) -> list[WorkerAnswer]:
        """Every worker's view, asked at the same time."""
        sessions = self.sessions
        bodies = await asyncio.gather(
            *(asyncio.wait_for(session.ask(what), timeout) for session in sessions),
            return_exceptions=True,
        )
        return [
            WorkerAnswer(
                session.worker,
                session.peer.pid,
                None if isinstance(body, BaseException) else body,
            )
            for session, body in zip(sessions, bodies, strict=True)
        ]

    def _acceptable(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except OSError as error:  # it hung up already, or we are out of descriptors
            log.warning("accept failed", error=str(error))
            return
        sock.setblocking(False)
        peer = _peer(sock)
        if peer.uid not in (0, self._proxy_uid):
            log.warning("worker refused", pid=peer.pid, uid=peer.uid, expected=self._proxy_uid)
            sock.close()
            return
        session = Session(sock, peer, self._events, self._counter_sink)
        session.on_closed = self._sessions.remove
        self._sessions.append(session)


def _peer(sock: socket.socket) -> Peer:
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _ = _UCRED.unpack(raw)
    return Peer(pid, uid)


def _close_all(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())
