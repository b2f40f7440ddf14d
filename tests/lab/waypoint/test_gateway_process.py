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
from ztunnel.lab import Lab

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
