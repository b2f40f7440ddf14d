# SPDX-License-Identifier: Apache-2.0
"""`ztunnel gateway` on real nodes: restarts under load, rejected configuration, introspection."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.helpers.harness import APPS, named
from tests.support.waiting import wait_until
from ztunnel.lab import Lab, admin_get

RATE = 200  # requests per second
AMBIENT = {"istio.io/dataplane-mode": "ambient"}
NAMESPACE = "xds"


def _pod(name: str, image: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": name}},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": "node2" if image == "nginx" else "node1"},
            "containers": [{"name": "app", "image": image, **spec}],
        },
    }


def _service(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "labels": {"istio.io/use-waypoint": "waypoint"},
        },
        "spec": {
            "selector": {"app": "web"},
            "ports": [{"name": "http", "port": 80, "targetPort": 80}],
        },
    }


GATEWAY = {
    "apiVersion": "gateway.networking.k8s.io/v1",
    "kind": "Gateway",
    "metadata": {"name": "waypoint", "namespace": NAMESPACE},
    "spec": {
        "gatewayClassName": "istio-waypoint",
        "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
    },
}


@pytest.fixture(scope="module")
def shop(lab: Lab) -> Iterator[Lab]:
    """The namespace `xds`: `client` on node1, `web` behind a waypoint on node2."""
    objects = [
        named("Namespace", NAMESPACE, **AMBIENT),
        _pod("web", "nginx", ports=[{"containerPort": 80}]),
        _pod("client", "python", command=["sleep", "infinity"]),
        _service("web"),
        GATEWAY,
    ]
    assert lab.apply(*objects) == []
    wait_until(lambda: _status(lab) == "200", lambda: _status(lab), timeout_s=20)
    try:
        yield lab
    finally:
        for kind, name in (("service", "web"), ("gateway", "waypoint"), ("namespace", NAMESPACE)):
            lab.delete(kind, name, NAMESPACE if kind != "namespace" else "")


def _status(lab: Lab, host: str = "web") -> str:
    argv = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "5", f"http://{host}"]
    return lab.exec("client", *argv, namespace=NAMESPACE).stdout.strip()


def _start_load(lab: Lab) -> subprocess.Popen[bytes]:
    argv = [sys.executable, str(APPS / "http_loop.py"), "web", "80", str(RATE)]
    load = lab.popen("client", *argv, namespace=NAMESPACE)
    _requests(load)
    return load


def _requests(load: subprocess.Popen[bytes], more: int = RATE) -> None:
    """Wait for that many more requests."""
    assert load.stdout is not None
    for _ in range(0, more, 50):
        assert load.stdout.readline().strip().isdigit()


def _report(load: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert load.stdin is not None
    load.stdin.close()
    assert load.stdout is not None
    found: dict[str, Any] = json.loads(load.stdout.read().splitlines()[-1])
    load.wait(10)
    return found


@pytest.mark.parametrize("component", ["gateway", "agent"])
def test_no_request_fails_when_the_control_plane_is_killed(shop: Lab, component: str) -> None:
    load = _start_load(shop)
    for node in ("node1", "node2"):
        shop.kill(node, component)
    _requests(load)
    for node in ("node1", "node2"):
        shop.start(node, component)
    _requests(load, 2 * RATE)
    # the new process configures Envoy
    assert shop.apply(_service("late")) == []
    wait_until(lambda: _status(shop, "late") == "200", "the new service", timeout_s=10)
    report = _report(load)
    shop.delete("service", "late", NAMESPACE)
    assert report["failures"] == []
    assert report["requests"] >= 4 * RATE


def _gateway_rows(lab: Lab) -> dict[str, dict[str, Any]]:
    """The gateway pods of the namespace by node."""
    found = {}
    for node in ("node1", "node2"):
        _, answer = admin_get(lab.names, node, "/v1/gateways")
        for row in (answer or {}).get("gateways", []):
            if row["gateway"] == f"{NAMESPACE}/waypoint":
                found[node] = row
    return found


def _view(lab: Lab, view: str) -> dict[str, Any]:
    """A view of the gateway pod; empty while no process serves it."""
    ((node, row),) = _gateway_rows(lab).items()
    status, answer = admin_get(lab.names, node, f"/v1/gateway?pod={row['workload']}&view={view}")
    assert status in (200, 404), answer
    return answer if isinstance(answer, dict) and status == 200 else {}


def test_views_show_what_envoy_has(shop: Lab) -> None:
    ((_, row),) = _gateway_rows(shop).items()
    assert (row["problem"], row["rejected"]) == ("", [])
    assert row["listeners"] == ["metrics4", "metrics6", "xds4", "xds6"]
    wait_until(lambda: _view(shop, "xds")["synced"], lambda: _view(shop, "xds"))
    xds = _view(shop, "xds")
    assert {each["state"] for each in xds["resources"]} == {"SYNCED"}
    assert f"{NAMESPACE}/web|80" in {each["name"] for each in xds["resources"]}
    clusters = {each["name"] for each in _view(shop, "clusters")["cluster_statuses"]}
    assert f"{NAMESPACE}/web|80" in clusters
    assert "configs" in _view(shop, "config_dump")
    assert "rbac" in _view(shop, "log")["loggers"]


def test_metrics_are_served_in_the_gateway_pod(shop: Lab) -> None:
    ((_, row),) = _gateway_rows(shop).items()
    assert _status(shop) == "200"
    name = row["workload"].partition("/")[2]
    for host in ("127.0.0.1", "[::1]"):
        argv = ["curl", "-sg", "-m", "5", f"http://{host}:15020/metrics"]
        page = shop.exec(name, *argv, namespace=NAMESPACE).stdout
        assert f'destination_service="web.{NAMESPACE}.svc.cluster.local"' in page
        assert "\nenvoy_istio_" not in page


FLOOD = """
import os, socket, time
for number in range(60):
    for _ in range(4):
        with socket.create_connection(("127.0.0.1", 15010), 5) as sock:
            sock.sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + os.urandom(4096))
held = [socket.create_connection(("127.0.0.1", 15010), 5) for _ in range(30)]
time.sleep(1)
"""


def test_another_container_of_the_pod_cannot_disturb_the_configuration(shop: Lab) -> None:
    """It can connect to the xDS listener, like Envoy."""
    ((_, row),) = _gateway_rows(shop).items()
    load = _start_load(shop)
    name = row["workload"].partition("/")[2]
    flood = shop.popen(name, sys.executable, "-c", FLOOD, namespace=NAMESPACE)
    assert shop.apply(_service("flooded")) == []
    wait_until(lambda: _status(shop, "flooded") == "200", "the new service", timeout_s=10)
    assert flood.wait(30) == 0
    report = _report(load)
    shop.delete("service", "flooded", NAMESPACE)
    assert report["failures"] == []
    assert _view(shop, "xds")["connected"]


def test_replaced_process_takes_over_without_a_failed_request(shop: Lab) -> None:
    """As in a rolling update: SIGTERM, then another process."""
    load = _start_load(shop)
    for node in ("node1", "node2"):
        shop.restart(node, "gateway")
    _requests(load)
    wait_until(lambda: _view(shop, "xds").get("synced"), "Envoy to reconnect")
    report = _report(load)
    assert report["failures"] == []
