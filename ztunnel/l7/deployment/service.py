# SPDX-License-Identifier: Apache-2.0
"""The Service of a gateway.

    waypoint   ClusterIP; the ports of HBONE and of readiness
    ingress    LoadBalancer, NodePort or ClusterIP, as Istio's annotation states; one port for each
               port of the listeners, at which Envoy listens, too

Names of ports depend on protocol and number only, and node ports are left to the API server: those
that it has assigned survive every change of the other listeners.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from itertools import islice
from typing import Any, NamedTuple

from ztunnel.l7.deployment.settings import GATEWAY_LABEL, Json
from ztunnel.l7.names import MAX_GATEWAY_PORTS, READINESS_PORT
from ztunnel.mesh.ports import HBONE

SERVICE_TYPE_ANNOTATION = "networking.istio.io/service-type"  # of a Gateway; Istio's


class ServiceType(StrEnum):
    """`spec.type` of the Service of an ingress gateway."""

    LOAD_BALANCER = "LoadBalancer"
    NODE_PORT = "NodePort"
    CLUSTER_IP = "ClusterIP"


class Transport(StrEnum):
    """`protocol` of a Service port."""

    TCP = "TCP"
    UDP = "UDP"


class GatewayPort(NamedTuple):
    """A port that a gateway's Envoy listens on. `app_protocol`: for example `https`."""

    number: int
    transport: Transport
    app_protocol: str

    @property
    def name(self) -> str:
        """The name of the Service port: unique, because (number, transport) is."""
        return f"{self.app_protocol}-{self.number}"


def distinct_ports(ports: Iterable[GatewayPort]) -> tuple[GatewayPort, ...]:
    """One port for each number and transport, of the listener that is first; sorted.

    Of more than MAX_GATEWAY_PORTS, the first.
    """
    found: dict[tuple[int, Transport], GatewayPort] = {}
    for port in ports:
        found.setdefault((port.number, port.transport), port)
    return tuple(found[key] for key in sorted(islice(found, MAX_GATEWAY_PORTS)))


def waypoint_service(gateway: str) -> Json:
    """The Service spec of the waypoint `gateway`, a name."""
    return {
        "type": ServiceType.CLUSTER_IP.value,
        "selector": {GATEWAY_LABEL: gateway},
        "ports": [
            _port("status-port", READINESS_PORT, "tcp"),
            _port("mesh", HBONE, "hbone"),
        ],
    }


def ingress_service(
    gateway: str, service_type: ServiceType, ports: Sequence[GatewayPort], address: str
) -> Json:
    """The Service spec of the ingress gateway `gateway`, a name.

    `address`: requested of the load balancer, or empty. A Service needs a port: without a listener
    it has the one of readiness.
    """
    spec: Json = {
        "type": service_type.value,
        "selector": {GATEWAY_LABEL: gateway},
        "ports": [
            _port(each.name, each.number, each.app_protocol, each.transport) for each in ports
        ]
        or [_port("status-port", READINESS_PORT, "tcp")],
    }
    if address and service_type is ServiceType.LOAD_BALANCER:
        spec["loadBalancerIP"] = address
    return spec


def _port(
    name: str, number: int, app_protocol: str, transport: Transport = Transport.TCP
) -> dict[str, Any]:
    return {
        "name": name,
        "port": number,
        "targetPort": number,
        "protocol": transport.value,
        "appProtocol": app_protocol,
    }
