# SPDX-License-Identifier: Apache-2.0
"""The paths and contenders of the benchmark. Pure data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from bench.comparison.results import OURS

ENVOY = "Envoy, routing only"
ENVOY_FILTERS = "Envoy, same filters"
NGINX = "nginx"
CONTENDERS = (OURS, ENVOY, ENVOY_FILTERS, NGINX)
PROXY_NODE = "node1"


class Scheme(StrEnum):
    """The protocol of the client."""

    HTTP = "http"
    HTTPS = "https"

    @property
    def port(self) -> int:
        """The port of the load balancer."""
        return 443 if self is Scheme.HTTPS else 80


@dataclass(frozen=True)
class Route:
    """A client outside the cluster, a gateway on PROXY_NODE, and a server on a node."""

    scheme: Scheme
    server: str

    @property
    def name(self) -> str:
        """In tables."""
        place = "same node" if self.server == PROXY_NODE else "across nodes"
        return f"{self.scheme.upper()}, {place}"


SERVERS = ("node1", "node2")
PATHS = tuple(Route(scheme, server) for scheme in Scheme for server in SERVERS)
