# SPDX-License-Identifier: Apache-2.0
"""The messages of the agent link: the UNIX socket between the agent and the proxy's workers.

The agent listens and workers connect. Each message is one packet (see `ztunnel.ipc.channel`) and
starts with its tag; some messages carry file descriptors by SCM_RIGHTS.

    worker                                                    agent
      | Hello (+ descriptors of the listeners it holds)         |
      |-------------------------------------------------------->|
      |         MeshDelta(reset=True) ... MeshDelta(complete=True)
      |<--------------------------------------------------------|
      |   Certificate, PodAdded (+ descriptors), Sockets (+ descriptors)
      |<--------------------------------------------------------|
      | PodReady, SocketRequest, SameNodeAllowed, IntrospectionReply
      |-------------------------------------------------------->|
      | CounterReport                                           |
      |-------------------------------------------------------->|
      |                                              CounterAck |
      |<--------------------------------------------------------|
      | Draining                                                |
      |-------------------------------------------------------->|

A worker that loses the agent continues with the state that it has, and reconnects.

An upgrade runs agents and workers of two versions side by side, so tags and the meaning of fields
must not change. A new field needs a default.

The agent is root and the proxy is not, so the agent trusts no value that a worker sends: each
field of `ToAgent` has a type and bounds, and a message outside them closes the session. What a
bound cannot express, `__post_init__` checks.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Literal

import msgspec

from ztunnel.mesh.address import canonical
from ztunnel.mesh.model import Service, SocketAddress, Workload
from ztunnel.mesh.policy.model import Policy

MAX_COUNT = 1 << 62  # of what a worker counts between two reports; the wire's integers have 64 bits
MAX_PORT = 65535
DEFAULT_ACCESS_LINES_PER_S = 100  # of one process
MAX_SECONDS = 1e11  # of a duration or a Unix time

Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=MAX_SECONDS)]
Port = Annotated[int, msgspec.Meta(ge=0, le=MAX_PORT)]
Family = Literal[4, 6]
PodUid = Annotated[str, msgspec.Meta(max_length=253)]  # Kubernetes names the longest ones
Name = Annotated[str, msgspec.Meta(max_length=1024)]  # Workload.uid and other compound names
SpiffeId = Annotated[str, msgspec.Meta(max_length=2048)]  # the SPIFFE ID standard, 2.3
IpText = Annotated[str, msgspec.Meta(max_length=45)]  # INET6_ADDRSTRLEN without its NUL


class ListenerKind(StrEnum):
    """The in-pod socket that a descriptor refers to; the value determines port and family."""

    OUTBOUND4 = "outbound4"  # 127.0.0.1:15001
    OUTBOUND6 = "outbound6"  # [::1]:15001
    INBOUND4 = "inbound4"  # 127.0.0.1:15006, reached only through sk_lookup
    INBOUND6 = "inbound6"  # [::1]:15006, reached only through sk_lookup
    HBONE4 = "hbone4"  # 0.0.0.0:15008
    HBONE6 = "hbone6"  # [::]:15008, v6 only
    DNS4 = "dns4"  # TCP 127.0.0.1:15053
    DNS6 = "dns6"  # TCP [::1]:15053
    QUERY4 = "query4"  # UDP 127.0.0.1:15053; one port for each name server
    QUERY6 = "query6"  # UDP [::1]:15053
    QUERY4_SECOND = "query4-second"  # UDP 127.0.0.1:15054
    QUERY6_SECOND = "query6-second"
    QUERY4_THIRD = "query4-third"  # UDP 127.0.0.1:15055
    QUERY6_THIRD = "query6-third"

    @property
    def family(self) -> int:
        """4 or 6."""
        return 6 if "6" in self.value else 4

    @property
    def is_query(self) -> bool:
        """Whether it is a UDP socket that receives DNS queries."""
        return self.value.startswith("query")


class HeldListeners(msgspec.Struct, frozen=True):
    """A pod whose listeners the worker holds. Their descriptors are in the order of `listeners`."""

    pod_uid: PodUid
    netns_cookie: Count
    listeners: Annotated[tuple[ListenerKind, ...], msgspec.Meta(max_length=len(ListenerKind))]

    def __post_init__(self) -> None:
        if len(set(self.listeners)) != len(self.listeners):
            raise ValueError("a listener is listed twice")


class Hello(msgspec.Struct, frozen=True, tag="hello", kw_only=True):
    """The first message of a worker. Carries the descriptors of all listeners in `pods`, in order.

    A worker with more listeners than one packet can carry sends several.
    """

    version: Annotated[str, msgspec.Meta(max_length=64)]
    pid: Count
    worker: Annotated[int, msgspec.Meta(ge=0, le=65535)]
    pods: Annotated[tuple[HeldListeners, ...], msgspec.Meta(max_length=1024)] = ()


class PodReady(msgspec.Struct, frozen=True, tag="pod_ready"):
    """The worker accepts connections on this pod's listeners and has its certificate."""

    pod_uid: PodUid


class SocketRequest(msgspec.Struct, frozen=True, tag="socket_request"):
    """The worker needs more unconnected sockets in the pod's netns; `family` is 4 or 6."""

    pod_uid: PodUid
    family: Family
    count: Count
    udp: bool = False


class UdpSocketRequest(msgspec.Struct, frozen=True, tag="udp_socket_request"):
    """The worker forwards the pod's UDP. `port` is that of its socket; 0 requests a socket."""

    pod_uid: PodUid
    port: Port = 0


class ConnectUdpUnsupported(msgspec.Struct, frozen=True, tag="connect_udp_unsupported"):
    """The proxy of `workload` (Workload.uid) rejected connect-udp: UDP to it is not tunneled.

    `datagrams` were buffered meanwhile: the pod's app sent them from `source` to `destination`.
    """

    workload: Name
    pod_uid: PodUid = ""
    source: SocketAddress | None = None
    destination: SocketAddress | None = None
    datagrams: Annotated[
        tuple[Annotated[bytes, msgspec.Meta(max_length=65535)], ...], msgspec.Meta(max_length=1024)
    ] = ()

    def __post_init__(self) -> None:
        for address in (self.source, self.destination):
            if address is not None:
                _check_address(address)


class SameNodeAllowed(msgspec.Struct, frozen=True, tag="same_node_allowed", kw_only=True):
    """Policy, as of `revision`, allowed a connection between two pods of this node.

    `source_identity` is proven. The agent may let later connections of the pair bypass the proxy.
    """

    source_ip: IpText
    source_identity: SpiffeId
    pod_uid: PodUid  # the destination pod's
    destination: SocketAddress
    revision: Count

    def __post_init__(self) -> None:
        _check_ip(self.source_ip)
        _check_address(self.destination)


class IntrospectionReply(msgspec.Struct, frozen=True, tag="introspection_reply"):
    """The reply to `IntrospectionRequest(id)`; `body` is a type of `ztunnel.ipc.introspection`."""

    id: Count
    body: msgspec.Raw


class SeriesCounts(msgspec.Struct, frozen=True, array_like=True):
    """The counts of one label set (`ztunnel.telemetry.labels`) since the previous report.

    `sent` is bytes from the client to the server, `received` from the server to the client.
    """

    labels: Annotated[tuple[str, ...], msgspec.Meta(max_length=64)]
    opened: Count = 0
    closed: Count = 0
    failed: Count = 0
    sent: Count = 0
    received: Count = 0


class DnsCounts(msgspec.Struct, frozen=True, array_like=True):
    """DNS queries since the previous report, in the orders of `ztunnel.telemetry.dns_counters`."""

    outcomes: Annotated[tuple[Count, ...], msgspec.Meta(max_length=64)]
    forward_failures: Count
    buckets: Annotated[tuple[Count, ...], msgspec.Meta(max_length=64)]
    seconds: Seconds
    dropped_addresses: Count = 0
    evicted_answers: Count = 0


class UdpDropCounts(msgspec.Struct, frozen=True, array_like=True):
    """UDP drops since the previous report, in the order of `UdpDropReason`."""

    by_reason: Annotated[tuple[Count, ...], msgspec.Meta(max_length=64)]


class LogDropCounts(msgspec.Struct, frozen=True, array_like=True):
    """Dropped log lines since the previous report, in the order of `LogDropReason`."""

    by_reason: Annotated[tuple[Count, ...], msgspec.Meta(max_length=64)]


class CounterReport(msgspec.Struct, frozen=True, tag="counter_report", kw_only=True):
    """What the worker counted since its previous report.

    The worker sends a report again to a new agent until `CounterAck` confirms it. The agent counts
    each (instance, seq) once. `instance` identifies the worker process; `seq` counts from 1.
    """

    instance: Annotated[int, msgspec.Meta(ge=0)]
    seq: Count
    series: Annotated[tuple[SeriesCounts, ...], msgspec.Meta(max_length=4096)]
    dns: DnsCounts | None = None
    udp_drops: UdpDropCounts | None = None
    log_drops: LogDropCounts | None = None


class Draining(msgspec.Struct, frozen=True, tag="draining"):
    """The worker accepts no new work. It still sends counter reports until it disconnects."""


class HostGroup(msgspec.Struct, frozen=True):
    """The ServiceEntry hosts `hosts`, which equal `service` except for name and hostname.

    Hosts of one entry share its endpoints: sent once instead of once per host, they cannot expand
    a small object to megabytes.
    """

    service: Service
    hosts: tuple[str, ...]

    def expand(self) -> Iterator[Service]:
        """Yield the services; they share the endpoints in memory, too."""
        for host in self.hosts:
            yield msgspec.structs.replace(self.service, name=host, hostname=host)


class MeshDelta(msgspec.Struct, frozen=True, tag="mesh_delta", kw_only=True):
    """A change of mesh state. `reset` begins a snapshot, `complete` ends it.

    Until `complete`, the worker uses its previous state, if it has one, and then replaces it.
    Later deltas have both flags false and apply immediately.
    """

    revision: int
    workloads: tuple[Workload, ...] = ()
    services: tuple[Service, ...] = ()
    removed_workloads: tuple[str, ...] = ()  # Workload.uid
    removed_services: tuple[str, ...] = ()  # Service.key
    policies: tuple[Policy, ...] = ()
    removed_policies: tuple[str, ...] = ()  # their keys
    reset: bool = False
    registry_only: bool = False  # with `reset`: unknown destinations are refused
    same_node_direct: bool = False  # with `reset`: no encryption between pods of this node
    complete: bool = False
    more: bool = False  # parts of this revision follow; they apply together
    host_groups: tuple[HostGroup, ...] = ()  # further services

    def expanded(self) -> MeshDelta:
        """Return the delta with all services in `services`."""
        if not self.host_groups:
            return self
        grouped = tuple(each for group in self.host_groups for each in group.expand())
        return msgspec.structs.replace(self, services=self.services + grouped, host_groups=())


class Certificate(msgspec.Struct, frozen=True, tag="certificate", kw_only=True):
    """A workload certificate with its private key, and the trust roots. Never logged."""

    identity: str
    chain_pem: bytes
    key_pem: bytes = msgspec.field()
    roots_pem: bytes
    not_after: float  # Unix seconds

    def __repr__(self) -> str:
        return f"Certificate(identity={self.identity!r}, key_pem=<hidden>)"


class CertificateRemoved(msgspec.Struct, frozen=True, tag="certificate_removed"):
    """No pod of this node has this identity any more: delete its key."""

    identity: str


class PodAdded(msgspec.Struct, frozen=True, tag="pod_added", kw_only=True):
    """A local pod to serve. Carries one descriptor per entry of `listeners`, in that order.

    `listeners` is empty if the worker already holds them, according to its Hello.
    """

    pod_uid: str
    workload: str  # Workload.uid
    identity: str
    netns_cookie: int
    addresses: tuple[str, ...]
    listeners: tuple[ListenerKind, ...] = ()


class PodRemoved(msgspec.Struct, frozen=True, tag="pod_removed"):
    """Stop accepting for this pod. If `gone`, reset its live connections; else they continue."""

    pod_uid: str
    gone: bool = False


class Sockets(msgspec.Struct, frozen=True, tag="sockets"):
    """Unconnected, non-blocking TCP or UDP sockets in the pod's netns, exempt from redirection."""

    pod_uid: str
    family: int  # 4 or 6
    udp: bool = False


class UdpSockets(msgspec.Struct, frozen=True, tag="udp_sockets"):
    """Bound UDP sockets in the pod's netns, exempt from redirection, for this worker only.

    One for IPv4, and a second one if the pod has IPv6.
    """

    pod_uid: str


class IntrospectionRequest(msgspec.Struct, frozen=True, tag="introspection_request"):
    """Request a view of the worker: "connections", "tunnels" or "stats".

    The worker sends a CounterReport first, so its counters are current when the reply arrives.
    """

    id: int
    what: str


class LogLevel(StrEnum):
    """The least severe level to log. In the access log, `warning` selects failed connections."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    OFF = "off"


class AccessRule(msgspec.Struct, frozen=True):
    """Selects access log lines. `sample` is the fraction of successful connections, 0 to 1."""

    level: LogLevel = LogLevel.INFO
    sample: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0


class LogConfig(msgspec.Struct, frozen=True, tag="log_config", kw_only=True):
    """Logging configuration. `namespaces` overrides `access` by the local pod's namespace.

    `access_lines_per_s` limits the access log of each process, for successful and for failed
    connections separately; 0: no limit.
    """

    process: LogLevel = LogLevel.INFO
    access: AccessRule = AccessRule()
    namespaces: dict[str, AccessRule] = {}
    access_lines_per_s: Annotated[int, msgspec.Meta(ge=0)] = DEFAULT_ACCESS_LINES_PER_S


class CounterAck(msgspec.Struct, frozen=True, tag="counter_ack"):
    """The agent has counted the worker's reports up to and including `seq`."""

    seq: int


def _check_address(address: SocketAddress) -> None:
    """Raises ValueError, which a decoder reports as an invalid message."""
    _check_ip(address.ip)
    if not 0 <= address.port <= MAX_PORT:
        raise ValueError(f"port {address.port} is not between 0 and {MAX_PORT}")


def _check_ip(text: str) -> None:
    if len(text) > 45 or canonical(text) != text:
        raise ValueError(f"{text[:64]!r} is not an IP address in canonical form")


ToAgent = (
    Hello
    | PodReady
    | SocketRequest
    | UdpSocketRequest
    | ConnectUdpUnsupported
    | SameNodeAllowed
    | IntrospectionReply
    | CounterReport
    | Draining
)
ToWorker = (
    MeshDelta
    | Certificate
    | CertificateRemoved
    | PodAdded
    | PodRemoved
    | Sockets
    | UdpSockets
    | IntrospectionRequest
    | CounterAck
    | LogConfig
)
