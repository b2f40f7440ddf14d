# SPDX-License-Identifier: Apache-2.0
"""Fields that traffic policies add to the cluster of a service port."""

from __future__ import annotations

from ztunnel.l7.config import ClusterFields
from ztunnel.l7.inputs import Inputs
from ztunnel.mesh.model import Service, ServicePort


def cluster_fields(
    inputs: Inputs, gateway: str, service: Service, port: ServicePort, subset: str = ""
) -> ClusterFields:
    """Return the fields for requests of `gateway` to a service port."""
    return ClusterFields({"connect_timeout": "10s"})
