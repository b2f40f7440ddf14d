# SPDX-License-Identifier: Apache-2.0
"""Gateways, ListenerSets and routes of any content break nothing but themselves."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.waypoint.world import World
from ztunnel.l7.config import GatewayConfig
from ztunnel.l7.names import TypeUrl

GATEWAY = "default/edge"
WORKING = """
kind: Gateway
metadata: {name: edge, namespace: default}
spec:
  gatewayClassName: ztunnel
  allowedListeners: {namespaces: {from: All}}
  listeners: [{name: http, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}]
---
kind: HTTPRoute
metadata: {name: web, namespace: default}
spec:
  parentRefs: [{name: edge}]
  hostnames: [web.example.com]
  rules: [{backendRefs: [{name: web, port: 80}]}]
"""
NAMES = [
    "name",
    "port",
    "protocol",
    "hostname",
    "tls",
    "mode",
    "certificateRefs",
    "options",
    "allowedRoutes",
    "namespaces",
    "from",
    "selector",
    "matchLabels",
    "matchExpressions",
    "kinds",
    "group",
    "kind",
    "listeners",
    "addresses",
    "value",
    "frontend",
    "backend",
    "default",
    "perPort",
    "validation",
    "caCertificateRefs",
    "clientCertificateRef",
    "parentRef",
    "parentRefs",
    "sectionName",
    "hostnames",
    "rules",
    "matches",
    "path",
    "backendRefs",
    "filters",
    "infrastructure",
    "annotations",
    "labels",
]
TEXTS = ["", "edge", "default", "HTTP", "HTTPS", "TLS", "*.x", "Terminate", "Selector", "Gateway"]
values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-1, 70000),
        st.floats(allow_nan=False),
        st.sampled_from(TEXTS),
        st.text(max_size=8),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(NAMES), inner, max_size=5)
    ),
    max_leaves=20,
)
specs = st.dictionaries(st.sampled_from(NAMES), values, max_size=6)


def working() -> tuple[World, GatewayConfig]:
    world = World()
    world.service("web", backends=[8080], waypoint="")
    world.apply(WORKING)
    return world, world.compile(GATEWAY)


@settings(max_examples=200)
@given(specs)
def test_gateway_of_any_content_compiles(spec: dict[str, Any]) -> None:
    metadata = {"name": "edge", "namespace": "default"}
    found = {"gatewayClassName": "ztunnel", **spec}
    World().add({"kind": "Gateway", "metadata": metadata, "spec": found}).compile(GATEWAY)


@settings(max_examples=200)
@given(specs, st.sampled_from(["ListenerSet", "HTTPRoute", "GRPCRoute", "TLSRoute", "Gateway"]))
def test_other_objects_do_not_change_a_working_host(spec: dict[str, Any], kind: str) -> None:
    world, before = working()
    parent = {"parentRef": {"name": "edge", "namespace": "default"}}
    if kind.endswith("Route"):
        parent = {"parentRefs": [parent["parentRef"]]}  # type: ignore[dict-item]
    metadata = {"name": "hostile", "namespace": "tenant"}
    world.add({"kind": kind, "metadata": metadata, "spec": {**parent, **spec}})
    after = world.compile(GATEWAY)
    (host, *_) = (
        each
        for each in before.resources[TypeUrl.ROUTE]["http|80"]["virtual_hosts"]
        if each["domains"] == ["web.example.com"]
    )
    hosts = after.resources[TypeUrl.ROUTE]["http|80"]["virtual_hosts"]
    domains = [domain for each in hosts for domain in each["domains"]]
    assert len(domains) == len(set(domains))  # Envoy rejects duplicates
    if "hostnames" not in spec:
        assert host in hosts


@pytest.mark.parametrize(
    "annotation",
    [
        *("{", "[1]", "gatewayTopology: 7", "a: &a [*a]", "x" * 20000, "[" * 10000, "1: 2"),
        *("!!int ''", "!!float ''", "!!bool x", "!!timestamp x", "? {a: b}\n: c", "2001-99-99"),
    ],
)
def test_invalid_proxy_config_trusts_nothing_and_is_reported(annotation: str) -> None:
    world, before = working()
    metadata = {
        "name": "edge",
        "namespace": "default",
        "annotations": {"proxy.istio.io/config": annotation},
    }
    gateway = world.store.get("Gateway", "default", "edge")
    assert gateway is not None
    world.add({"kind": "Gateway", "metadata": metadata, "spec": gateway.spec})
    after = world.compile(GATEWAY)
    assert after.resources == before.resources
    assert any("annotations" in each.field for each in after.problems)
