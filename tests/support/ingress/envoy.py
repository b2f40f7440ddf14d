# SPDX-License-Identifier: Apache-2.0
"""Runs the Envoy of the venv with the configuration of an ingress gateway.

Each listener is at a free port of 127.0.0.1 instead of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.ports import free_ports
from tests.support.waypoint.envoy import (
    RunningEnvoy,
    bootstrap_of,
    inline_resources,
    started_envoy,
)
from ztunnel.l7.config import GatewayConfig


@dataclass
class RunningGateway:
    """A running Envoy; `ports`: ports on 127.0.0.1 by the port of the Gateway's listener."""

    envoy: RunningEnvoy
    ports: dict[int, int]


@contextmanager
def running_gateway(
    config: GatewayConfig, directory: Path, extra: dict[str, Any] | None = None
) -> Iterator[RunningGateway]:
    """Run Envoy until the end of the context. Raises AssertionError with its log if it exits."""
    resources = inline_resources(config)
    sockets = [each["address"]["socket_address"] for each in resources["listeners"]]
    wanted = sorted({socket["port_value"] for socket in sockets})
    admin, *free = free_ports(len(wanted) + 1)
    ports = dict(zip(wanted, free, strict=True))
    for socket in sockets:
        address = "::" if socket["address"] == "::" else "127.0.0.1"  # for both families
        socket |= {"address": address, "port_value": ports[socket["port_value"]]}
    with started_envoy(bootstrap_of(resources, admin, extra), directory) as envoy:
        yield RunningGateway(envoy, ports)
