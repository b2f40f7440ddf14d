# SPDX-License-Identifier: Apache-2.0
"""The lab's kube-proxy: nftables rules in the node's namespace, from a service to an endpoint.

    ClusterIP:port                                  any ready endpoint
    node address:nodePort, load balancer:port       the same; with externalTrafficPolicy Local, one
                                                    of this node, which sees the client
    node address:hostPort                           the pod of this node that binds it

The rules serve clients outside the mesh: for enrolled pods, the proxy selects the endpoint. No
rules are loaded into pods' namespaces. `render` is pure; `apply` replaces the table in one
transaction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ztunnel.lab.cluster.external_addresses import ingress_addresses, is_local
from ztunnel.lab.cluster.pod_fields import is_terminating, pod_ips
from ztunnel.lab.network import netns
from ztunnel.lab.network.addresses import (
    BALANCER_CIDRS,
    SERVICE_CIDRS,
    Node,
    is_ipv6,
    node_addresses,
)
from ztunnel.lab.objects import SERVICE_LABEL, Key, Object, Objects, key_of, of_kind

_TABLE = """\
table inet ztlab_services
delete table inet ztlab_services
table inet ztlab_services {{
{maps}
{chains}
  chain resolve {{
    ip daddr . meta l4proto . th dport vmap @vips4
    ip6 daddr . meta l4proto . th dport vmap @vips6
    meta nfproto ipv4 fib daddr type local meta l4proto . th dport vmap @ports4
    meta nfproto ipv6 fib daddr type local meta l4proto . th dport vmap @ports6
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat
    jump resolve
  }}
  chain output_nat {{
    type nat hook output priority -100
    jump resolve
  }}
  chain postrouting {{
    # replies to a pod that reaches itself through its service must return through the node
    type nat hook postrouting priority srcnat
    ct status dnat ip saddr . ip daddr @hairpin4 snat ip to {node4}
    ct status dnat ip6 saddr . ip6 daddr @hairpin6 snat ip6 to {node6}
    # replies to a client outside, from a pod of any node, must return through this node
    meta mark {masquerade} meta nfproto ipv4 snat ip to {node4}
    meta mark {masquerade} meta nfproto ipv6 snat ip6 to {node6}
  }}
  chain no_endpoint {{
    # packets that still have a service address are for services without a ready endpoint
    fib daddr type local accept
    ip daddr {{ {cidr4}, {balancers4} }} reject
    ip6 daddr {{ {cidr6}, {balancers6} }} reject
  }}
  chain forwarding {{
    type filter hook forward priority filter
    jump no_endpoint
  }}
  chain output_filter {{
    type filter hook output priority filter
    jump no_endpoint
  }}
  chain spoofed {{
    # strict reverse-path filter for both families: a pod can send only from its own addresses
    type filter hook prerouting priority raw
    iifname "pod*" fib saddr . iif oif missing drop
  }}
}}
"""
_MASQUERADE_MARK = "0x4000"  # kube-proxy's


class Backend(NamedTuple):
    """An endpoint of a service. Not `ready`: it terminates, but serves."""

    address: str
    port: int
    node: str
    ready: bool = True


class Frontend(NamedTuple):
    """An address and port, with its backends, ready ones or not. That of a node port is empty.

    `external`: for clients outside the cluster. `local`: nodes use only their own backends, and the
    client's address is preserved.
    """

    address: str
    protocol: str
    port: int
    backends: tuple[Backend, ...]
    external: bool = False
    local: bool = False

    @property
    def ipv6(self) -> bool:
        """Whether the backends have IPv6 addresses."""
        return is_ipv6(self.backends[0].address)

    @property
    def used(self) -> tuple[Backend, ...]:
        """The ready backends. Without any, those that terminate, as in Kubernetes (KEP-1669)."""
        return tuple(each for each in self.backends if each.ready) or self.backends


def frontends(objects: Objects) -> Iterator[Frontend]:
    """The addresses and ports that have an endpoint."""
    slices: dict[Key, list[Object]] = {}
    for endpoint_slice in of_kind(objects, "EndpointSlice"):
        name = endpoint_slice["metadata"].get("labels", {}).get(SERVICE_LABEL, "")
        key = Key("Service", key_of(endpoint_slice).namespace, name)
        slices.setdefault(key, []).append(endpoint_slice)
    for service in of_kind(objects, "Service"):
        yield from _of_service(service, slices.get(key_of(service), []))
    yield from _host_ports(objects)


def _of_service(service: Object, slices: list[Object]) -> Iterator[Frontend]:
    external, local = ingress_addresses(service), is_local(service)
    for port in service["spec"].get("ports") or []:
        protocol = port.get("protocol", "TCP").lower()
        backends = {
            ipv6: tuple(sorted(_backends(slices, port, ipv6=ipv6))) for ipv6 in (False, True)
        }
        for ip in service["spec"].get("clusterIPs") or []:
            if ip != "None" and backends[is_ipv6(ip)]:
                yield Frontend(ip, protocol, port["port"], backends[is_ipv6(ip)])
        for ip in external:
            if backends[is_ipv6(ip)]:
                found = backends[is_ipv6(ip)]
                yield Frontend(ip, protocol, port["port"], found, external=True, local=local)
        if "nodePort" in port:
            for found in filter(None, backends.values()):
                yield Frontend("", protocol, port["nodePort"], found, external=True, local=local)


def _host_ports(objects: Objects) -> Iterator[Frontend]:
    """The ports of nodes that pods bind (`hostPort`), which network plugins forward."""
    found: dict[tuple[str, int, bool], list[Backend]] = {}
    for pod in of_kind(objects, "Pod"):
        if pod.get("status", {}).get("phase") != "Running":
            continue
        for container in pod["spec"]["containers"]:
            for port in container.get("ports") or []:
                protocol, number = port.get("protocol", "TCP").lower(), port.get("hostPort")
                for ip in pod_ips(pod) if number else []:
                    backend = Backend(
                        ip, port["containerPort"], pod["spec"]["nodeName"], not is_terminating(pod)
                    )
                    found.setdefault((protocol, number, is_ipv6(ip)), []).append(backend)
    for (protocol, number, _), backends in sorted(found.items()):
        yield Frontend("", protocol, number, tuple(sorted(backends)), external=True, local=True)


def _backends(slices: list[Object], port: Object, *, ipv6: bool) -> Iterator[Backend]:
    """The endpoints that are ready, or terminate but serve."""
    for endpoint_slice in slices:
        if (endpoint_slice["addressType"] == "IPv6") != ipv6:
            continue
        numbers = [
            entry["port"]
            for entry in endpoint_slice.get("ports") or []
            if (entry.get("name") or "") == port.get("name", "")
        ]
        for endpoint in endpoint_slice.get("endpoints") or [] if numbers else []:
            conditions, node = endpoint.get("conditions") or {}, endpoint.get("nodeName") or ""
            is_ready = bool(conditions.get("ready", True))
            if is_ready or (conditions.get("serving") and conditions.get("terminating")):
                for ip in endpoint["addresses"]:
                    yield Backend(ip, numbers[0], node, is_ready)


def render(served: Sequence[Frontend], node: Node) -> str:
    """The nftables script that replaces the table of a node."""
    ours = [frontend for each in served if (frontend := _on_node(each, node)).backends]
    chains = [_chain(number, frontend) for number, frontend in enumerate(ours)]
    node4, node6 = node_addresses(node.index)
    maps = (_vips(ours, ipv6=False), _vips(ours, ipv6=True), _ports(ours, ipv6=False))
    return _TABLE.format(
        maps="\n".join((*maps, _ports(ours, ipv6=True), *_hairpins(ours))),
        chains="\n".join(chains),
        node4=node4,
        node6=node6,
        masquerade=_MASQUERADE_MARK,
        cidr4=SERVICE_CIDRS[0],
        cidr6=SERVICE_CIDRS[1],
        balancers4=BALANCER_CIDRS[0],
        balancers6=BALANCER_CIDRS[1],
    )


def apply(node_netns: str, script: str) -> None:
    """Load the script in the node's namespace, in one transaction."""
    netns.run(node_netns, ["nft", "-f", "-"], stdin=script)


def _on_node(frontend: Frontend, node: Node) -> Frontend:
    """The frontend with the backends that the node uses."""
    if frontend.local:
        own = tuple(backend for backend in frontend.backends if backend.node == node.name)
        frontend = frontend._replace(backends=own)
    return frontend._replace(backends=frontend.used)


def _chain(number: int, frontend: Frontend) -> str:
    family = "ip6" if frontend.ipv6 else "ip"
    choices = ", ".join(
        f"{index} : {backend.address} . {backend.port}"
        for index, backend in enumerate(frontend.backends)
    )
    mark = frontend.external and not frontend.local
    return (
        f"  chain svc{number} {{\n"
        + (f"    meta mark set {_MASQUERADE_MARK}\n" if mark else "")
        + f"    meta l4proto {frontend.protocol} dnat {family} to "
        f"numgen random mod {len(frontend.backends)} map {{ {choices} }}\n"
        "  }"
    )


def _vips(served: Sequence[Frontend], *, ipv6: bool) -> str:
    elements = [
        f"{entry.address} . {entry.protocol} . {entry.port} : goto svc{number}"
        for number, entry in enumerate(served)
        if entry.address and entry.ipv6 == ipv6
    ]
    version = 6 if ipv6 else 4
    kind = f"type ipv{version}_addr . inet_proto . inet_service : verdict"
    return f"  map vips{version} {{\n    {kind}\n{_elements(elements)}  }}"


def _ports(served: Sequence[Frontend], *, ipv6: bool) -> str:
    elements = [
        f"{entry.protocol} . {entry.port} : goto svc{number}"
        for number, entry in enumerate(served)
        if not entry.address and entry.ipv6 == ipv6
    ]
    kind = "type inet_proto . inet_service : verdict"
    return f"  map ports{6 if ipv6 else 4} {{\n    {kind}\n{_elements(elements)}  }}"


def _hairpins(served: Sequence[Frontend]) -> Iterator[str]:
    pods = sorted({backend.address for entry in served for backend in entry.backends})
    for version in (4, 6):
        elements = [f"{ip} . {ip}" for ip in pods if is_ipv6(ip) == (version == 6)]
        kind = f"type ipv{version}_addr . ipv{version}_addr"
        yield f"  set hairpin{version} {{\n    {kind}\n{_elements(elements)}  }}"


def _elements(elements: list[str]) -> str:
    return f"    elements = {{ {', '.join(elements)} }}\n" if elements else ""
