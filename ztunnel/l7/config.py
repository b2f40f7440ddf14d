# SPDX-License-Identifier: Apache-2.0
"""The result of a compilation, and the parts that its modules contribute.

Resources are plain dicts in the proto3 JSON form of Envoy's API. They may be shared between
configurations, so they are never modified after compilation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ztunnel.l7.names import TypeUrl, cluster_name
from ztunnel.l7.problems import Problem
from ztunnel.mesh.model import Endpoint

Json = dict[str, Any]


@dataclass(frozen=True)
class GatewayConfig:
    """All resources of one gateway, by type and name."""

    resources: dict[TypeUrl, dict[str, Json]]
    problems: tuple[Problem, ...] = ()


Locality = tuple[str, str, str]  # region, zone, subzone


@dataclass(frozen=True)
class LocalityPolicy:
    """How requests are distributed over localities; `own` is the waypoint's.

    `shares`: the weight of each pattern of localities; empty for priorities by distance.
    `failover`: the region that follows the own one, empty for any.
    """

    own: Locality
    shares: tuple[tuple[str, int], ...] = ()
    failover: str = ""


@dataclass(frozen=True)
class ClusterFields:
    """What traffic policies add to a cluster.

    `labels`: only endpoints of pods with these labels. `rejected`: no endpoints at all.
    """

    fields: Json = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    rejected: bool = False
    locality: LocalityPolicy | None = None


@dataclass(frozen=True)
class Filters:
    """Filters of a chain that enforce policies, in order, and the clusters that they call."""

    http: tuple[Json, ...] = ()
    network: tuple[Json, ...] = ()
    clusters: tuple[Json, ...] = ()
    problems: tuple[Problem, ...] = ()


class ClusterRef(NamedTuple):
    """A cluster that a route uses: a port of the service `namespace/name`, or a subset of it.

    `http2`: for requests of gRPC by an ingress gateway; backends get HTTP/2 unless the port
    declares otherwise. `opaque`: for connections whose TLS passes an ingress gateway unchanged; it
    adds none of its own.
    """

    service: str
    port: int
    subset: str = ""
    http2: bool = False
    opaque: bool = False

    @property
    def name(self) -> str:
        """The name of the Envoy cluster."""
        name = cluster_name(self.service, self.port, self.subset)
        kinds = ("|http2" if self.http2 else "") + ("|opaque" if self.opaque else "")
        return name + kinds


@dataclass(frozen=True)
class RouteTable:
    """Routes of Envoy for all requests to a service port, and the clusters that they use."""

    routes: tuple[Json, ...]
    uses: frozenset[ClusterRef] = frozenset()
    problems: tuple[Problem, ...] = ()


class StreamTable(NamedTuple):
    """Fields of TcpProxy that select clusters, the clusters that exist, and what is wrong."""

    fields: Json
    uses: frozenset[ClusterRef] = frozenset()
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class EndpointGroup:
    """Endpoints of a cluster with a common locality and priority: fields of LocalityLbEndpoints."""

    endpoints: tuple[Endpoint, ...]
    fields: Json = field(default_factory=dict)
