# SPDX-License-Identifier: Apache-2.0
"""Fields that traffic policies add to the cluster of a service port."""

from __future__ import annotations

from ztunnel.l7.config import ClusterFields, EndpointGroup
from ztunnel.l7.inputs import Inputs
from ztunnel.mesh.model import Endpoint, Service, ServicePort


def cluster_fields(
    inputs: Inputs, gateway: str, service: Service, port: ServicePort, subset: str = ""
) -> ClusterFields:
    """Return the fields for requests of `gateway` to a service port."""
    return ClusterFields({"connect_timeout": "10s"})


def endpoint_groups(
    inputs: Inputs,
    gateway: str,
    service: Service,
    subset: str,
    endpoints: tuple[Endpoint, ...],
) -> tuple[EndpointGroup, ...]:
    """Group the ready endpoints of a service port by locality; of a subset, only its own."""
    return (EndpointGroup(endpoints),)
