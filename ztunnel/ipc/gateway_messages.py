# SPDX-License-Identifier: Apache-2.0
"""The messages between the agent and the gateway process (`ztunnel gateway`).

The agent listens on a socket of its own for it; the rules are those of `ztunnel.ipc.messages`: the
agent trusts no value, tags and the meaning of fields never change.

    gateway process                                           agent
      | GatewayHello (+ descriptors of the listeners it holds)  |
      |-------------------------------------------------------->|
      |   GatewaySettings, LogConfig, MeshDelta ..., L7Delta ...
      |<--------------------------------------------------------|
      |   GatewayPodAdded (+ descriptors), PodRemoved, Sockets (+ descriptors), GatewayQuery
      |<--------------------------------------------------------|
      | SocketRequest, GatewayRejected, GatewayReply            |
      |-------------------------------------------------------->|

Here, SocketRequest requests sockets that the agent connects to the pod's 127.0.0.1:15000.

A process that loses the agent continues to serve the state that it has, and reconnects.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec

from ztunnel.ipc.messages import (
    Count,
    LogConfig,
    MeshDelta,
    PodRemoved,
    PodUid,
    SocketRequest,
    Sockets,
)

MAX_L7_BODY_BYTES = 768 << 10  # of one object that configures L7; etcd's limit is 1.5 MiB
MAX_XDS_NAME_CHARS = 1024  # of a resource of Envoy
MAX_REJECTION_CHARS = 1024  # of Envoy's message about a resource
MAX_REPLY_BYTES = 512 << 10  # of one part of a reply


class L7ObjectBody(msgspec.Struct, frozen=True, array_like=True):
    """An object that configures L7: `body` is its JSON text without managedFields and status."""

    kind: str
    namespace: str
    name: str
    body: bytes

    @property
    def key(self) -> str:
        """The key in removals, as of `str(ObjectKey)`."""
        place = f"{self.namespace}/" if self.namespace else ""
        return f"{self.kind} {place}{self.name}"


class L7Delta(msgspec.Struct, frozen=True, tag="l7_delta", kw_only=True):
    """A change of the L7 objects; `reset` and `complete` have the meaning of `MeshDelta`."""

    objects: tuple[L7ObjectBody, ...] = ()
    removed: tuple[str, ...] = ()  # L7ObjectBody.key
    reset: bool = False
    complete: bool = False


class GatewaySettings(msgspec.Struct, frozen=True, tag="gateway_settings", kw_only=True):
    """Settings of the mesh that the configuration of gateways depends on."""

    trust_domain: str
    root_namespace: str
    cluster_domain: str


class GatewayListenerKind(StrEnum):
    """A listener in a gateway pod, which the gateway process serves."""

    XDS4 = "xds4"  # 127.0.0.1:15010
    XDS6 = "xds6"  # [::1]:15010
    METRICS4 = "metrics4"  # 0.0.0.0:15020
    METRICS6 = "metrics6"  # [::]:15020, v6 only

    @property
    def is_xds(self) -> bool:
        """Whether Envoy connects to it; else a Prometheus server does."""
        return self.value.startswith("xds")


class GatewayPodAdded(msgspec.Struct, frozen=True, tag="gateway_pod_added", kw_only=True):
    """A local pod that runs `gateway` (`namespace/name`): serve its Envoy.

    Carries one descriptor per entry of `listeners`, those that the process lacks.
    """

    pod_uid: str
    workload: str  # Workload.uid
    gateway: str
    netns_cookie: int
    listeners: tuple[GatewayListenerKind, ...] = ()


class GatewayView(StrEnum):
    """What the agent can request about a gateway pod."""

    CONFIG_DUMP = "config_dump"  # Envoy's, with the endpoints
    CLUSTERS = "clusters"  # Envoy's clusters with the state of their hosts
    XDS = "xds"  # what the process sent, and what Envoy accepted and rejected
    LOG = "log"  # Envoy's log levels


class GatewayQuery(msgspec.Struct, frozen=True, tag="gateway_query"):
    """Request a view of a gateway pod. `log_level` sets it first: a level, or logger=level."""

    id: int
    pod_uid: str
    view: GatewayView
    log_level: str = ""


class HeldGatewayListeners(msgspec.Struct, frozen=True):
    """A pod whose listeners the process holds. Their descriptors are in this order."""

    pod_uid: PodUid
    netns_cookie: Count
    listeners: Annotated[
        tuple[GatewayListenerKind, ...], msgspec.Meta(max_length=len(GatewayListenerKind))
    ]

    def __post_init__(self) -> None:
        if len(set(self.listeners)) != len(self.listeners):
            raise ValueError("a listener is listed twice")


class GatewayHello(msgspec.Struct, frozen=True, tag="gateway_hello", kw_only=True):
    """The first message of a gateway process, like `Hello`."""

    version: Annotated[str, msgspec.Meta(max_length=64)]
    pid: Count
    pods: Annotated[tuple[HeldGatewayListeners, ...], msgspec.Meta(max_length=1024)] = ()


class RejectedResource(msgspec.Struct, frozen=True, array_like=True):
    """A resource that Envoy rejected, with Envoy's message."""

    type_url: Annotated[str, msgspec.Meta(max_length=256)]
    name: Annotated[str, msgspec.Meta(max_length=MAX_XDS_NAME_CHARS)]
    message: Annotated[str, msgspec.Meta(max_length=MAX_REJECTION_CHARS)]


class GatewayRejected(msgspec.Struct, frozen=True, tag="gateway_rejected"):
    """All resources that the Envoy of a pod rejects at present."""

    pod_uid: PodUid
    resources: Annotated[tuple[RejectedResource, ...], msgspec.Meta(max_length=64)]


class GatewayReply(msgspec.Struct, frozen=True, tag="gateway_reply"):
    """A part of the reply to `GatewayQuery(id)`; `more`: another follows. `error`: it failed."""

    id: Count
    data: Annotated[bytes, msgspec.Meta(max_length=MAX_REPLY_BYTES)] = b""
    more: bool = False
    error: Annotated[str, msgspec.Meta(max_length=1024)] = ""


FromGateway = GatewayHello | SocketRequest | GatewayRejected | GatewayReply
ToGateway = (
    MeshDelta
    | L7Delta
    | GatewaySettings
    | GatewayPodAdded
    | PodRemoved
    | Sockets
    | GatewayQuery
    | LogConfig
)
