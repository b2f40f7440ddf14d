# SPDX-License-Identifier: Apache-2.0
"""One parser per module, each with a `TARGET`."""

from __future__ import annotations

NAMES = (
    "connect",
    "capsule",
    "baggage",
    "forwarded",
    "dns",
    "policy",
    "agent_link",
    "gateway_link",
    "xds_stream",
    "kube_objects",
    "l7_objects",
    "ingress_objects",
)
