# SPDX-License-Identifier: Apache-2.0
"""Traffic through a waypoint whose Envoy is a stand-in: what the nodes do, in real namespaces."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.lab.helpers.harness import APPS, addresses, client, named, proxy_log, python_pod
from tests.support.waiting import wait_until
from ztunnel.lab import Lab, demo_manifests

USE = "istio.io/use-waypoint"
REQUIRE = "ztunnel.dev/require-waypoint"
GATEWAY_NAME = "gateway.networking.k8s.io/gateway-name"
NAMESPACE = "shop"
CLIENT = "spiffe://cluster.local/ns/shop/sa/client"


def gateway() -> dict[str, Any]:
    """Its class is unknown to the lab, which therefore runs no Envoy for it."""
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": "wp", "namespace": NAMESPACE},
        "spec": {
            "gatewayClassName": "stand-in",
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
        },
    }


def service(name: str, port: int, target: int, **labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels},
        "spec": {
            "selector": {"app": name},
            "ports": [{"name": "tcp", "port": port, "targetPort": target}],
        },
    }


def waypoint_pod() -> dict[str, Any]:
    labels = {GATEWAY_NAME: "wp"}
    made = python_pod(
        "wp", "node2", namespace=NAMESPACE, script="waypoint.py", account="wp", labels=labels
    )
    made["spec"]["containers"][0]["ports"] = []  # it listens on loopback: always ready
    return made


@pytest.fixture(scope="module")
def shop() -> Iterator[Lab]:
    """`client` on node1, `wp`, `web` and `near` (another client) on node2."""
    made = Lab(f"w{os.getpid() % 100000}")
    accounts = [named("ServiceAccount", name, NAMESPACE) for name in ("client", "wp", "web")]
    objects = [
        named("Namespace", NAMESPACE, **{"istio.io/dataplane-mode": "ambient"}),
        named("Namespace", "plain"),
        *accounts,
        gateway(),
        service("wp", 15008, 15008),
        service("web", 80, 7000),
        waypoint_pod(),
        python_pod("web", "node2", namespace=NAMESPACE, script="server.py", account="web"),
        python_pod("client", "node1", namespace=NAMESPACE, account="client"),
        python_pod("near", "node2", namespace=NAMESPACE, account="client"),
        python_pod("outside", "node1", namespace="plain"),
    ]
    try:
        problems = made.up([demo_manifests()])
        problems += made.apply(*objects)
        assert problems == []
        yield made
    finally:
        made.down()


@contextmanager
def attached(shop: Lab, **more: str) -> Iterator[None]:
    """The service `web` uses the waypoint."""
    shop.apply(service("web", 80, 7000, **{USE: "wp"}, **more))
    try:
        wait_until(lambda: header(shop) is not None, "the waypoint to be used")
        yield
    finally:  # the lab merges labels, as `kubectl apply` does
        shop.apply(service("web", 80, 7000, **{USE: "none", REQUIRE: "false"}))
        wait_until(lambda: header(shop) is None, "the waypoint to be detached")


def vip(shop: Lab, family: int = 4) -> str:
    found = shop.get("Service", "web", NAMESPACE)["spec"]["clusterIPs"]
    return next(str(ip) for ip in found if (":" in ip) == (family == 6))


def header(shop: Lab, pod: str = "client", family: int = 4) -> dict[str, Any] | None:
    """What the stand-in shows of a connection to the service; None if the app itself answers."""
    said = client(shop, pod, "talk", vip(shop, family), 80, "ping", namespace=NAMESPACE)["said"]
    line, _, rest = said.partition("\n")
    if not rest:
        assert line == "ping"
        return None
    found: dict[str, Any] = json.loads(line)
    return found


def poke(shop: Lab, pod: str, target: str, port: int, namespace: str = NAMESPACE) -> str:
    return str(client(shop, pod, "poke", target, port, namespace=namespace)["end"])


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("pod", ["client", "near"])
def test_waypoint_learns_the_client_from_its_node(shop: Lab, pod: str, family: int) -> None:
    with attached(shop):
        found = header(shop, pod, family)
        assert found is not None
        target = vip(shop, family)
        mine = addresses(shop, pod, NAMESPACE)[family]
        assert found["source"].rpartition(":")[0].strip("[]") == mine
        assert found["destination"] == (f"[{target}]:80" if family == 6 else f"{target}:80")
        assert found["tlvs"] == {
            "d0": CLIENT, "e0": pod, "e1": NAMESPACE, "e2": pod, "e3": "latest"
        }  # fmt: skip


def test_no_connection_bypasses_the_waypoint_on_its_node(shop: Lab) -> None:
    """Many connections of one pair on one node: each passes the waypoint."""
    with attached(shop):
        assert all(header(shop, "near") is not None for _ in range(5))


def test_waypoint_reaches_the_endpoint_with_its_own_identity(shop: Lab) -> None:
    target = addresses(shop, "web", NAMESPACE)[4]
    with attached(shop):
        assert client(shop, "wp", "talk", target, 7000, "hi", namespace=NAMESPACE)["said"] == "hi"
        assert client(shop, "wp", "talk", vip(shop), 80, "hi", namespace=NAMESPACE)["said"] == "hi"
    identity = "src.identity=spiffe://cluster.local/ns/shop/sa/wp"
    wait_until(lambda: identity in proxy_log(shop, "node2"))


_DIAL = """
import socket, sys
for host in ("127.0.0.1", "127.1.2.3", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1", *sys.argv[1:]):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    print(socket.socket(family).connect_ex((host, 15088)))
"""


def test_processes_of_the_pod_cannot_forge_the_header(shop: Lab) -> None:
    own = addresses(shop, "wp", NAMESPACE)
    done = shop.exec(
        "wp", sys.executable, "-c", _DIAL, *own.values(), namespace=NAMESPACE, timeout=30
    )
    assert done.stdout.split() == ["111"] * 8, done.stderr


@pytest.mark.parametrize("family", [4, 6])
def test_port_of_envoy_is_unreachable_for_others(shop: Lab, family: int) -> None:
    target = addresses(shop, "wp", NAMESPACE)[family]
    assert poke(shop, "outside", target, 15088, "plain") in ("ECONNRESET", "ECONNREFUSED")
    for pod in ("client", "near"):
        assert poke(shop, pod, target, 15088) == "ECONNREFUSED"


def test_attachment_applies_to_new_connections_within_a_second(shop: Lab) -> None:
    argv = [sys.executable, str(APPS / "client.py"), "hold", vip(shop), "80"]
    held = shop.popen("client", *argv, namespace=NAMESPACE)
    assert held.stdin is not None
    assert held.stdout is not None
    assert held.stdout.readline() == b"connected\n"
    started = time.monotonic()
    with attached(shop):
        elapsed = time.monotonic() - started
        held.stdin.write(b"before\n")
        held.stdin.flush()
        assert b"before" in held.stdout.readline()
    held.stdin.close()
    held.wait(10)
    assert elapsed < 5  # with the start of two Python processes


def test_direct_connection_to_the_pod_is_handled_as_in_istio(shop: Lab) -> None:
    target = addresses(shop, "web", NAMESPACE)[4]
    with attached(shop):
        said = client(shop, "client", "echo", target, 7000, "hi", namespace=NAMESPACE)
        assert said == {"said": "hi"}
        said = client(shop, "outside", "echo", target, 7000, "hi", namespace="plain")
        assert said == {"said": "hi"}


@pytest.mark.parametrize("family", [4, 6])
def test_required_waypoint_is_the_only_client(shop: Lab, family: int) -> None:
    target = addresses(shop, "web", NAMESPACE)[family]
    with attached(shop, **{REQUIRE: "true"}):
        wait_until(lambda: poke(shop, "client", target, 7000) == "ECONNRESET")
        assert poke(shop, "near", target, 7000) == "ECONNRESET"
        assert poke(shop, "outside", target, 7000, "plain") == "ECONNRESET"
        said = client(shop, "wp", "talk", target, 7000, "hi", namespace=NAMESPACE)["said"]
        assert said == "hi"
        assert header(shop) is not None
    reason = "denied by AuthorizationPolicy shop/require-waypoint:web"
    wait_until(lambda: reason in proxy_log(shop, "node2"))
    said = client(shop, "client", "echo", target, 7000, "hi", namespace=NAMESPACE)["said"]
    assert said == "hi"


def test_waypoint_without_ready_pods_is_refused_with_the_reason(shop: Lab) -> None:
    with attached(shop):
        shop.delete("Pod", "wp", NAMESPACE)
        try:
            wait_until(lambda: poke(shop, "client", vip(shop), 80) == "ECONNRESET")
            reason = "waypoint shop/wp has no ready pod"
            wait_until(lambda: reason in proxy_log(shop, "node1"))
        finally:
            assert shop.apply(waypoint_pod()) == []
        wait_until(lambda: header(shop) is not None, "the new waypoint to be used")
