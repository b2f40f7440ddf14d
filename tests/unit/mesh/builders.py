# SPDX-License-Identifier: Apache-2.0
"""Builders for workloads, services and deltas; hypothesis strategies for addresses."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from hypothesis import strategies as st

from ztunnel.mesh.model import Endpoint, Service, ServicePort, TunnelProtocol, Workload
from ztunnel.mesh.policy.model import Policy
from ztunnel.mesh.state import MeshState

HBONE = TunnelProtocol.HBONE
PLAIN = TunnelProtocol.NONE

v4_texts = st.ip_addresses(v=4).map(str)
v6_addresses = st.one_of(
    st.ip_addresses(v=6),
    st.integers(0, 2**32).map(IPv6Address),  # many zeros: compression at work
)
v6_texts = v6_addresses.filter(
    lambda ip: not isinstance(ip, IPv6Address) or not ip.ipv4_mapped
).map(str)
addresses = st.one_of(v4_texts, v6_texts)
ports = st.integers(1, 65535)


def mapped(ip: str) -> str:
    """Return the v4-mapped form of an IPv4 address."""
    return f"::ffff:{IPv4Address(ip)}"


@dataclass
class Delta:
    """The argument of `MeshState.apply`."""

    workloads: tuple[Workload, ...] = ()
    services: tuple[Service, ...] = ()
    removed_workloads: tuple[str, ...] = ()
    removed_services: tuple[str, ...] = ()
    policies: tuple[Policy, ...] = ()
    removed_policies: tuple[str, ...] = ()


@dataclass
class Mesh:
    """A mesh state with one-line changes."""

    state: MeshState = field(default_factory=MeshState)

    def put(self, *values: Workload | Service) -> Mesh:
        self.state.apply(
            Delta(
                tuple(value for value in values if isinstance(value, Workload)),
                tuple(value for value in values if isinstance(value, Service)),
            )
        )
        return self

    def drop(self, *values: Workload | Service) -> Mesh:
        self.state.apply(
            Delta(
                removed_workloads=tuple(v.uid for v in values if isinstance(v, Workload)),
                removed_services=tuple(v.key for v in values if isinstance(v, Service)),
            )
        )
        return self


def mesh(*values: Workload | Service) -> MeshState:
    """Return a state with exactly these objects."""
    return Mesh().put(*values).state


def workload(
    name: str,
    *ips: str,
    protocol: TunnelProtocol = HBONE,
    account: str = "default",
    host_network: bool = False,
    capacity: int = 1,
) -> Workload:
    """A pod of the namespace `shop`."""
    return Workload(
        uid=f"Kubernetes//Pod/shop/{name}",
        pod_uid=f"{name}-0",
        name=name,
        namespace="shop",
        service_account=account,
        node="n1",
        addresses=ips,
        protocol=protocol,
        host_network=host_network,
        capacity=capacity,
    )


def endpoint(pod: Workload | str, index: int = 0, *, ready: bool = True, **ports: int) -> Endpoint:
    """An endpoint at a pod's address, or at an address without a pod."""
    if isinstance(pod, str):
        return Endpoint(address=pod, ports=ports, ready=ready)
    return Endpoint(address=pod.addresses[index], ports=ports, ready=ready, workload=pod.uid)


def service(
    name: str, *vips: str, ports: tuple[ServicePort, ...] = (), endpoints: tuple[Endpoint, ...] = ()
) -> Service:
    """A service of the namespace `shop`."""
    return Service(
        namespace="shop",
        name=name,
        vips=vips,
        ports=ports,
        endpoints=endpoints,
        hostname=f"{name}.shop.svc.cluster.local",
    )
