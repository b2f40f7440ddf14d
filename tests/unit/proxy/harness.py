# SPDX-License-Identifier: Apache-2.0
"""Real workers on loopback. A fake agent uses the real agent link and emulates the kernel.

Every pod is an address of 127/8; a socket "inside the pod" is bound to that address. `Node.target`
is the original destination, which BPF would provide. Workers run in threads of the test's process,
so that a test can inspect their state.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support.waiting import wait_until
from ztunnel.datapath.sockopt import IP_PKTINFO
from ztunnel.ipc.channel import Channel
from ztunnel.ipc.messages import (
    Certificate,
    ConnectUdpUnsupported,
    CounterAck,
    CounterReport,
    Draining,
    Hello,
    IntrospectionReply,
    IntrospectionRequest,
    ListenerKind,
    MeshDelta,
    PodAdded,
    PodReady,
    PodRemoved,
    SameNodeAllowed,
    SeriesCounts,
    SocketRequest,
    Sockets,
    ToAgent,
    UdpSocketRequest,
    UdpSockets,
)
from ztunnel.mesh.model import Service, SocketAddress, TunnelProtocol, Workload
from ztunnel.proxy.context import Context, new_context
from ztunnel.proxy.io.event_loop import READ
from ztunnel.proxy.worker import Worker

IP_BIND_ADDRESS_NO_PORT = 24
DEADLINE = 10.0
_hosts = itertools.count(10)


def fresh_ip() -> str:
    """An unused loopback address, so that tests can run in parallel."""
    number = next(_hosts)
    pid = os.getpid()
    return f"127.{100 + pid % 100}.{pid // 100 % 200 + number // 200}.{number % 200 + 10}"


def workload(name: str, ip: str, *, hbone: bool = True, pod_uid: str = "") -> Workload:
    return Workload(
        uid=f"Kubernetes//Pod/test/{name}",
        pod_uid=pod_uid or f"uid-{name}",
        name=name,
        namespace="test",
        service_account=name,
        node="node",
        addresses=(ip,),
        protocol=TunnelProtocol.HBONE if hbone else TunnelProtocol.NONE,
    )


class FakeAgent:
    """An agent that serves one worker at a time on `<run_dir>/agent.sock`, in a thread."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "agent.sock"
        self.hellos: list[Hello] = []
        self.ready: list[str] = []
        self.replies: dict[int, IntrospectionReply] = {}
        self.allowed: list[SameNodeAllowed] = []
        self.reports: list[CounterReport] = []
        self.acknowledges = True
        self.draining = False
        self.on_hello: Callable[[Hello], None] = lambda hello: None
        self.sockets_sent = 0
        self.udp_ports: list[int] = []  # of the sockets sent
        self.connect_udp_unsupported: list[ConnectUdpUnsupported] = []
        self.udp_sockets_sent = 0
        self._addresses: dict[str, str] = {}
        self._channel: Channel[ToAgent] | None = None
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self.path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, args=(self._listener,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close the socket and the session, like an agent that was killed."""
        for sock in (self._listener, self._channel.sock if self._channel else None):
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()
        self._channel = self._listener = None
        if self._thread is not None:
            self._thread.join(DEADLINE)

    def send(self, message: object, fds: list[int] | None = None) -> None:
        assert self._channel is not None
        self._channel.send(message, fds or [])  # type: ignore[arg-type]

    def pod_added(self, one: Workload, listeners: dict[ListenerKind, socket.socket]) -> None:
        self._addresses[one.pod_uid] = one.addresses[0]
        message = PodAdded(
            pod_uid=one.pod_uid,
            workload=one.uid,
            identity=one.identity,
            netns_cookie=1,
            addresses=one.addresses,
            listeners=tuple(listeners),
        )
        self.send(message, [sock.fileno() for sock in listeners.values()])

    def series(self) -> list[SeriesCounts]:
        """All reported counts, each report once."""
        reports = {(report.instance, report.seq): report for report in self.reports}
        return [counts for report in reports.values() for counts in report.series]

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            channel: Channel[ToAgent] = Channel(sock, ToAgent)  # type: ignore[arg-type]
            self._channel = channel
            with contextlib.suppress(OSError):
                while (received := channel.receive()) is not None:
                    self._handle(*received)

    def _handle(self, message: ToAgent, fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
        match message:
            case Hello():
                self.hellos.append(message)
                self.on_hello(message)
            case PodReady(pod_uid):
                self.ready.append(pod_uid)
            case SocketRequest(pod_uid, family, count, udp):
                self._send_sockets(pod_uid, family, count, udp=udp)
            case UdpSocketRequest(pod_uid, 0):
                self._send_udp_socket(pod_uid)
            case ConnectUdpUnsupported():
                self.connect_udp_unsupported.append(message)
            case SameNodeAllowed():
                self.allowed.append(message)
            case CounterReport():
                self.reports.append(message)
                if self.acknowledges and self._channel is not None:  # the test may have ended
                    self.send(CounterAck(message.seq))
            case Draining():
                self.draining = True
            case IntrospectionReply():
                self.replies[message.id] = message

    def _send_sockets(self, pod_uid: str, family: int, count: int, *, udp: bool) -> None:
        kind = socket.SOCK_DGRAM if udp else socket.SOCK_STREAM
        socks = [self._pod_socket(pod_uid, kind) for _ in range(count)]
        if udp:
            self.udp_sockets_sent += count
        else:
            self.sockets_sent += count
        self.send(Sockets(pod_uid, family, udp), [sock.fileno() for sock in socks])
        for sock in socks:
            sock.close()

    def _send_udp_socket(self, pod_uid: str) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
            sock.bind(("0.0.0.0", 0))
            self.udp_ports.append(sock.getsockname()[1])
            self.send(UdpSockets(pod_uid), [sock.fileno()])

    def _pod_socket(self, pod_uid: str, kind: int) -> socket.socket:
        sock = socket.socket(socket.AF_INET, kind)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((self._addresses[pod_uid], 0))
        return sock


class Node:
    """A worker with its agent and one pod."""

    def __init__(self, name: str, mesh: list[Workload], *, answering: bool = True) -> None:
        self.directory = tempfile.TemporaryDirectory(prefix="zt-proxy-")
        self.name = name
        self.me = next(one for one in mesh if one.name == name)
        self.ip = self.me.addresses[0]
        self.mesh = mesh
        self.target = SocketAddress(
            "127.0.0.1", 9
        )  # the original destination of the app's connections
        self.tokens: dict[str, SocketAddress] = {}  # remote addresses by the kernel's token
        self.client_addresses: list[SocketAddress] = []  # set by the proxy for apps
        self.certificate: Certificate | None = None
        self.sync = True
        self.same_node_direct = False
        self.agent = FakeAgent(Path(self.directory.name))
        self.agent.on_hello = self._greet
        self.context = self._context()
        self.worker = Worker(self.context, Path(self.directory.name))
        self.outbound = self.dns = self.dns_streams = (self.ip, 0)
        self.services: tuple[Service, ...] = ()
        self._answering = answering
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._woken, self._waker = socket.socketpair()

    def start(self, certificate: Certificate | None) -> None:
        """Start agent and worker, and wait until the pod is served, if it has a certificate."""
        self.certificate = certificate
        self.agent.start()
        self._thread.start()
        if certificate is not None and self.sync:
            wait_until(lambda: self.me.pod_uid in self.agent.ready, f"{self.name} ready")

    def close(self) -> None:
        self.agent.stop()
        self._waker.send(b"x")
        if self._thread.ident is not None:
            self._thread.join(DEADLINE)
        assert not self._thread.is_alive()
        for pod in self.worker.pods.values():
            pod.close("test over", abort=True)
        self.worker.session.stop()
        self.context.loop.turn(0)
        for sock in (self._woken, self._waker):
            sock.close()
        self.directory.cleanup()

    def in_loop(self, call: Callable[[], object]) -> None:
        """Call `call` in the worker's thread, and wait for it."""
        done = threading.Event()

        def run() -> None:
            call()
            done.set()

        self.context.loop.defer(run)
        self._waker.send(b" ")
        assert done.wait(DEADLINE)

    def token(self, remote: SocketAddress) -> str:
        """The token that represents a remote address to the pod's apps."""
        for token, known in self.tokens.items():
            if known == remote:
                return token
        token = f"127.64.{len(self.tokens) // 250}.{len(self.tokens) % 250 + 1}"
        self.tokens[token] = remote
        return token

    def udp_app(self) -> socket.socket:
        """A UDP socket of an app in the pod."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.settimeout(DEADLINE)
        sock.bind((self.ip, 0))
        return sock

    def udp_to(self, remote: SocketAddress) -> tuple[str, int]:
        """The address to which the kernel redirects a datagram to `remote`."""
        return self.token(remote), self.agent.udp_ports[-1]

    def dial(self) -> socket.socket:
        """Connect as an app of the pod to `target`: the kernel redirects it to port 15001."""
        sock = socket.socket()
        sock.settimeout(DEADLINE)
        sock.bind((self.ip, 0))
        sock.connect(self.outbound)
        return sock

    # The thread of the worker

    def _run(self) -> None:
        self.context.loop.register(self._woken.fileno(), READ, self)
        self.worker.session.dial()
        self.context.loop.run()

    def on_ready(self, mask: int) -> None:
        if b"x" in self._woken.recv(64):
            self.context.loop.stop()

    def on_failure(self, error: Exception) -> None:
        self.context.loop.stop()

    def _context(self) -> Context:
        context = new_context()
        context.original_destination = lambda sock: self.target
        context.udp_token = lambda sock, remote: self.token(remote)
        context.udp_remote = lambda sock, token: self.tokens[token]
        context.original_dns_server = lambda sock, port: self.target
        context.set_client_address = lambda sock, client: self.client_addresses.append(client)
        return context

    # The agent's part

    def _greet(self, hello: Hello) -> None:
        if not self._answering:
            return
        if self.sync:
            mesh, services = tuple(self.mesh), self.services
            self.agent.send(
                MeshDelta(
                    revision=1,
                    workloads=mesh,
                    services=services,
                    reset=True,
                    same_node_direct=self.same_node_direct,
                )
            )
            self.agent.send(MeshDelta(revision=1, complete=True))
        if self.certificate is not None:
            self.agent.send(self.certificate)
        held = {pod.pod_uid for pod in hello.pods}
        listeners = {} if self.me.pod_uid in held else self._listeners()
        self.agent.pod_added(self.me, listeners)
        for sock in listeners.values():
            sock.close()

    def _listeners(self) -> dict[ListenerKind, socket.socket]:
        outbound = listen(self.ip, 0)
        self.outbound = outbound.getsockname()
        streams, queries = listen(self.ip, 0), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        queries.bind((self.ip, 0))
        self.dns, self.dns_streams = queries.getsockname(), streams.getsockname()
        return {
            ListenerKind.OUTBOUND4: outbound,
            ListenerKind.HBONE4: listen(self.ip, 15008),
            ListenerKind.DNS4: streams,
            ListenerKind.QUERY4: queries,
        }

    def remove_pod(self, *, gone: bool) -> None:
        self.agent.send(PodRemoved(self.me.pod_uid, gone=gone))

    def query(self, what: str) -> bytes:
        number = len(self.agent.replies) + 1
        self.agent.send(IntrospectionRequest(number, what))
        wait_until(lambda: number in self.agent.replies, "the reply")
        return bytes(self.agent.replies[number].body)


def listen(ip: str, port: int, backlog: int = 512) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((ip, port))
    sock.listen(backlog)
    sock.setblocking(False)
    return sock


class App:
    """A server in a pod; `accept` returns the next connection."""

    def __init__(self, ip: str) -> None:
        self.listener = listen(ip, 0)
        self.listener.setblocking(True)
        self.listener.settimeout(DEADLINE)
        self.address = SocketAddress(*self.listener.getsockname())

    def accept(self) -> socket.socket:
        sock, _ = self.listener.accept()
        sock.settimeout(DEADLINE)
        return sock

    def close(self) -> None:
        self.listener.close()


@contextlib.contextmanager
def closing_all(*things: Node | App | socket.socket) -> Iterator[None]:
    try:
        yield
    finally:
        for thing in things:
            thing.close()
