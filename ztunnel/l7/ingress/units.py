# SPDX-License-Identifier: Apache-2.0
"""The parts from which the configuration of an ingress gateway is assembled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ztunnel.l7.api.gateway import GatewaySpec
from ztunnel.l7.config import ClusterRef, Json
from ztunnel.l7.ingress.attachment import AttachedRoute
from ztunnel.l7.ingress.listeners import EffectiveListener
from ztunnel.l7.ingress.topology import Topology
from ztunnel.l7.inputs import Edge
from ztunnel.l7.problems import Problem


class Known(NamedTuple):
    """A gateway, and what is known of its pods and of what is in front of them."""

    spec: GatewaySpec
    edge: Edge
    topology: Topology = Topology()


class StreamListener(NamedTuple):
    """A listener that forwards connections or datagrams, with the name of its chain, its routes
    (oldest first), and the hostnames of all listeners of its port."""

    name: str
    listener: EffectiveListener
    routes: Sequence[AttachedRoute] = ()
    siblings: Sequence[str] = ()


@dataclass(frozen=True)
class ChainUnit:
    """What one listener contributes to the Envoy listener of its port.

    `chains`: with `filter_chain_match` if the port is shared. `inspect_tls`: their matches need
    SNI. `quic`: chains for HTTP/3. `udp`: a complete Envoy listener for UDP instead of chains.
    `endpoints`: of `clusters`.
    """

    chains: tuple[Json, ...] = ()
    clusters: dict[str, Json] = field(default_factory=dict)
    endpoints: dict[str, Json] = field(default_factory=dict)
    secrets: dict[str, Json] = field(default_factory=dict)
    uses: frozenset[ClusterRef] = frozenset()
    problems: tuple[Problem, ...] = ()
    inspect_tls: bool = False
    quic: tuple[Json, ...] = ()
    udp: Json | None = None


@dataclass(frozen=True)
class HostUnit:
    """The virtual host of one hostname, and the clusters that it uses."""

    virtual_host: Json
    uses: frozenset[ClusterRef] = frozenset()
    problems: tuple[Problem, ...] = ()
