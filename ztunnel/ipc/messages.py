# SPDX-License-Identifier: Apache-2.0
"""What the agent and a proxy worker say to each other over the node's unix socket.

Every message is one frame (see `ztunnel.ipc.channel`); some carry file descriptors
by SCM_RIGHTS. The agent listens, workers dial.

    worker                                      agent
      | Hello (+ listener fds it already holds)   |
      |------------------------------------------>|
      |   MeshDelta(reset=True) ... MeshDelta(complete=True)
      |<------------------------------------------|
      |   Certificate, PodAdded (+ fds), Sockets (+ fds)
      |<------------------------------------------|
      | PodReady, NeedSockets, Allowed, Answer    |
      |------------------------------------------>|
      | Counted                                   |
      |------------------------------------------>|
      |                               CountsTaken |
      |<------------------------------------------|
      | Draining                                  |
      |------------------------------------------>|

A lost agent changes nothing for the worker: it keeps what it has and dials again.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec

from ztunnel.mesh.model import Service, SocketAddress, Workload
from ztunnel.mesh.policy.model import Policy


class ListenerKind(StrEnum):
    """Which in-pod listener a descriptor is; the value says port and family."""

    OUTBOUND4 = "outbound4"  # 127.0.0.1:15001
    OUTBOUND6 = "outbound6"  # [::1]:15001
    INBOUND4 = "inbound4"  # 127.0.0.1:15006, reached only through sk_lookup
    INBOUND6 = "inbound6"  # [::1]:15006, reached only through sk_lookup
    HBONE4 = "hbone4"  # 0.0.0.0:15008
    HBONE6 = "hbone6"  # [::]:15008, v6 only
    DNS4 = "dns4"  # TCP 127.0.0.1:15053
    DNS6 = "dns6"  # TCP [::1]:15053
    QUERY4 = "query4"  # UDP 127.0.0.1:15053, as are the following: one a name server
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
        """Whether it is a UDP socket that queries arrive on, and no listener for connections."""
        return self.value.startswith("query")


class HeldListeners(msgspec.Struct, frozen=True):
    """A pod whose listeners a worker already holds; fds follow in `listeners` order."""

    pod_uid: str
    netns_cookie: int
    listeners: tuple[ListenerKind, ...]


class Hello(msgspec.Struct, frozen=True, tag="hello", kw_only=True):
    """First message of a worker. Carries the fds of all `pods`' listeners, concatenated."""

    version: str
    pid: int
    worker: int
    pods: tuple[HeldListeners, ...] = ()


class PodReady(msgspec.Struct, frozen=True, tag="pod_ready"):
    """The worker accepts on this pod's listeners and holds its certificate."""

    pod_uid: str


class SocketRequest(msgspec.Struct, frozen=True, tag="socket_request"):
    """The worker's stock of unconnected in-pod sockets runs low; `family` is 4 or 6."""

    pod_uid: str
    family: int
    count: int
    udp: bool = False


class UdpSocketRequest(msgspec.Struct, frozen=True, tag="udp_socket_request"):
    """The worker would carry the pod's UDP. `port` is that of the socket it has; 0 asks for one."""

    pod_uid: str
    port: int = 0


class ConnectUdpUnsupported(msgspec.Struct, frozen=True, tag="connect_udp_unsupported"):
    """The proxy of this workload (its uid) does not take connect-udp: UDP to it passes as it is.

    `datagrams` waited for the answer: a pod's, from its app at `source` to `destination`.
    """

    workload: str
    pod_uid: str = ""
    source: SocketAddress | None = None
    destination: SocketAddress | None = None
    datagrams: tuple[bytes, ...] = ()


class SameNodeAllowed(msgspec.Struct, frozen=True, tag="same_node_allowed", kw_only=True):
    """A pod of this node was let in at another one: by what it proved, and by this revision.

    The agent may let the kernel connect the two without the proxy from now on.
    """

    source_ip: str
    source_identity: str
    pod_uid: str  # the destination pod's
    destination: SocketAddress
    revision: int


class IntrospectionReply(msgspec.Struct, frozen=True, tag="introspection_reply"):
    """The reply to `IntrospectionRequest(id)`: any data, as MessagePack."""

    id: int
    body: msgspec.Raw


class SeriesCounts(msgspec.Struct, frozen=True, array_like=True):
    """The counts of one label set (`ztunnel.telemetry.labels`) since the previous report.

    `sent` is bytes from the client to the server, `received` from the server to the client.
    """

    labels: tuple[str, ...]
    opened: int = 0
    closed: int = 0
    failed: int = 0
    sent: int = 0
    received: int = 0


class DnsCounts(msgspec.Struct, frozen=True, array_like=True):
    """DNS queries since the previous report, in the orders of `ztunnel.telemetry.dns_counters`."""

    outcomes: tuple[int, ...]
    forward_failures: int
    buckets: tuple[int, ...]
    seconds: float


class UdpDropCounts(msgspec.Struct, frozen=True, array_like=True):
    """UDP drops since the previous report, in the order of `UdpDropReason`."""

    by_reason: tuple[int, ...]


class CounterReport(msgspec.Struct, frozen=True, tag="counter_report", kw_only=True):
    """What the worker counted since its previous report.

    The worker sends a report again to a new agent until `CounterAck` confirms it. The agent counts
    each (instance, seq) once. `instance` identifies the worker process; `seq` counts from 1.
    """

    instance: int
    seq: int
    series: tuple[SeriesCounts, ...]
    dns: DnsCounts | None = None
    udp_drops: UdpDropCounts | None = None


class Draining(msgspec.Struct, frozen=True, tag="draining"):
    """The worker takes nothing new from now on; it is still to be heard until it hangs up."""


class MeshDelta(msgspec.Struct, frozen=True, tag="mesh_delta", kw_only=True):
    """A change of mesh state. `reset` opens a fresh snapshot, `complete` closes it.

    Between `reset` and `complete` the worker goes on deciding by the old state (if it had
    one) and swaps at `complete`. Later deltas have both false and apply at once.
    """

    revision: int
    workloads: tuple[Workload, ...] = ()
    services: tuple[Service, ...] = ()
    removed_workloads: tuple[str, ...] = ()  # Workload.uid
    removed_services: tuple[str, ...] = ()  # Service.key
    policies: tuple[Policy, ...] = ()
    removed_policies: tuple[str, ...] = ()  # their keys
    reset: bool = False
    registry_only: bool = False  # with `reset`: apps reach services and workloads only
    complete: bool = False
    more: bool = False  # further parts of this revision follow; all are in force at once


class Certificate(msgspec.Struct, frozen=True, tag="certificate", kw_only=True):
    """A workload certificate with its key, and the trust roots. Never logged."""

    identity: str
    chain_pem: bytes
    key_pem: bytes = msgspec.field()
    roots_pem: bytes
    not_after: float  # Unix seconds

    def __repr__(self) -> str:
        return f"Certificate(identity={self.identity!r}, key_pem=<hidden>)"


class CertificateRemoved(msgspec.Struct, frozen=True, tag="certificate_removed"):
    """No pod of this node has the identity any more: forget its key."""

    identity: str


class PodAdded(msgspec.Struct, frozen=True, tag="pod_added", kw_only=True):
    """A local pod to serve. Carries one fd per entry of `listeners`, in that order.

    `listeners` is empty when the worker already holds them (it said so in Hello).
    """

    pod_uid: str
    workload: str  # Workload.uid
    identity: str
    netns_cookie: int
    addresses: tuple[str, ...]
    listeners: tuple[ListenerKind, ...] = ()


class PodRemoved(msgspec.Struct, frozen=True, tag="pod_removed"):
    """Stop accepting for this pod. Live connections end on their own, or now if `gone`."""

    pod_uid: str
    gone: bool = False


class Sockets(msgspec.Struct, frozen=True, tag="sockets"):
    """Fresh unconnected non-blocking TCP or UDP sockets in the pod's netns, tagged as ours."""

    pod_uid: str
    family: int  # 4 or 6
    udp: bool = False


class UdpSockets(msgspec.Struct, frozen=True, tag="udp_sockets"):
    """Bound UDP sockets in the pod, tagged as ours, for this worker alone: IPv4, perhaps IPv6."""

    pod_uid: str


class IntrospectionRequest(msgspec.Struct, frozen=True, tag="introspection_request"):
    """Ask the worker for its view: `what` is "connections", "tunnels" or "stats"."""

    id: int
    what: str


class LogLevel(StrEnum):
    """What is logged. For access lines `warning` are those of what failed or was refused."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    OFF = "off"


class AccessRule(msgspec.Struct, frozen=True):
    """Which access lines are written. `sample` is the share of those without an error, 0 to 1."""

    level: LogLevel = LogLevel.INFO
    sample: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0


class LogConfig(msgspec.Struct, frozen=True, tag="log_config", kw_only=True):
    """How to log from now on; of access lines by the namespace of this node's pod."""

    process: LogLevel = LogLevel.INFO
    access: AccessRule = AccessRule()
    namespaces: dict[str, AccessRule] = {}


class CounterAck(msgspec.Struct, frozen=True, tag="counter_ack"):
    """The agent has counted the worker's reports up to and including `seq`."""

    seq: int


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
