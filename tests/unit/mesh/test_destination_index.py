# SPDX-License-Identifier: Apache-2.0
"""The destinations of ServiceEntry hosts: against a search of all of them, and their cost."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.mesh import destination_index
from ztunnel.mesh.destination_index import DestinationIndex
from ztunnel.mesh.model import Endpoint, Service, ServicePort, SocketAddress

NETWORKS = ("10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32", "fd00::/8", "fd00:1::/32")
ADDRESSES = ("10.1.2.3", "10.1.2.4", "10.1.9.9", "10.9.9.9", "192.0.2.1", "fd00:1::1", "fd22::1")
NAMESPACES = ("shop", "front", "other")

hosts = st.builds(
    lambda name, networks, endpoints, ports, export_to: Service(
        namespace="shop",
        name=name,
        hostname=name,
        is_service_entry=True,
        ports=tuple(ServicePort(port, f"p{port}") for port in ports),
        networks=tuple(networks),
        endpoints=tuple(
            Endpoint(address=each, ports={f"p{port}": port for port in ports}) for each in endpoints
        ),
        export_to=tuple(export_to),
    ),
    st.sampled_from(("a.example.com", "b.example.com", "c.example.com")),
    st.lists(st.sampled_from(NETWORKS), max_size=3, unique=True),
    st.lists(st.sampled_from(ADDRESSES), max_size=2, unique=True),
    st.lists(st.sampled_from((80, 443)), min_size=1, max_size=2, unique=True),
    st.lists(st.sampled_from(("shop", "front")), max_size=2, unique=True),
)


def longest_prefix(service: Service, address: SocketAddress, namespace: str) -> int:
    """Return the length of the longest prefix with which the host covers the address, or -1."""
    if not service.is_visible_to(namespace):
        return -1
    ip = ip_address(address.ip)
    found = [-1]
    for each in service.endpoints:
        if each.address == address.ip and address.port in each.ports.values():
            found.append(ip.max_prefixlen)
    if any(port.port == address.port for port in service.ports):
        found += [ip_network(n).prefixlen for n in service.networks if ip in ip_network(n)]
    return max(found)


@given(st.lists(st.one_of(hosts, st.sampled_from(("a.example.com", "b.example.com"))), max_size=8))
def test_longest_visible_prefix_wins(changes: list[Service | str]) -> None:
    index = DestinationIndex()
    current: dict[str, Service] = {}
    for change in changes:
        if isinstance(change, Service):
            index.put(change)
            current[change.key] = change
        else:
            index.remove(f"shop/{change}")
            current.pop(f"shop/{change}", None)
    for namespace in NAMESPACES:
        for address in [SocketAddress(ip, port) for ip in ADDRESSES for port in (80, 443, 22)]:
            lengths = [longest_prefix(each, address, namespace) for each in current.values()]
            best = max(lengths, default=-1)
            found = index.find(address, namespace)
            assert (found is None) == (best < 0)
            if found is not None:
                assert found is current[found.key]
                assert longest_prefix(found, address, namespace) == best
    for name in list(current):
        index.remove(name)
    assert not index._hosts
    assert index._lengths == {4: (), 6: ()}


def test_a_lookup_parses_no_network_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    index = DestinationIndex()
    for number in range(40):  # as large as an object of 10 KB
        networks = tuple(f"10.{number}.{at}.0/24" for at in range(256))
        index.put(
            Service(
                namespace="evil",
                name=f"h{number}.example.com",
                hostname=f"h{number}.example.com",
                is_service_entry=True,
                ports=(ServicePort(443, "tls"),),
                networks=networks,
            )
        )

    def fail(_: object) -> None:
        raise AssertionError("a lookup parsed a network")

    lookups = 0

    class CountingDict(dict[Any, Any]):
        def get(self, key: Any, default: Any = None) -> Any:
            nonlocal lookups
            lookups += 1
            return super().get(key, default)

    monkeypatch.setattr(destination_index, "ip_network", fail)
    monkeypatch.setattr(index, "_hosts", CountingDict(index._hosts))
    assert index.find(SocketAddress("192.0.2.1", 443), "shop") is None
    found = index.find(SocketAddress("10.39.255.1", 443), "shop")
    assert found is not None
    assert found.name == "h39.example.com"
    assert lookups <= 4  # one prefix length, two namespaces, two decisions
