# SPDX-License-Identifier: Apache-2.0
"""The application protocol that the name of a service port declares. Pure.

Source: istio.io, "Protocol Selection": a name is `<protocol>[-<suffix>]`. appProtocol, which
Kubernetes defines, has precedence over the name.
"""

from __future__ import annotations

PROTOCOLS = frozenset(
    {
        *("grpc", "grpc-web", "http", "http2", "https", "mongo", "mysql", "redis"),
        *("tcp", "tls", "udp"),
    }
)


def protocol_of_name(name: str) -> str:
    """The protocol that the name of a port declares, in lower case; empty if it declares none."""
    name = name.lower()
    if name.startswith("grpc-web"):
        return "grpc-web" if name == "grpc-web" or name.startswith("grpc-web-") else "grpc"
    prefix = name.partition("-")[0]
    return prefix if prefix in PROTOCOLS else ""
