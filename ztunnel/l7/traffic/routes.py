# SPDX-License-Identifier: Apache-2.0
"""Routes of VirtualServices."""

from __future__ import annotations

from ztunnel.l7.config import RouteTable
from ztunnel.l7.inputs import Destination, Inputs


def route_source(inputs: Inputs, destination: Destination) -> RouteTable | None:
    """Return the routes of a service port to which no producer route of Gateway API attaches.

    None: all requests go to the service itself.
    """
    return None
