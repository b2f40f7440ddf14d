# SPDX-License-Identifier: Apache-2.0
"""Lets connections to the listener ports of this node's ingress gateways reach their Envoys.

    before a change: ports that the new state does not open are captured again
    after it:        ports that it opens are not captured any more

The kernel's entries stay while no agent runs, and follow the state when the next one knows it. An
entry is by address, so it is removed before another pod with that address is captured.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import structlog

from ztunnel.datapath.gateway_port_map import OpenPort
from ztunnel.kube.view.cluster_view import ViewChange
from ztunnel.kube.view.publisher import ViewConsumer
from ztunnel.mesh.model import Workload

UDP_PORTS = 0  # the entry of a pod that has UDP listeners; bpf/lib/dns.h reads it

log = structlog.get_logger()


class GatewayPortKernel(Protocol):
    """The kernel operations used here; implemented by `GatewayPortMap`."""

    def ports(self) -> dict[OpenPort, int]: ...
    def open(self, port: OpenPort) -> None: ...
    def close_ports(self, ports: Iterable[OpenPort]) -> None: ...


class GatewayPorts(ViewConsumer):
    """One per agent; used from the event loop only."""

    def __init__(self, kernel: GatewayPortKernel) -> None:
        self._kernel = kernel
        self._wanted: frozenset[OpenPort] = frozenset()
        self._opened: set[OpenPort] = set()
        self._is_known = False  # whether `_opened` is what the kernel has
        self._error = ""

    def before(self, change: ViewChange) -> None:
        self._wanted = wanted_ports(change.local_pods)
        self._close_unwanted()

    def apply(self, change: ViewChange) -> None:
        self.reconcile()

    def reconcile(self) -> None:
        """Open the ports that are not open yet; call it again after an error."""
        if not self._is_known:
            return
        for port in sorted(self._wanted - self._opened):
            try:
                self._kernel.open(port)
            except OSError as error:  # the port stays captured
                self._report(f"{port.protocol} port {port.port} of {port.address}: {error}")
                return
            self._opened.add(port)
        self._report("")

    def counters(self) -> dict[OpenPort, int]:
        """The open ports, and what they admitted: connections or datagrams."""
        return {port: count for port, count in self._kernel.ports().items() if port.port}

    def _close_unwanted(self) -> None:
        if not self._is_known:
            self._opened = set(self._kernel.ports())
            self._is_known = True
        unwanted = self._opened - self._wanted
        self._kernel.close_ports(unwanted)
        self._opened -= unwanted

    def _report(self, error: str) -> None:
        if error and error != self._error:
            log.warning("gateway port not opened", error=error)
        self._error = error


def wanted_ports(pods: Iterable[Workload]) -> frozenset[OpenPort]:
    """The ports of enrolled gateway pods that are not to be captured; UDP_PORTS if one is UDP."""
    return frozenset(
        OpenPort(address, port, each.protocol)
        for pod in pods
        if pod.enrolled
        for each in pod.gateway_ports
        for address in pod.addresses
        for port in ((each.port, UDP_PORTS) if each.protocol == "UDP" else (each.port,))
    )
