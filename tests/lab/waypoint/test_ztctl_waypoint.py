# SPDX-License-Identifier: Apache-2.0
"""`ztctl waypoint` in a lab."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.lab.helpers.harness import named
from tests.support.waiting import wait_until
from ztunnel.lab import Lab

NAMESPACE = "wp"
AMBIENT = {"istio.io/dataplane-mode": "ambient"}


def _ztctl(lab: Lab, command: str, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "ztctl.main", "waypoint", command, "--lab", lab.names.name]
    argv += ["-n", NAMESPACE, *words]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=90)


def _pod(name: str, image: str, **container: object) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": name}},
        "spec": {"containers": [{"name": "app", "image": image, **container}]},
    }


ROUTE = {
    "apiVersion": "gateway.networking.k8s.io/v1",
    "kind": "HTTPRoute",
    "metadata": {"name": "web", "namespace": NAMESPACE},
    "spec": {
        "parentRefs": [{"group": "", "kind": "Service", "name": "web"}],
        "rules": [
            {
                "filters": [
                    {
                        "type": "ResponseHeaderModifier",
                        "responseHeaderModifier": {"set": [{"name": "x-via", "value": "way"}]},
                    }
                ],
                "backendRefs": [{"name": "web", "port": 80}],
            }
        ],
    },
}


def _response(lab: Lab) -> tuple[str, bool]:
    """The status, and whether the waypoint applied the route."""
    argv = ["curl", "-s", "-o", "/dev/null", "-D", "-", "-m", "5", "http://web"]
    text = lab.exec("client", *argv, namespace=NAMESPACE).stdout.lower()
    return " ".join(text.split()[1:2]), "x-via: way" in text


def test_waypoint_is_applied_enrolled_and_deleted(lab: Lab) -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": NAMESPACE},
        "spec": {
            "selector": {"app": "web"},
            "ports": [{"name": "http", "port": 80, "targetPort": 80}],
        },
    }
    client = _pod("client", "python", command=["sleep", "infinity"])
    web = _pod("web", "nginx", ports=[{"containerPort": 80}])
    assert lab.apply(named("Namespace", NAMESPACE, **AMBIENT), web, client, service, ROUTE) == []
    try:
        wait_until(lambda: _response(lab) == ("200", False), "no waypoint yet", timeout_s=20)
        assert json.loads(_ztctl(lab, "list", "-o", "json").stdout) == []
        done = _ztctl(lab, "apply", "--enroll-namespace", "--wait")
        assert done.returncode == 0, done.stderr
        (row,) = json.loads(_ztctl(lab, "list", "-o", "json").stdout)
        assert (row["name"], row["programmed"]) == ("waypoint", True)
        assert row["addresses"]
        wait_until(lambda: _response(lab) == ("200", True), "the waypoint is used", timeout_s=10)
        assert _ztctl(lab, "status", "waypoint").returncode == 0
        assert _ztctl(lab, "delete", "waypoint").returncode == 0
        wait_until(lambda: _response(lab)[0] == "", "connections are refused", timeout_s=10)
        assert _ztctl(lab, "delete", "waypoint").returncode == 1
    finally:
        lab.delete("namespace", NAMESPACE, "")
