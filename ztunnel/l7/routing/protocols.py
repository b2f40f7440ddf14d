# SPDX-License-Identifier: Apache-2.0
"""How a waypoint handles a service port, from what the service declares.

The names are those of Istio (istio/istio, pkg/config/protocol) and of Kubernetes' appProtocol.
"""

from __future__ import annotations

from ztunnel.l7.inputs import Protocol
from ztunnel.mesh.model import Service, ServicePort

_DECLARED = {
    "http": Protocol.HTTP,
    "ws": Protocol.HTTP,
    "kubernetes.io/ws": Protocol.HTTP,
    "http2": Protocol.HTTP2,
    "grpc": Protocol.HTTP2,
    "grpc-web": Protocol.HTTP2,  # Envoy translates it to gRPC
    "h2c": Protocol.HTTP2,
    "kubernetes.io/h2c": Protocol.HTTP2,
    "https": Protocol.TLS,
    "tls": Protocol.TLS,
    "wss": Protocol.TLS,
    "kubernetes.io/wss": Protocol.TLS,
    "tcp": Protocol.TCP,
    "mongo": Protocol.TCP,
    "mysql": Protocol.TCP,
    "redis": Protocol.TCP,
}

# SMTP, DNS, MySQL, MongoDB: servers of these protocols may send first, so that waiting for the
# client's bytes would block. istio/istio, pkg/config/kube/conversion.go.
SERVER_FIRST_PORTS = frozenset((25, 53, 3306, 27017))


def is_grpc_web(port: ServicePort | None) -> bool:
    """Return whether clients of a port use gRPC-Web, which its backends do not."""
    return port is not None and port.app_protocol == "grpc-web"


def may_be_grpc(port: ServicePort | None) -> bool:
    """Return whether requests to a port may be gRPC, as far as it declares."""
    return port is None or declared_protocol(port) in {None, Protocol.HTTP2}


def declared_protocol(port: ServicePort) -> Protocol | None:
    """Return the protocol of a port; None if Envoy has to detect it from the first bytes."""
    found = _DECLARED.get(port.app_protocol)
    if found is None and not port.app_protocol and port.port in SERVER_FIRST_PORTS:
        return Protocol.TCP
    return found


def service_port(
    service: Service | None, number: int, transport: str = "TCP"
) -> ServicePort | None:
    """Return the port of a service, or None. `transport`: TCP or UDP."""
    if service is None:
        return None
    return next((p for p in service.ports if p.port == number and p.protocol == transport), None)
