# SPDX-License-Identifier: Apache-2.0
"""The parts from which a gateway's configuration is assembled.

A unit depends on few objects, so that a change compiles few units again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from ztunnel.l7.config import ClusterRef, Json
from ztunnel.l7.problems import Problem

# No cluster has this name: Envoy answers requests that select it with an error, and resets
# connections.
UNRESOLVED = "unresolved-backend"
ANY_PORT = 0  # of a branch: every port of the address


class Branch(NamedTuple):
    """Selects chains for connections to an address, or to a network (`ip` with a prefix length).

    `on_match` is an OnMatch of the listener's matcher: an action that names a chain, or another
    matcher. `inspect_http`, `inspect_tls`: the matcher needs what these listener filters detect.
    `is_raw`: the port is declared as TCP. `is_own`: by the waypoint's own namespace.
    """

    ip: str
    port: int
    on_match: Json
    inspect_http: bool = False
    inspect_tls: bool = False
    is_raw: bool = False
    is_own: bool = False


@dataclass(frozen=True)
class DestinationUnit:
    """All of one service or pod, except the clusters that `uses` refers to."""

    branches: tuple[Branch, ...] = ()
    chains: tuple[Json, ...] = ()
    routes: dict[str, Json] = field(default_factory=dict)
    clusters: dict[str, Json] = field(default_factory=dict)
    uses: frozenset[ClusterRef] = frozenset()
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class ClusterUnit:
    """A cluster and its endpoints; both are None if the service or port does not exist.

    A cluster whose names Envoy resolves has no endpoints."""

    cluster: Json | None
    endpoints: Json | None
    problems: tuple[Problem, ...] = ()
