# SPDX-License-Identifier: Apache-2.0
"""The lab's kube-proxy: nftables rules in the node's namespace, from ClusterIP to a ready endpoint.

The rules serve pods outside the mesh: for enrolled pods, the proxy selects the endpoint. No rules
are loaded into pods' namespaces. `render` is pure; `apply` replaces the table in one transaction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ztunnel.lab.network import netns
from ztunnel.lab.network.addresses import SERVICE_CIDRS, AddressPair, is_ipv6
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
  }}
  chain no_endpoint {{
    # packets that still have a service address are for services without a ready endpoint
    fib daddr type local accept
    ip daddr {cidr4} reject
    ip6 daddr {cidr6} reject
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


class Frontend(NamedTuple):
    """A virtual address and port, with its backends."""

    address: str
    protocol: str
    port: int
    backends: tuple[tuple[str, int], ...]


def frontends(objects: Objects) -> Iterator[Frontend]:
    """The virtual addresses and ports that have a ready endpoint."""
    slices: dict[Key, list[Object]] = {}
    for endpoint_slice in of_kind(objects, "EndpointSlice"):
        name = endpoint_slice["metadata"].get("labels", {}).get(SERVICE_LABEL, "")
        key = Key("Service", key_of(endpoint_slice).namespace, name)
        slices.setdefault(key, []).append(endpoint_slice)
    for service in of_kind(objects, "Service"):
        own_slices = slices.get(key_of(service), [])
        for address in service["spec"].get("clusterIPs") or []:
            for port in service["spec"].get("ports") or [] if address != "None" else []:
                backends = tuple(sorted(_backends(own_slices, port, is_ipv6(address))))
                protocol = port.get("protocol", "TCP").lower()
                if backends:
                    yield Frontend(address, protocol, port["port"], backends)


def _backends(slices: list[Object], port: Object, ipv6: bool) -> Iterator[tuple[str, int]]:
    for endpoint_slice in slices:
        if (endpoint_slice["addressType"] == "IPv6") != ipv6:
            continue
        numbers = [
            entry["port"]
            for entry in endpoint_slice.get("ports") or []
            if (entry.get("name") or "") == port.get("name", "")
        ]
        for endpoint in endpoint_slice.get("endpoints") or []:
            if numbers and (endpoint.get("conditions") or {}).get("ready", True):
                yield from ((address, numbers[0]) for address in endpoint["addresses"])


def render(served: Sequence[Frontend], node: AddressPair) -> str:
    """The nftables script that replaces the node's table. `node`: the node's addresses."""
    chains = [_chain(number, frontend) for number, frontend in enumerate(served)]
    return _TABLE.format(
        maps="\n".join((_vips(served, ipv6=False), _vips(served, ipv6=True), *_hairpins(served))),
        chains="\n".join(chains),
        node4=node[0],
        node6=node[1],
        cidr4=SERVICE_CIDRS[0],
        cidr6=SERVICE_CIDRS[1],
    )


def apply(node_netns: str, script: str) -> None:
    """Load the script in the node's namespace, in one transaction."""
    netns.run(node_netns, ["nft", "-f", "-"], stdin=script)


def _chain(number: int, frontend: Frontend) -> str:
    family = "ip6" if is_ipv6(frontend.address) else "ip"
    choices = ", ".join(
        f"{index} : {address} . {port}" for index, (address, port) in enumerate(frontend.backends)
    )
    return (
        f"  chain svc{number} {{\n"
        f"    meta l4proto {frontend.protocol} dnat {family} to "
        f"numgen random mod {len(frontend.backends)} map {{ {choices} }}\n"
        "  }"
    )


def _vips(served: Sequence[Frontend], *, ipv6: bool) -> str:
    elements = [
        f"{entry.address} . {entry.protocol} . {entry.port} : goto svc{number}"
        for number, entry in enumerate(served)
        if is_ipv6(entry.address) == ipv6
    ]
    version = 6 if ipv6 else 4
    kind = f"type ipv{version}_addr . inet_proto . inet_service : verdict"
    return f"  map vips{version} {{\n    {kind}\n{_elements(elements)}  }}"


def _hairpins(served: Sequence[Frontend]) -> Iterator[str]:
    pods = sorted({address for entry in served for address, _ in entry.backends})
    for version in (4, 6):
        elements = [f"{ip} . {ip}" for ip in pods if is_ipv6(ip) == (version == 6)]
        kind = f"type ipv{version}_addr . ipv{version}_addr"
        yield f"  set hairpin{version} {{\n    {kind}\n{_elements(elements)}  }}"


def _elements(elements: list[str]) -> str:
    return f"    elements = {{ {', '.join(elements)} }}\n" if elements else ""
