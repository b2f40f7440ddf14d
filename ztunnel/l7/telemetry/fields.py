# SPDX-License-Identifier: Apache-2.0
"""Fields that telemetry adds to filters and endpoints."""

from __future__ import annotations

from ztunnel.l7.config import Json
from ztunnel.l7.inputs import Destination, Inputs
from ztunnel.mesh.model import Service, Workload


def hcm(inputs: Inputs, destination: Destination) -> Json:
    """Return fields of HttpConnectionManager."""
    return {}


def tcp(inputs: Inputs, destination: Destination) -> Json:
    """Return fields of TcpProxy."""
    return {}


def endpoint_metadata(inputs: Inputs, service: Service, workload: Workload | None) -> Json:
    """Return `metadata` of an LbEndpoint."""
    return {}
