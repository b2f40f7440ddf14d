# SPDX-License-Identifier: Apache-2.0
"""An unmodified istioctl manages the waypoints of a cluster that has no istiod."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.apiserver.control_plane import wait_until
from tests.support.nodes.cluster_fixture import Nodes
from tests.support.nodes.objects import AMBIENT, metadata, namespace

SPACE, NAME = "bookshop", "waypoint"
TIMEOUT_S = 60.0  # seconds for one command, also if it waits for a pod
Istioctl = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def istioctl(mesh: Nodes, programs: Path) -> Istioctl:
    """Run `istioctl ARGUMENTS... -n SPACE`; it must exit with `code`."""
    mesh.server.apply(namespace(SPACE, AMBIENT))

    def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [programs / "istioctl", *arguments, "-n", SPACE],
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(mesh.directory),
                "KUBECONFIG": str(mesh.server.admin_kubeconfig),
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == code, f"{done}\n{mesh.diagnostics()}"
        return done

    return run


@pytest.fixture(scope="module")
def applied(istioctl: Istioctl) -> str:
    """What `istioctl waypoint apply` prints when it has waited for the waypoint."""
    return istioctl("waypoint", "apply", "--enroll-namespace", "--wait").stdout


def test_waypoint_apply_waits_until_the_waypoint_is_ready(applied: str, mesh: Nodes) -> None:
    assert f"waypoint {SPACE}/{NAME} is ready!" in applied
    labels = _get(mesh, "namespace", SPACE)["metadata"]["labels"]
    assert labels["istio.io/use-waypoint"] == NAME
    assert _get(mesh, "deployment", NAME)["status"]["readyReplicas"] == 1


def test_waypoint_list_shows_it_as_programmed(applied: str, istioctl: Istioctl) -> None:
    header, row = istioctl("waypoint", "list").stdout.splitlines()
    assert header.split()[0] == "NAME"
    assert header.split()[-1] == "PROGRAMMED"
    assert row.split()[0] == NAME
    assert row.split()[-1] == "True"


def test_waypoint_status_states_that_it_is_programmed(applied: str, istioctl: Istioctl) -> None:
    _, row = istioctl("waypoint", "status").stdout.splitlines()
    assert row.split()[:4] == [NAME, "True", "Programmed", "Programmed"]


def test_analyze_finds_nothing_wrong_with_the_waypoint(applied: str, istioctl: Istioctl) -> None:
    # Info: the port name "mesh" of the waypoint's Service, as Istio's own, which analyze leaves out
    done = istioctl("analyze", "--output-threshold", "Warning")
    assert "No validation issues found" in done.stderr, done.stdout


def test_analyze_reports_a_route_to_a_missing_service(
    applied: str, istioctl: Istioctl, mesh: Nodes
) -> None:
    route = {"route": [{"destination": {"host": "missing"}}]}
    service = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        **metadata("orders", SPACE),
        "spec": {"hosts": ["orders"], "http": [route]},
    }
    mesh.server.apply(service)
    done = istioctl("analyze", code=79)  # the exit status for messages of level Error
    assert "IST0101" in done.stdout
    assert "missing" in done.stdout
    mesh.server.kubectl("delete", "virtualservice", "orders", "-n", SPACE)


def test_waypoint_delete_removes_its_pods(applied: str, istioctl: Istioctl, mesh: Nodes) -> None:
    assert f"waypoint {SPACE}/{NAME} deleted" in istioctl("waypoint", "delete", NAME).stdout
    kinds = "deployment,service,serviceaccount,pod"
    selector = f"gateway.networking.k8s.io/gateway-name={NAME}"
    words = ("get", kinds, "-n", SPACE, "-l", selector, "-o", "name")
    wait_until(
        lambda: mesh.server.kubectl(*words).strip() == "",
        "the objects of the waypoint are deleted",
        timeout_s=TIMEOUT_S,
    )


def _get(cluster: Nodes, kind: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        cluster.server.kubectl("get", kind, name, "-n", SPACE, "-o", "json")
    )
    return found
