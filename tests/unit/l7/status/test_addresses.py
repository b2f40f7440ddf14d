# SPDX-License-Identifier: Apache-2.0
"""The addresses of an ingress gateway."""

from __future__ import annotations

from typing import Any

import pytest

from ztunnel.l7.status.addresses import address_error, gateway_addresses
from ztunnel.l7.status.facts import AddressType, ip_addresses

NODES = ["192.0.2.11", "192.0.2.9", "192.0.2.11", "2001:db8::1"]
SORTED = ["192.0.2.9", "192.0.2.11", "2001:db8::1"]


def service(kind: str, *ingress: dict[str, Any]) -> dict[str, Any]:
    spec = {"type": kind, "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "fd00::1"]}
    return {"spec": spec, "status": {"loadBalancer": {"ingress": list(ingress)}}}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (service("ClusterIP"), ["10.0.0.1", "fd00::1"]),
        (service("NodePort"), SORTED),
        (service("LoadBalancer"), []),
        (service("LoadBalancer", {"ip": "203.0.113.1"}), ["203.0.113.1"]),
        (None, []),
        ({"spec": {"clusterIP": "None"}}, []),
    ],
)
def test_addresses_follow_the_type_of_the_service(found: Any, expected: list[str]) -> None:
    assert gateway_addresses(found, NODES) == ip_addresses(expected)


def test_hostname_of_a_load_balancer_is_an_address() -> None:
    found = gateway_addresses(service("LoadBalancer", {"hostname": "lb.example.com"}), ())
    assert found == ((AddressType.HOSTNAME, "lb.example.com"),)


def test_nodes_with_host_ports_come_first() -> None:
    found = gateway_addresses(
        service("LoadBalancer", {"ip": "203.0.113.1"}), NODES, host_ports=True
    )
    assert found == ip_addresses([*SORTED, "203.0.113.1"])


def test_requested_address_that_is_not_assigned_is_an_error() -> None:
    addresses = ip_addresses(["203.0.113.1", "2001:db8::2"])
    assert address_error([], addresses) == ""
    assert address_error(["203.0.113.1", "2001:DB8::0002"], addresses) == ""
    error = address_error(["203.0.113.7"], addresses)
    assert error == "the gateway has not got 203.0.113.7; it has: 203.0.113.1, 2001:db8::2"
    assert address_error(["203.0.113.7"], ()).endswith("it has: none")
