# SPDX-License-Identifier: Apache-2.0
"""The client addresses that policies admit to a gateway's port."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.l7.api.authorization_policy import parse_authorization_policy
from ztunnel.l7.objects import l7_object
from ztunnel.l7.security.custom import Resolved
from ztunnel.l7.security.evaluate import evaluate
from ztunnel.l7.security.networks import ALL, MAX_BOUNDARIES, Admission, admission
from ztunnel.l7.security.request import Attributes, Connection
from ztunnel.mesh.model import SocketAddress

PORT = 6379


def policies(*specs: dict[str, Any]) -> Resolved:
    parsed = []
    for number, spec in enumerate(specs):
        obj = l7_object(
            {
                "apiVersion": "security.istio.io/v1",
                "kind": "AuthorizationPolicy",
                "metadata": {"name": f"p{number}", "namespace": "default"},
                "spec": spec,
            }
        )
        parsed.append(parse_authorization_policy(obj, "istio-system"))
    return Resolved(tuple(parsed), ())


def blocks(*networks: str, action: str = "ALLOW", **source: Any) -> dict[str, Any]:
    return {
        "action": action,
        "rules": [{"from": [{"source": {"remoteIpBlocks": list(networks), **source}}]}],
    }


def test_without_policies_all_clients_are_admitted() -> None:
    assert admission(policies(), PORT) == ALL


def test_allow_policy_admits_its_networks_only() -> None:
    found = admission(policies(blocks("10.0.0.0/8", "2001:db8::/32")), PORT)
    assert found == Admission(("10.0.0.0/8", "2001:db8::/32"), True)


def test_deny_policy_precedes_allow_policy() -> None:
    found = admission(policies(blocks("10.0.0.0/8"), blocks("10.0.0.0/9", action="DENY")), PORT)
    assert found == Admission(("10.128.0.0/9",), True)


def test_excluded_network_is_not_admitted() -> None:
    found = admission(policies(blocks("10.0.0.0/8", notRemoteIpBlocks=["10.64.0.0/10"])), PORT)
    assert found == Admission(("10.0.0.0/10", "10.128.0.0/9"), True)


def test_policy_without_rules_admits_no_client() -> None:
    assert admission(policies({"action": "ALLOW"}), PORT) == Admission((), True)


def test_clients_of_a_gateway_have_no_identity() -> None:
    spec = {"rules": [{"from": [{"source": {"namespaces": ["shop"]}}]}]}
    assert admission(policies({"action": "ALLOW", **spec}), PORT) == Admission((), True)
    assert admission(policies({"action": "DENY", **spec}), PORT) == ALL


@pytest.mark.parametrize(("port", "expected"), [(PORT, Admission((), True)), (80, ALL)])
def test_rule_for_a_port_concerns_this_port(port: int, expected: Admission) -> None:
    deny = {"action": "DENY", "rules": [{"to": [{"operation": {"ports": [str(port)]}}]}]}
    assert admission(policies(deny), PORT) == expected


def test_server_name_is_decided_by_filters() -> None:
    deny = {
        "action": "DENY",
        "rules": [{"when": [{"key": "connection.sni", "values": ["a.example.com"]}]}],
    }
    assert admission(policies(deny), PORT, has_sni=True) == Admission(None, False)
    assert admission(policies(deny), PORT) == ALL  # TCP has no names


def test_destination_address_is_decided_by_filters() -> None:
    deny = {
        "action": "DENY",
        "rules": [{"when": [{"key": "destination.ip", "values": ["10.0.0.1"]}]}],
    }
    assert admission(policies(deny), PORT) == Admission(None, False)


def test_source_address_behind_a_proxy_is_decided_by_filters() -> None:
    deny = {"action": "DENY", "rules": [{"from": [{"source": {"ipBlocks": ["10.0.0.0/8"]}}]}]}
    assert admission(policies(deny), PORT, is_proxied=True) == Admission(None, False)
    assert admission(policies(deny), PORT).is_exact
    assert admission(policies(blocks("10.0.0.0/8")), PORT, is_proxied=True).is_exact


def test_many_networks_are_decided_by_filters() -> None:
    networks = [f"10.{each >> 8}.{each & 255}.0/24" for each in range(0, 2 * MAX_BOUNDARIES, 2)]
    assert admission(policies(blocks(*networks)), PORT) == Admission(None, False)


NETWORKS = st.one_of(
    st.builds(
        lambda address, length: str(ip_network((address, length), strict=False)),
        st.integers(0, 2**32 - 1),
        st.integers(0, 32),
    ),
    st.builds(
        lambda address, length: str(ip_network((address, length), strict=False)),
        st.integers(2**32, 2**128 - 1),
        st.integers(0, 128),
    ),
)
SPECS = st.builds(
    lambda action, included, excluded: blocks(*included, action=action, notRemoteIpBlocks=excluded),
    st.sampled_from(["ALLOW", "DENY"]),
    st.lists(NETWORKS, max_size=3),
    st.lists(NETWORKS, max_size=2),
)


@given(st.lists(SPECS, min_size=1, max_size=3), st.data())
def test_admitted_networks_are_the_decisions_of_the_policies(
    specs: list[dict[str, Any]], data: st.DataObject
) -> None:
    resolved = policies(*specs)
    found = admission(resolved, PORT)
    assert found.is_exact
    text = str([each for spec in specs for each in spec["rules"][0]["from"][0]["source"].values()])
    edges = [ip_network(each) for each in text.translate(str.maketrans("[]',", "    ")).split()]
    near = [each for edge in edges for each in (edge.network_address, edge.broadcast_address)]
    address = data.draw(st.one_of(st.ip_addresses(), *([st.sampled_from(near)] if near else [])))
    connection = Connection(source_ip=str(address), destination=SocketAddress("0.0.0.0", PORT))
    wanted = evaluate(resolved, (), Attributes(connection, None), tcp=True).allowed
    admitted = found.networks is None or any(
        ip_address(str(address)) in ip_network(each) for each in found.networks
    )
    assert admitted == wanted
