# SPDX-License-Identifier: Apache-2.0
"""Authorizes connections from waypoints to backends of the same node before the first one.

Other pairs bypass the proxy after a first connection (`same_node`). An Envoy keeps its connections
to backends open and reuses them, so the first ones would carry most requests through the proxy.
The agent's own policy engine decides, as for any report of a worker.
"""

from __future__ import annotations

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
        self._services: dict[str, Service] = {}  # those with a waypoint, by key

    def apply(self, change: ViewChange) -> None:
        for key in change.removed_services:
            self._services.pop(key, None)
        for service in change.services:
            if service.waypoint:
                self._services[service.key] = service
            else:
                self._services.pop(service.key, None)
        if change:
            self.authorize()

    def joined(self, session: Session) -> None:
        self.authorize()

    def pod_captured(self, pod: Pod) -> None:
        """The pod may be a waypoint's, or one of its backends."""
        self.authorize()

    def authorize(self) -> None:
        """Request the entries of all pairs; those that exist stay."""
        if not self._services:
            return
        for count, (source, target, destination) in enumerate(self._pairs()):
            if count == MAX_ENTRIES:
                return
            self._bypass.allow_pair(source, target, destination)

    def _pairs(self) -> Iterator[tuple[Pod, Pod, SocketAddress]]:
        by_address = {ip: pod for pod in self._pods for ip in pod.addresses}
        for source in self._pods:
            if not source.workload.gateway:
                continue
            for service in self._services.values():
                if service.waypoint == source.workload.gateway:
                    for destination in _backends(service):
                        target = by_address.get(destination.ip)
                        if target is not None:
                            yield source, target, destination


def _backends(service: Service) -> Iterator[SocketAddress]:
    names = [port.name for port in service.ports if port.protocol == "TCP"]
    for endpoint in service.endpoints:
        for name in names:
            if endpoint.ready and name in endpoint.ports:
                yield SocketAddress(endpoint.address, endpoint.ports[name])
