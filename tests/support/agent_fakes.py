# SPDX-License-Identifier: Apache-2.0
"""Fakes of the kernel and of a proxy worker, for tests of the agent without root."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol, get_args

import msgspec

from ztunnel.agent.config import SameNode
from ztunnel.agent.datapath import DataPath
from ztunnel.agent.log_settings import LogSettings
from ztunnel.agent.pods.enroller import Enroller, PodDiscovery
from ztunnel.agent.pods.netns_finder import HostNamespaceError, NetnsHandle
from ztunnel.agent.pods.registry import PodTable
from ztunnel.agent.traffic.same_node import SameNodeBypass
from ztunnel.agent.workers.handlers import MessageHandlers
from ztunnel.agent.workers.registry import SessionTable
from ztunnel.agent.workers.server import AgentLinkServer
from ztunnel.agent.workers.session import Session
from ztunnel.datapath.bpf.layout import UdpRoute
from ztunnel.datapath.bpf.ring_buffer import ConnectionEvent
from ztunnel.datapath.gateway_port_map import OpenPort
from ztunnel.datapath.same_node_maps import BypassEntry, SameNodeConnection
from ztunnel.datapath.udp_admission_maps import UdpDecision as UdpVerdict
from ztunnel.ipc.channel import Channel
from ztunnel.ipc.gateway_messages import GatewayListenerKind
from ztunnel.ipc.messages import (
    Draining,
    Hello,
    IntrospectionReply,
    IntrospectionRequest,
    ListenerKind,
    PodAdded,
    PodReady,
    PodRemoved,
    Sockets,
    ToAgent,
    ToWorker,
)
from ztunnel.mesh.model import SocketAddress, TunnelProtocol, Workload
from ztunnel.mesh.policy.engine import PolicyEngine

_ips = itertools.count(2)


def workload(
    name: str = "web",
    *,
    pod_uid: str = "",
    addresses: tuple[str, ...] = (),
    account: str = "default",
    protocol: TunnelProtocol = TunnelProtocol.HBONE,
) -> Workload:
    """An enrolled pod of node n1."""
    number = next(_ips)
    return Workload(
        uid=f"Kubernetes//Pod/shop/{name}",
        pod_uid=pod_uid or f"{name}-uid-{number}",
        name=name,
        namespace="shop",
        service_account=account,
        node="n1",
        addresses=addresses or (f"10.244.1.{number}", f"fd00:10:244:1::{number:x}"),
        protocol=protocol,
    )


class Namespaces:
    """Fake pod discovery: a file stands for a namespace, its inode for the cookie."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._of: dict[str, Path] = {}
        self.host: set[str] = set()
        self.used: set[tuple[int, int]] = set()  # inodes of namespaces with processes of no pod
        self.error = 0  # errno of every operation

    def start(self, pod_uid: str, netns: str) -> int:
        """Start the pod's sandbox in the namespace of that name; returns its cookie."""
        path = self._directory / netns
        path.touch()
        self._of[pod_uid] = path
        return path.stat().st_ino

    def stop(self, pod_uid: str) -> None:
        self._of.pop(pod_uid, None)

    def refresh(self, wanted: Iterable[str]) -> None:
        pass

    def open(self, pod_uid: str) -> NetnsHandle | None:
        if pod_uid in self.host:
            raise HostNamespaceError("the node's own network namespace")
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        path = self._of.get(pod_uid)
        return NetnsHandle(os.open(path, os.O_RDONLY), 1) if path else None

    def is_in_use(self, netns: NetnsHandle) -> bool:
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        return netns.inode in self.used


class FakeDataPath:
    """Maps are dicts; `journal` has every change in order. Listeners are real sockets."""

    def __init__(self) -> None:
        self.pods: dict[int, tuple[str, ...]] = {}
        self.links: set[int] = set()
        self.steered: dict[str, socket.socket] = {}
        self.open: dict[int, list[socket.socket]] = {}
        self.journal: list[tuple[object, ...]] = []
        self.port_taken: set[int] = set()
        self.broken = False
        self.given: list[BypassEntry] = []
        self.void: list[BypassEntry] = []
        self.events: list[ConnectionEvent] = []
        self.connections: list[SameNodeConnection] = []
        self.terminated: list[SameNodeConnection | ConnectionEvent] = []
        self.on_revoke: Callable[[], None] = lambda: None
        self.revocations = 0
        self.lease = 0.0
        self.made = 0
        self.closed = False
        self.udp, self.udp_admission = FakeUdpPath(), FakeUdpEntry()
        self.gateway_ports = FakeGatewayPorts()
        self.pins = FakePins()

    def find_node(self, cgroup: Path) -> bool:
        return False

    def close(self) -> None:
        self.closed = True

    def cookie(self, netns_fd: int) -> int:
        return os.fstat(netns_fd).st_ino

    def listeners(self, netns_fd: int, *, ipv6: bool) -> dict[ListenerKind, socket.socket]:
        cookie = self.cookie(netns_fd)
        if cookie in self.port_taken:
            raise OSError(errno.EADDRINUSE, "Address already in use")
        made = {kind: _listener() for kind in ListenerKind if ipv6 or kind.family == 4}
        self.journal.append(("listen", cookie))
        return made

    def is_listener(self, sock: socket.socket, kind: ListenerKind, cookie: int) -> bool:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))

    def gateway_listeners(
        self, netns_fd: int, *, ipv6: bool
    ) -> dict[GatewayListenerKind, socket.socket]:
        cookie = self.cookie(netns_fd)
        if cookie in self.port_taken:
            raise OSError(errno.EADDRINUSE, "Address already in use")
        self.journal.append(("listen gateway", cookie))
        return {
            kind: _listener() for kind in GatewayListenerKind if ipv6 or kind.value.endswith("4")
        }

    def admin_sockets(self, netns_fd: int, count: int) -> list[socket.socket]:
        self.made += count
        return [socket.socket() for _ in range(count)]

    def is_gateway_listener(
        self, sock: socket.socket, kind: GatewayListenerKind, cookie: int
    ) -> bool:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))

    def sockets(
        self, netns_fd: int, family: int, count: int, *, udp: bool = False
    ) -> list[socket.socket]:
        self.made += count
        return [socket.socket() for _ in range(count)]

    def enrolled(self) -> dict[int, tuple[str, ...]]:
        return dict(self.pods)

    def attached(self) -> set[int]:
        return set(self.links)

    def enroll(self, netns_fd: int, cookie: int, addresses: tuple[str, ...]) -> None:
        if self.broken:
            raise OSError(errno.ENOSPC, "No space left on device")
        assert self.cookie(netns_fd) == cookie
        self.revoke_bypass()
        self.journal.append(("enroll", cookie, addresses))
        self.pods[cookie] = addresses
        self.links.add(cookie)

    def unenroll(self, cookie: int) -> None:
        if self.broken:
            raise OSError(errno.EIO, "Input/output error")
        self.revoke_bypass()
        self.journal.append(("unenroll", cookie))
        self.pods.pop(cookie, None)
        self.links.discard(cookie)

    def set_listener(self, address: str, sock: socket.socket) -> None:
        self.steered[address] = sock

    def remove_listener(self, address: str) -> None:
        self.steered.pop(address, None)

    def set_node_addresses(self, addresses: Iterable[str]) -> None:
        self.journal.append(("node", *addresses))

    def stats(self) -> dict[str, int]:
        return {}

    def revoke_bypass(self) -> None:
        self.on_revoke()
        self.revocations += 1
        self.void += self.given
        self.given.clear()

    def renew_bypass_lease(self, seconds: float) -> None:
        self.lease = seconds

    def allow_bypass(self, entry: BypassEntry) -> None:
        self.given.append(entry)

    def purge_stale_bypass(self) -> None:
        self.void.clear()

    def bypass_entries(self) -> list[BypassEntry]:
        return list(self.given)

    def same_node_connections(self) -> list[SameNodeConnection]:
        return list(self.connections)

    def drain_events(self, limit: int) -> list[ConnectionEvent]:
        taken, self.events = self.events[:limit], self.events[limit:]
        return taken

    def terminate(
        self,
        netns_fd: int,
        connection: SameNodeConnection | ConnectionEvent,
        *,
        is_isolated: bool = False,
    ) -> bool:
        self.terminated.append(connection)
        return True


class Component(Protocol):
    """A component that registers message handlers."""

    def register(self, handlers: MessageHandlers) -> None: ...


def handlers_of(*components: Component) -> MessageHandlers:
    """The handlers of some components; every other message to the agent is an error."""
    handlers = MessageHandlers()
    for component in components:
        component.register(handlers)
    for kind in get_args(ToAgent):
        if kind.__name__ in handlers.missing() and kind not in (Draining, IntrospectionReply):
            handlers.register(kind, _unexpected)
    return handlers


def _unexpected(session: Session, message: msgspec.Struct, fds: list[int]) -> None:
    raise AssertionError(f"no test expects {message}")


class EnrollerNode:
    """An enroller and its worker sessions over a data path."""

    def __init__(self, datapath: DataPath, discovery: PodDiscovery, path: Path) -> None:
        self.pods, self.sessions = PodTable(), SessionTable()
        self.enroller = Enroller(datapath, discovery, self.pods, self.sessions)
        self.server = AgentLinkServer(
            path, 0, self.sessions, handlers_of(self.enroller), [self.enroller]
        )


def same_node_bypass(
    kernel: FakeDataPath, pods: PodTable, policies: PolicyEngine | None = None
) -> SameNodeBypass:
    """The same-node bypass of an agent without workers."""
    return SameNodeBypass(
        kernel,
        SameNode.DIRECT,
        pods,
        PolicyEngine() if policies is None else policies,
        SessionTable(),
        logs=LogSettings(),
    )


class FakePins:
    """The pins of a data path that nothing removes, unless a test sets `errors`."""

    def __init__(self) -> None:
        self.restored = 0
        self.errors: tuple[str, ...] = ()

    def reconcile(self) -> None:
        pass


class FakeUdpPath:
    """The kernel's maps of redirected UDP as plain values; sockets are real, on loopback."""

    def __init__(self) -> None:
        self.ways: dict[SocketAddress, UdpRoute] = {}
        self.writes = 0
        self.room = 1 << 30
        self.default: UdpRoute | None = None
        self.ports_full = False
        self.sent: list[tuple[SocketAddress, SocketAddress, tuple[bytes, ...]]] = []
        self.given: dict[int, list[int]] = {}
        self.broken = False

    def sockets(self, netns_fd: int, *, ipv6: bool) -> list[socket.socket]:
        if self.broken:
            raise OSError(errno.EMFILE, "no descriptors")
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        return [sock]

    def worker_ports(self, netns_cookie: int) -> list[int]:
        return self.given.get(netns_cookie, [])

    def set_worker_ports(self, netns_cookie: int, ports: list[int]) -> None:
        if self.ports_full:
            raise OSError(errno.E2BIG, "no room")
        self.given[netns_cookie] = ports

    def pods(self) -> set[int]:
        return set(self.given)

    def send(
        self,
        netns_fd: int,
        source: SocketAddress,
        destination: SocketAddress,
        payloads: Iterable[bytes],
    ) -> None:
        self.sent.append((source, destination, tuple(payloads)))

    def routes(self) -> dict[SocketAddress, UdpRoute]:
        return dict(self.ways)

    def set_route(self, to: SocketAddress, what: UdpRoute) -> None:
        if to not in self.ways and len(self.ways) >= self.room:
            raise OSError(errno.E2BIG, "no room")
        self.writes += 1
        self.ways[to] = what

    def default_route(self) -> UdpRoute | None:
        return self.default

    def set_default_route(self, route: UdpRoute) -> None:
        self.default = route

    def remove_route(self, to: SocketAddress) -> None:
        self.writes += 1
        del self.ways[to]

    @property
    def carried(self) -> set[str]:
        return {at.ip for at, what in self.ways.items() if what is UdpRoute.REDIRECT}


class FakeGatewayPorts:
    """The kernel's open ports; `room` is the number of entries that fit."""

    def __init__(self, *ports: OpenPort) -> None:
        self.entries = set(ports)
        self.room = 1000

    def ports(self) -> dict[OpenPort, int]:
        return dict.fromkeys(self.entries, 0)

    def open(self, port: OpenPort) -> None:
        if len(self.entries) >= self.room:
            raise OSError(errno.E2BIG, "full")
        self.entries.add(port)

    def close_ports(self, ports: Iterable[OpenPort]) -> None:
        self.entries -= set(ports)

    def close(self) -> None:
        pass


class FakeUdpEntry:
    """The kernel's admission of UDP as plain values; authorizer sockets are real, on loopback."""

    def __init__(self) -> None:
        self.opened: set[str] = set()
        self.published = 0
        self.verdicts: list[UdpVerdict] = []
        self.speakers: dict[SocketAddress, int] = {}
        self.judges: dict[str, socket.socket] = {}

    def begin_epoch(self, open_addresses: Iterable[str]) -> None:
        self.opened = set(open_addresses)
        self.published += 1
        self.verdicts.clear()

    def allow_all_sources(self, address: str) -> None:
        self.opened.add(address)

    def set_decision(self, verdict: UdpVerdict) -> None:
        self.verdicts.append(verdict)

    def source_pod(self, source: SocketAddress, destination: SocketAddress) -> int:
        return self.speakers.get(source, 0)

    def sockets(self, netns_fd: int, *, ipv6: bool) -> dict[int, socket.socket]:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_IP, 20, 1)  # IP_ORIGDSTADDR
        sock.bind(("127.0.0.1", 0))
        return {4: sock}

    def set_authorizer_socket(self, address: str, sock: socket.socket) -> None:
        self.judges[address] = sock


def _listener() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind("")  # a name of the kernel's choice
    sock.listen(1)
    return sock


class FakeWorker:
    """A worker on a real socket. With `ready` it sends PodReady for each added pod."""

    def __init__(self, path: Path, *, ready: bool = True, worker: int = 0) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.connect(str(path))
        self.sock.setblocking(False)
        self.channel: Channel[ToWorker] = Channel(self.sock, ToWorker)  # type: ignore[arg-type]
        self.worker = worker
        self.ready = ready
        self.messages: list[ToWorker] = []
        self.listeners: dict[str, dict[ListenerKind, socket.socket]] = {}
        self.stock: list[socket.socket] = []
        self.ended = False
        self.answers: Callable[[int, str], msgspec.Struct | None] = lambda *_: None
        asyncio.get_running_loop().add_reader(self.sock.fileno(), self._readable)

    def greet(self, *hellos: tuple[Hello, list[int]]) -> FakeWorker:
        """Send Hello messages, by default one without listeners."""
        for hello, fds in hellos or ((self.hello(), []),):
            self.channel.send(hello, fds)
        return self

    def hello(self, *pods: object) -> Hello:
        return Hello(version="1", pid=os.getpid(), worker=self.worker, pods=pods)  # type: ignore[arg-type]

    def of(self, kind: type) -> list[ToWorker]:
        """The received messages of one type."""
        return [message for message in self.messages if isinstance(message, kind)]

    def close(self) -> None:
        """Close everything, as the exit of a process does."""
        if self.sock.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self.sock.fileno())
            self.sock.close()
        for group in self.listeners.values():
            for sock in group.values():
                sock.close()
        self.listeners.clear()
        for sock in self.stock:
            sock.close()
        self.stock.clear()

    def stall(self) -> None:
        """Stop reading."""
        asyncio.get_running_loop().remove_reader(self.sock.fileno())

    def _readable(self) -> None:
        while self.sock.fileno() >= 0:
            try:
                received = self.channel.receive()
            except BlockingIOError:
                return
            except ConnectionResetError:
                received = None
            if received is None:
                self.ended = True
                self.close()
                return
            self._handle(*received)

    def _handle(self, message: ToWorker, fds: list[int]) -> None:
        self.messages.append(message)
        socks = [socket.socket(fileno=fd) for fd in fds]
        match message:
            case PodAdded():
                group = self.listeners.setdefault(message.pod_uid, {})
                group.update(zip(message.listeners, socks, strict=True))
                if self.ready and group:
                    self.channel.send(PodReady(message.pod_uid))
            case PodRemoved():
                for sock in self.listeners.pop(message.pod_uid, {}).values():
                    sock.close()
            case Sockets():
                self.stock += socks
            case IntrospectionRequest():
                answer = self.answers(message.id, message.what)
                if answer is not None:
                    self.channel.send(answer)
