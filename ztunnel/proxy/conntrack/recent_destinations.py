# SPDX-License-Identifier: Apache-2.0
"""The destinations whose waypoint changed a short time ago.

Their waypoint's Envoy may not have their configuration yet, see `handlers.waypoint_probe`. The
destinations of a complete snapshot are not recent.
"""

from __future__ import annotations

from ztunnel.ipc.messages import MeshDelta
from ztunnel.mesh.model import Service, Workload
from ztunnel.mesh.state import MeshState

RECENT_S = 5.0  # Envoy gets a new destination within a second (500 services: 0.9 s)
MAX_RECENT = 8192  # addresses


class RecentDestinations:
    """Addresses by the time of the change, in monotonic seconds."""

    def __init__(self) -> None:
        self._changed_at: dict[str, float] = {}  # oldest first

    def note(self, mesh: MeshState, delta: MeshDelta, now: float) -> None:
        """Note what a delta changes; call it before the delta is applied."""
        for service in delta.services:
            if service.waypoint and _differs(service, mesh.service(service.key)):
                self._put(service.vips, now)
        for workload in delta.workloads:
            if workload.waypoint and _is_new_user(workload, mesh.workload(workload.uid)):
                self._put(workload.addresses, now)

    def contains(self, ip: str, now: float) -> bool:
        """Whether the waypoint of this address changed less than RECENT_S ago."""
        at = self._changed_at.get(ip)
        return at is not None and now - at < RECENT_S

    def _put(self, addresses: tuple[str, ...], now: float) -> None:
        for ip in addresses:
            self._changed_at.pop(ip, None)
            self._changed_at[ip] = now
        while self._changed_at:
            oldest = next(iter(self._changed_at))
            is_recent = now - self._changed_at[oldest] < RECENT_S
            if is_recent and len(self._changed_at) <= MAX_RECENT:
                return
            del self._changed_at[oldest]


def _differs(service: Service, before: Service | None) -> bool:
    """Whether Envoy needs another listener configuration for the service."""
    return (
        before is None
        or (service.waypoint, service.waypoint_error, service.vips)
        != (
            before.waypoint,
            before.waypoint_error,
            before.vips,
        )
        or service.ports != before.ports
    )


def _is_new_user(workload: Workload, before: Workload | None) -> bool:
    return before is None or (workload.waypoint, workload.waypoint_error, workload.addresses) != (
        before.waypoint,
        before.waypoint_error,
        before.addresses,
    )
