# SPDX-License-Identifier: Apache-2.0
"""Waypoints on a real cluster, as `ztctl` and the status of objects show them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.apiserver.control_plane import wait_until
from tests.support.nodes.cluster_fixture import Nodes
from tests.support.nodes.cluster_setup import TIMEOUT_S, Ztctl
from tests.support.nodes.objects import AMBIENT, metadata, namespace

SPACE, NAME = "library", "waypoint"
SERVICE = "web"

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def waypoint(mesh: Nodes, ztctl: Ztctl) -> Nodes:
    """The mesh with a waypoint of a namespace, and a service with a partly invalid route."""
    mesh.server.apply(namespace(SPACE, AMBIENT))
    done = ztctl("waypoint", "apply", "-n", SPACE, "--enroll-namespace", "--wait")
    assert f"waypoint {SPACE}/{NAME} programmed" in done.stdout
    mesh.server.apply(_service(), _route())
    return mesh


def test_waypoint_list_shows_it_as_programmed(waypoint: Nodes, ztctl: Ztctl) -> None:
    (row,) = json.loads(ztctl("waypoint", "list", "-n", SPACE, "-o", "json").stdout)
    assert (row["name"], row["for"], row["programmed"]) == (NAME, "service", True)


def test_service_is_bound_to_the_waypoint(waypoint: Nodes) -> None:
    def bound() -> bool:
        conditions = _get(waypoint, "service", SERVICE)["status"].get("conditions", [])
        return _statuses(conditions).get("istio.io/WaypointBound") == "True"

    wait_until(bound, "the Service is bound", timeout_s=TIMEOUT_S)


def test_status_of_a_route_names_its_missing_backend(waypoint: Nodes) -> None:
    def conditions() -> list[dict[str, Any]]:
        parents = _get(waypoint, "httproute", SERVICE).get("status", {}).get("parents", [])
        return parents[0]["conditions"] if parents else []

    found = wait_until(conditions, "the route has a status", timeout_s=TIMEOUT_S)
    assert _statuses(found) == {"Accepted": "True", "ResolvedRefs": "False"}
    assert any(f"Service {SPACE}/missing does not exist" in one["message"] for one in found)


def test_analyze_of_the_cluster_names_the_field(waypoint: Nodes, ztctl: Ztctl) -> None:
    done = ztctl("analyze", "-n", SPACE, "-o", "json", code=1)
    rows = [row for row in json.loads(done.stdout) if row["severity"] == "error"]
    assert {(row["kind"], row["name"]) for row in rows} == {("HTTPRoute", SERVICE)}
    assert "spec.rules[1].backendRefs[0]" in {row["field"] for row in rows}


def test_envoy_of_the_pod_has_a_chain_for_the_service(waypoint: Nodes, ztctl: Ztctl) -> None:
    words = ("proxy-config", "listener", NAME, "-n", SPACE)
    chain = f"{SPACE}/{SERVICE}|80"
    wait_until(lambda: chain in ztctl(*words).stdout, f"Envoy serves {chain}", timeout_s=TIMEOUT_S)


def _get(cluster: Nodes, kind: str, name: str) -> dict[str, Any]:
    words = ("get", kind, name, "-n", SPACE, "-o", "json")
    found: dict[str, Any] = json.loads(cluster.server.kubectl(*words))
    return found


def _statuses(conditions: list[dict[str, Any]]) -> dict[str, str]:
    return {one["type"]: one["status"] for one in conditions}


def _service() -> dict[str, Any]:
    ports = [{"name": "http", "port": 80, "targetPort": 8080}]
    spec = {"selector": {"app": SERVICE}, "ports": ports}
    return {"apiVersion": "v1", "kind": "Service", **metadata(SERVICE, SPACE), "spec": spec}


def _route() -> dict[str, Any]:
    missing = {
        "matches": [{"path": {"value": "/v2"}}],
        "backendRefs": [{"name": "missing", "port": 80}],
    }
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        **metadata(SERVICE, SPACE),
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": SERVICE}],
            "rules": [{"backendRefs": [{"name": SERVICE, "port": 80}]}, missing],
        },
    }
