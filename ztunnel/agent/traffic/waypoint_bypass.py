# SPDX-License-Identifier: Apache-2.0
"""Authorizes connections from gateways to backends of the same node before the first one.

Other pairs bypass the proxy after a first connection (`same_node`). An Envoy keeps its connections
to backends open and reuses them, so the first ones would carry most requests through the proxy.
The agent's own policy engine decides, as for any report of a worker.

    waypoint         to the backends of the services whose waypoint it is
    ingress gateway  to the backends of all services: its routes may change at any time
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from ztunnel.agent.pods.pod import Pod
from ztunnel.agent.pods.registry import CapturedPods
from ztunnel.agent.traffic.same_node import SameNodeBypass
from ztunnel.agent.workers.handlers import SessionObserver
from ztunnel.agent.workers.session import Session
from ztunnel.kube.view.cluster_view import ViewChange
from ztunnel.kube.view.publisher import ViewConsumer
from ztunnel.mesh.model import Service, SocketAddress

MAX_ENTRIES = 4096  # of one update; further pairs are authorized by their first connection


class WaypointBypass(ViewConsumer, SessionObserver):
    """Requests bypass entries for this node's gateway pods and the backends of their services."""

    def __init__(self, bypass: SameNodeBypass, pods: CapturedPods) -> None:
        self._bypass = bypass
        self._pods = pods
        self._services: dict[str, Service] = {}  # by key
        # by endpoint address and service key: the ports of ready endpoints; only on a node that has
        # a gateway pod
        self._ports_at: defaultdict[str, dict[str, list[int]]] | None = None

    def apply(self, change: ViewChange) -> None:
        for key in change.removed_services:
            self._unindex(self._services.pop(key, None))
        for service in change.services:
            self._unindex(self._services.get(service.key))
            self._services[service.key] = service
            self._index(service)
        if change:
            self.authorize()

    def joined(self, session: Session) -> None:
        self.authorize()

    def pod_captured(self, pod: Pod) -> None:
        """The pod may be a gateway's, or one of its backends."""
        self.authorize()

    def authorize(self) -> None:
        """Request the entries of all pairs; those that exist stay."""
        gateways = [pod for pod in self._pods if pod.workload.gateway]
        if not gateways:
            self._ports_at = None
            return
        if self._ports_at is None:
            self._ports_at = defaultdict(dict)
            for service in self._services.values():
                self._index(service)
        for count, (source, target, destination) in enumerate(self._pairs(gateways)):
            if count == MAX_ENTRIES:
                return
            self._bypass.allow_pair(source, target, destination)

    def _pairs(self, gateways: list[Pod]) -> Iterator[tuple[Pod, Pod, SocketAddress]]:
        ports_at: dict[str, dict[str, list[int]]] = self._ports_at or {}
        for target in self._pods:
            for address in target.addresses:
                for key, ports in ports_at.get(address, {}).items():
                    sources = [each for each in gateways if _may_dial(each, self._services[key])]
                    for source in sources:
                        for port in ports:
                            yield source, target, SocketAddress(address, port)

    def _index(self, service: Service) -> None:
        if self._ports_at is None:
            return
        names = [port.name for port in service.ports if port.protocol == "TCP"]
        for endpoint in service.endpoints:
            ports = [endpoint.ports[name] for name in names if name in endpoint.ports]
            if endpoint.ready and ports:
                self._ports_at[endpoint.address][service.key] = ports

    def _unindex(self, service: Service | None) -> None:
        if self._ports_at is None or service is None:
            return
        for endpoint in service.endpoints:
            found = self._ports_at.get(endpoint.address, {})
            found.pop(service.key, None)
            if not found:
                self._ports_at.pop(endpoint.address, None)


def _may_dial(gateway: Pod, service: Service) -> bool:
    """Whether the gateway connects to the endpoints of the service."""
    workload = gateway.workload
    return service.waypoint == workload.gateway or bool(workload.gateway_ports)
