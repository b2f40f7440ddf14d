# SPDX-License-Identifier: Apache-2.0
"""What owners of different listeners of one gateway cannot take from each other."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.waypoint.world import World
from ztunnel.l7.config import GatewayConfig
from ztunnel.l7.deployment.requirements import requirements
from ztunnel.l7.ingress.listeners import ListenerAccepted, effective_listeners
from ztunnel.l7.names import MAX_GATEWAY_PORTS, TypeUrl, certificate_id

GATEWAY = "default/edge"
WEB = f"{certificate_id('Secret', 'default', 'web')}.crt"
MUTUAL = {"gateway.istio.io/tls-terminate-mode": "MUTUAL"}


def listener(name: str, port: int, protocol: str, host: str = "", **tls: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "port": port, "protocol": protocol}
    if host:
        found["hostname"] = host
    if protocol in ("HTTPS", "TLS"):
        found["tls"] = {"certificateRefs": [{"name": "web"}], **tls}
    return found


def gateway(*listeners: dict[str, Any], **annotations: str) -> World:
    world = World()
    world.service("web", waypoint="")
    names = {"http3": "ztunnel.dev/http3", "topology": "proxy.istio.io/config"}
    metadata = {
        "name": "edge",
        "namespace": "default",
        "annotations": {
            "ztunnel.dev/gateway-certificates": json.dumps({WEB: "0"}),
            **{names[name]: value for name, value in annotations.items()},
        },
    }
    spec = {
        "gatewayClassName": "ztunnel",
        "allowedListeners": {"namespaces": {"from": "All"}},
        "listeners": list(listeners),
    }
    return world.add({"kind": "Gateway", "metadata": metadata, "spec": spec})


def add_set(world: World, name: str, *listeners: dict[str, Any]) -> None:
    spec = {"parentRef": {"name": "edge", "namespace": "default"}, "listeners": list(listeners)}
    metadata = {"name": name, "namespace": "tenant", "creationTimestamp": "2026-01-01T00:00:00Z"}
    world.add({"kind": "ListenerSet", "metadata": metadata, "spec": spec})


def chains(config: GatewayConfig, listener: str) -> dict[str, dict[str, Any]]:
    found = config.resources[TypeUrl.LISTENER].get(listener, {})
    return {each["name"]: each for each in found.get("filter_chains", ())}


@pytest.mark.parametrize("protocol", ["HTTPS", "TLS"])
def test_listener_that_is_closed_keeps_its_hostname(protocol: str) -> None:
    closed = listener("closed", 443, protocol, "secure.example.com", options=MUTUAL)
    config = gateway(listener("all", 443, "HTTPS", "*.example.com"), closed).compile(GATEWAY)
    found = chains(config, "ingress|443")
    assert found.keys() == {"443|all", "443|closed|closed"}
    refusing = found["443|closed|closed"]
    assert refusing["filter_chain_match"]["server_names"] == ["secure.example.com"]
    assert "transport_socket" not in refusing


def test_listener_sets_leave_the_ports_of_the_gateway() -> None:
    world = gateway(listener("https", 8443, "HTTPS"))
    for first in range(1, 257, 64):
        ports = range(first, first + 64)
        add_set(world, f"s{first}", *(listener(f"p{port}", port, "TCP") for port in ports))
    obj = world.store.get("Gateway", "default", "edge")
    assert obj is not None
    needed = requirements(world.store, obj)
    assert len(needed.ports) == MAX_GATEWAY_PORTS
    assert 8443 in [port.number for port in needed.ports]
    found = [each.accepted for each in effective_listeners(world.store, obj)]
    assert found.count(ListenerAccepted.PORT_UNAVAILABLE) == 257 - MAX_GATEWAY_PORTS
    assert any("other ports" in each.message for each in world.compile(GATEWAY).problems)


def test_own_authorities_of_a_gateway_precede_certificates_of_listener_sets() -> None:
    world = gateway(listener("https", 443, "HTTPS"))
    obj = world.store.get("Gateway", "default", "edge")
    assert obj is not None
    refs = [{"group": "", "kind": "ConfigMap", "name": "clients"}]
    tls = {"frontend": {"default": {"validation": {"caCertificateRefs": refs}}}}
    metadata = {"name": "edge", "namespace": "default"}
    world.add({"kind": "Gateway", "metadata": metadata, "spec": {**obj.spec, "tls": tls}})
    add_set(world, "tenant", listener("https", 443, "HTTPS", "tenant.example"))
    obj = world.store.get("Gateway", "default", "edge")
    assert obj is not None
    sources = [source.kind for source in requirements(world.store, obj).sources]
    assert sources == ["ConfigMap", "Secret", "Secret"]


def test_udp_listener_and_http3_do_not_share_a_port() -> None:
    world = gateway(listener("https", 443, "HTTPS"), http3="true")
    assert "ingress|443|quic" in world.compile(GATEWAY).resources[TypeUrl.LISTENER]
    add_set(world, "tenant", listener("dns", 443, "UDP"))
    config = world.compile(GATEWAY)
    assert "ingress|443|quic" not in config.resources[TypeUrl.LISTENER]
    assert "response_headers_to_add" not in config.resources[TypeUrl.ROUTE]["443|https"]
    assert any("HTTP/3 is off" in each.message for each in config.problems)


@pytest.mark.parametrize(
    ("http3", "topology"),
    [("yes", ""), ("true", "gatewayTopology: {proxyProtocol: {}}")],
)
def test_http3_that_is_off_is_reported(http3: str, topology: str) -> None:
    annotations = {"http3": http3} | ({"topology": topology} if topology else {})
    config = gateway(listener("https", 443, "HTTPS"), **annotations).compile(GATEWAY)
    assert "ingress|443|quic" not in config.resources[TypeUrl.LISTENER]
    assert any("HTTP/3 is off" in each.message for each in config.problems)
