# SPDX-License-Identifier: Apache-2.0
"""The controller runs waypoints on a real API server, with the permissions of deploy/.

There is no kubelet and no garbage collector: tests set the status of Deployments.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.apiserver.control_plane import ControlPlane, manifests, wait_until
from tests.support.apiserver.gateway_crds import install_crds
from tests.support.apiserver.gateways import (
    GATEWAY,
    OWNED,
    conditions,
    get,
    owned,
    put_gateway,
    set_ready,
    wait_condition,
)
from tests.support.apiserver.server import ApiServer

Json = dict[str, Any]


@pytest.fixture(scope="module")
def mesh(binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A server with the CRDs, the guard, and two controllers, one of them the leader."""
    with ApiServer(tmp_path_factory.mktemp("gateways"), binaries) as server:
        install_crds(server)
        made = ControlPlane(server)
        server.apply(*manifests("controller-guard.yaml"))
        with made.controller("one"), made.controller("two"):
            yield made


def test_classes_are_created_and_accepted(mesh: ControlPlane) -> None:
    for name in ("istio-waypoint", "ztunnel-waypoint"):
        found = wait_condition(mesh, "gatewayclass", "default", name, Accepted=("True", "Accepted"))
        assert found["spec"]["controllerName"] == "ztunnel.dev/waypoint-controller"


def test_waypoint_is_programmed_when_a_pod_is_ready(mesh: ControlPlane) -> None:
    put_gateway(mesh, "shop")
    account, deployment, service = owned(mesh, "shop")
    gateway = get(mesh, "gateway", "shop", "way")
    assert gateway is not None
    for obj in (account, deployment, service):
        (owner,) = obj["metadata"]["ownerReferences"]
        assert owner["uid"] == gateway["metadata"]["uid"]
    assert [each["port"] for each in service["spec"]["ports"]] == [15021, 15008]
    pending = wait_condition(
        mesh,
        "gateway",
        "shop",
        "way",
        Accepted=("True", "Accepted"),
        Programmed=("False", "Pending"),
    )
    (address,) = pending["status"]["addresses"]
    assert address["value"] == service["spec"]["clusterIP"]
    set_ready(mesh, "shop", 1)
    ready = wait_condition(mesh, "gateway", "shop", "way", Programmed=("True", "Programmed"))
    (listener,) = ready["status"]["listeners"]
    assert listener["name"] == "mesh"
    assert conditions({"status": listener})["Programmed"] == ("True", "Programmed")
    generation = ready["metadata"]["generation"]
    assert {each["observedGeneration"] for each in ready["status"]["conditions"]} == {generation}


def test_reason_of_missing_pods_is_in_the_condition(mesh: ControlPlane) -> None:
    put_gateway(mesh, "blocked")
    owned(mesh, "blocked")
    failure = {"type": "ReplicaFailure", "status": "True", "message": "violates PodSecurity"}
    path = "/apis/apps/v1/namespaces/blocked/deployments/way/status"
    mesh.server.request("PATCH", path, {"status": {"conditions": [failure]}})
    wait_until(
        lambda: "violates PodSecurity" in json.dumps(get(mesh, "gateway", "blocked", "way")),
        "the message of the Deployment",
    )


def test_changed_gateway_is_applied(mesh: ControlPlane) -> None:
    put_gateway(mesh, "changed")
    owned(mesh, "changed")
    put_gateway(mesh, "changed", infrastructure={"labels": {"team": "a"}})
    wait_until(
        lambda: (
            owned(mesh, "changed")[1]["spec"]["template"]["metadata"]["labels"].get("team") == "a"
        ),
        "the label of the pods",
    )


def test_drift_is_repaired_and_scaling_is_not(mesh: ControlPlane) -> None:
    put_gateway(mesh, "drift")
    image = owned(mesh, "drift")[1]["spec"]["template"]["spec"]["containers"][0]["image"]
    mesh.server.kubectl(
        "-n", "drift", "set", "image", "deployment/way", "istio-proxy=example.com/evil:1"
    )
    mesh.server.kubectl("-n", "drift", "scale", "deployment/way", "--replicas=3")
    mesh.server.kubectl("-n", "drift", "delete", "service", "way")

    def is_repaired() -> bool:
        spec = owned(mesh, "drift")[1]["spec"]
        return bool(spec["template"]["spec"]["containers"][0]["image"] == image)

    wait_until(is_repaired, "the image")
    assert owned(mesh, "drift")[1]["spec"]["replicas"] == 3
    budget = wait_until(
        lambda: get(mesh, "poddisruptionbudget", "drift", "way"), "the disruption budget"
    )
    assert budget["spec"]["maxUnavailable"] == 1
    mesh.server.kubectl("-n", "drift", "scale", "deployment/way", "--replicas=1")
    wait_until(
        lambda: get(mesh, "poddisruptionbudget", "drift", "way") is None, "no disruption budget"
    )


def test_objects_of_deleted_gateway_are_deleted(mesh: ControlPlane) -> None:
    put_gateway(mesh, "gone")
    owned(mesh, "gone")
    mesh.server.kubectl("-n", "gone", "delete", "gateway", "way")
    wait_until(
        lambda: not any(get(mesh, kind, "gone", "way") for kind in OWNED), "everything is deleted"
    )


def test_foreign_object_of_the_same_name_is_left_alone(mesh: ControlPlane) -> None:
    mesh.namespace("taken")
    mesh.server.kubectl("-n", "taken", "create", "deployment", "way", "--image=mine")
    put_gateway(mesh, "taken")
    found = wait_condition(mesh, "gateway", "taken", "way", Programmed=("False", "Invalid"))
    (programmed,) = (c for c in found["status"]["conditions"] if c["type"] == "Programmed")
    assert "Deployment taken/way exists and does not belong to the Gateway" in programmed["message"]
    deployment = get(mesh, "deployment", "taken", "way")
    assert deployment is not None
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == "mine"


def test_gateway_of_another_class_is_ignored(mesh: ControlPlane) -> None:
    foreign = {
        "apiVersion": f"{GATEWAY}/v1",
        "kind": "GatewayClass",
        "metadata": {"name": "foreign"},
        "spec": {"controllerName": "example.com/controller"},
    }
    mesh.server.apply(foreign)
    put_gateway(mesh, "foreign", gatewayClassName="foreign")
    put_gateway(mesh, "foreign", name="after")
    owned(mesh, "foreign", "after")
    assert get(mesh, "deployment", "foreign", "way") is None
    gateway = get(mesh, "gateway", "foreign", "way")
    assert gateway is not None
    accepted = gateway["status"]["conditions"]
    assert {each["reason"] for each in accepted} == {"Pending"}  # the default of the CRD


def test_gateway_that_moves_to_another_class_is_removed(mesh: ControlPlane) -> None:
    put_gateway(mesh, "moving")
    owned(mesh, "moving")
    put_gateway(mesh, "moving", gatewayClassName="foreign")
    wait_until(
        lambda: not any(get(mesh, kind, "moving", "way") for kind in OWNED), "everything is deleted"
    )


def test_missing_parameters_are_reported_and_used_once_they_exist(mesh: ControlPlane) -> None:
    reference = {"group": "", "kind": "ConfigMap", "name": "more"}
    put_gateway(mesh, "more", infrastructure={"parametersRef": reference})
    wait_condition(mesh, "gateway", "more", "way", Accepted=("False", "InvalidParameters"))
    assert get(mesh, "deployment", "more", "way") is None
    mesh.server.kubectl(
        *("-n", "more", "create", "configmap", "more"),
        "--from-literal=deployment=spec: {replicas: 2}",
    )
    wait_until(
        lambda: owned(mesh, "more")[1]["spec"]["replicas"] == 2,
        "the replicas of the overlay",
        timeout_s=10,
    )
    events = mesh.server.kubectl("-n", "more", "get", "events", "-o", "jsonpath={..message}")
    assert "ConfigMap more does not exist" in events


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"listeners": [{"name": "web", "port": 80, "protocol": "HTTP"}]}, "ListenersNotValid"),
        ({"addresses": [{"value": "10.0.0.1"}]}, "UnsupportedAddress"),
    ],
)
def test_unsupported_gateway_is_not_accepted(mesh: ControlPlane, spec: Json, reason: str) -> None:
    namespace = f"bad-{reason.lower()}"
    put_gateway(mesh, namespace, **spec)
    wait_condition(mesh, "gateway", namespace, "way", Accepted=("False", reason))


def test_settled_gateway_is_not_written_again(mesh: ControlPlane) -> None:
    put_gateway(mesh, "quiet")
    owned(mesh, "quiet")
    set_ready(mesh, "quiet", 1)
    wait_condition(mesh, "gateway", "quiet", "way", Programmed=("True", "Programmed"))

    def versions() -> list[str]:
        kinds = ("gateway", *OWNED)
        objects = (get(mesh, kind, "quiet", "way") or {} for kind in kinds)
        return [obj["metadata"]["resourceVersion"] for obj in objects]

    before = versions()
    put_gateway(mesh, "later")  # reconciled after `quiet`
    owned(mesh, "later")
    assert versions() == before


def ztctl(mesh: ControlPlane, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `ztctl waypoint`."""
    kubeconfig = ("--kubeconfig", str(mesh.server.admin_kubeconfig))
    argv = [sys.executable, "-m", "ztctl.main", "waypoint", words[0], *kubeconfig, *words[1:]]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)


def test_ztctl_applies_waits_for_and_deletes_waypoints(mesh: ControlPlane) -> None:
    missing = ztctl(mesh, "apply", "-n", "cli")
    assert missing.returncode == 1
    assert "namespace cli does not exist" in missing.stderr
    mesh.namespace("cli")
    impatient = ztctl(mesh, "apply", "-n", "cli", "--wait", "--timeout=1")
    assert "0 of 1 pods ready" in impatient.stderr
    assert ztctl(mesh, "status", "-n", "cli").returncode == 1
    owned(mesh, "cli", "waypoint")
    set_ready(mesh, "cli", 1, "waypoint")
    done = ztctl(mesh, "apply", "-n", "cli", "--for=all", "--enroll-namespace", "--wait")
    assert done.returncode == 0, done.stderr
    assert "waypoint cli/waypoint programmed" in done.stdout
    namespace = get(mesh, "namespace", "cli", "cli")
    assert namespace is not None
    assert namespace["metadata"]["labels"]["istio.io/use-waypoint"] == "waypoint"
    other = ztctl(mesh, "apply", "-n", "cli", "--name=other", "--enroll-namespace")
    assert "uses waypoint cli/waypoint; hint: --overwrite" in other.stderr
    assert get(mesh, "gateway", "cli", "other") is None
    (row,) = json.loads(ztctl(mesh, "list", "-n", "cli", "-o", "json").stdout)
    assert (row["name"], row["for"], row["programmed"]) == ("waypoint", "all", True)
    status = ztctl(mesh, "status", "waypoint", "-n", "cli")
    assert status.returncode == 0
    assert "Programmed" in status.stdout
    assert ztctl(mesh, "delete", "nothing", "-n", "cli").returncode == 1
    assert "cli/waypoint deleted" in ztctl(mesh, "delete", "--all", "-n", "cli").stdout
    assert get(mesh, "gateway", "cli", "waypoint") is None


def test_new_leader_continues(mesh: ControlPlane) -> None:
    put_gateway(mesh, "leader")
    owned(mesh, "leader")
    leader = mesh.leader()
    with mesh.controller("three"):
        for process in list(mesh._running):
            if isinstance(process, subprocess.Popen) and f"--identity {leader}" in " ".join(
                map(str, process.args if isinstance(process.args, list) else [])
            ):
                process.kill()
        wait_until(lambda: mesh.leader() != leader, "another leader")
        put_gateway(mesh, "leader", infrastructure={"labels": {"after": "change"}})
        wait_until(
            lambda: owned(mesh, "leader")[1]["metadata"]["labels"].get("after") == "change",
            "the new leader applies the change",
        )


def test_classes_of_istiod_are_left_alone_and_reported(fresh_server: ApiServer) -> None:
    install_crds(fresh_server)
    mesh = ControlPlane(fresh_server)
    istiod = {
        "apiVersion": f"{GATEWAY}/v1",
        "kind": "GatewayClass",
        "metadata": {"name": "istio-waypoint"},
        "spec": {"controllerName": "istio.io/mesh-controller"},
    }
    fresh_server.apply(istiod)
    put_gateway(mesh, "theirs")
    with mesh.controller("one"):
        put_gateway(mesh, "ours", gatewayClassName="ztunnel-waypoint")
        owned(mesh, "ours")
        assert get(mesh, "deployment", "theirs", "way") is None
        wait_until(lambda: "owned by another controller" in mesh.log("one"), "the log")
    found = get(mesh, "gatewayclass", "default", "istio-waypoint")
    assert found is not None
    assert found["spec"]["controllerName"] == "istio.io/mesh-controller"
    assert conditions(found).get("Accepted", ("", ""))[0] != "True"
    shown = ztctl(mesh, "status", "-n", "theirs")
    assert "ForeignController" in shown.stdout
    warned = ztctl(mesh, "apply", "-n", "theirs", "--name=way")
    assert "belongs to istio.io/mesh-controller" in warned.stderr
