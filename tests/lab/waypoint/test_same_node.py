# SPDX-License-Identifier: Apache-2.0
"""A client on the waypoint's node: the proxy hands its connections over without a tunnel."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.lab.helpers.harness import proxy_log
from tests.lab.waypoint import shop
from tests.lab.waypoint.test_lifecycle import (
    assert_none_failed,
    attached,
    both_loads,
    envoy_pids,
    scale,
    to,
    update,
)
from tests.lab.waypoint.traffic import Shop
from tests.support.waiting import wait_until
from ztunnel.lab import Lab, admin_get
from ztunnel.telemetry.access_log_parser import parse

__all__ = ["attached"]  # the fixture
CALLER = "buyer-near"


def tunnels_of_buyers(made: Shop) -> list[dict[str, Any]]:
    """The tunnels of node1 from buyers to the waypoint."""
    _, answer = admin_get(made.lab.names, "node1", "/v1/tunnels")
    rows = (answer or {})["tunnels"]
    return [row for row in rows if row["source"].endswith("/buyer") and "waypoint" in row["peer"]]


def test_connection_needs_no_tunnel_and_both_pods_log_it(attached: Shop) -> None:
    log_bytes = len(proxy_log(attached.lab, "node1"))
    assert attached.get(CALLER).status == 200
    assert tunnels_of_buyers(attached) == []

    def lines() -> list[dict[str, str]]:
        found = [parse(each) for each in proxy_log(attached.lab, "node1")[log_bytes:].splitlines()]
        return [each for each in found if each.get("src.workload") == CALLER]

    wait_until(lambda: len(lines()) == 2, lambda: str(lines()))
    outbound, inbound = sorted(lines(), key=lambda each: each["direction"], reverse=True)
    assert (outbound["direction"], inbound["direction"]) == ("outbound", "inbound")
    for each in (outbound, inbound):
        assert each["src.identity"] == "spiffe://cluster.local/ns/shop/sa/buyer"
        assert each["dst.identity"] == "spiffe://cluster.local/ns/shop/sa/waypoint"
    assert outbound["bytes_sent"] == inbound["bytes_recv"]


def test_policy_of_the_waypoint_pod_denies_new_and_live_connections(attached: Shop) -> None:
    principal = "cluster.local/ns/shop/sa/buyer"
    policy = shop.obj(
        "security.istio.io/v1",
        "AuthorizationPolicy",
        "no-buyers",
        spec={
            "action": "DENY",
            "selector": {"matchLabels": {"gateway.networking.k8s.io/gateway-name": shop.WAYPOINT}},
            "rules": [{"from": [{"source": {"principals": [principal]}}]}],
        },
    )
    with attached.load(CALLER, rate=50) as kept:
        assert attached.lab.apply(policy) == []
        wait_until(lambda: attached.get(CALLER).status == 0, "new connections are denied")
        assert attached.get("thief-near").status == 200
        attached.lab.delete("AuthorizationPolicy", "no-buyers", shop.SHOP)
        wait_until(lambda: attached.get(CALLER).status == 200, "connections are allowed again")
    assert kept.failed  # the kept-alive connections were reset, too
    denied = [line for line in proxy_log(attached.lab, "node1").splitlines() if "DENY" in line]
    assert any("shop/no-buyers" in line for line in denied)


@pytest.mark.parametrize("kind", ["gateway", "agent"])
def test_restart_of_the_control_plane_fails_no_request(attached: Shop, kind: str) -> None:
    with both_loads(attached, CALLER) as results:
        attached.lab.restart("node1", kind, kill=True)
    assert_none_failed(f"kill -9 of the {kind}", results)
    to(attached, "v1")
    wait_until(lambda: attached.get(CALLER).version == "v1", "changes apply again")
    assert tunnels_of_buyers(attached) == []


def test_rolling_update_fails_no_request(attached: Shop) -> None:
    before = set(envoy_pids(attached))
    with both_loads(attached, CALLER) as results:
        update(attached)
    assert not before & set(envoy_pids(attached))
    assert_none_failed("rolling update, client on the waypoint's node", results)
    assert tunnels_of_buyers(attached) == []


def test_waypoint_without_ready_pods_refuses_with_the_reason(attached: Shop) -> None:
    scale(attached, 0)
    try:
        wait_until(lambda: attached.get(CALLER).status == 0, "connections are refused")
        wait_until(lambda: "no ready" in proxy_log(attached.lab, "node1"))
    finally:
        scale(attached, 1)
    wait_until(lambda: attached.get(CALLER).version == "v2", "the waypoint is back")


def test_encrypted_mode_uses_a_tunnel() -> None:
    lab = Lab(f"we{os.getpid() % 100000}", agent_options=["--same-node", "encrypt"])
    try:
        assert lab.up([]) == []
        assert lab.apply(*shop.shop()) == []
        made = Shop(lab)
        wait_until(lambda: made.get(CALLER).status == 200, "the waypoint serves")
        (tunnel,) = tunnels_of_buyers(made)
        assert tunnel["served"] >= 1
    finally:
        lab.down()
