# SPDX-License-Identifier: Apache-2.0
"""The controller writes the status condition of policies, with the permissions of deploy/."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.apiserver.control_plane import ControlPlane, wait_until
from tests.support.apiserver.server import ROOT, ApiServer
from ztunnel.kube.objects.policy_status import CONDITION

Json = dict[str, Any]
GOOD: Json = {"rules": [{"from": [{"source": {"namespaces": ["x"]}}]}]}
BAD: Json = {"rules": [{"from": [{"source": {"namespaces": ["*-*"]}}]}]}
GROUP = "security.istio.io"


@pytest.fixture(scope="module")
def mesh(binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A server with our CRDs, the namespace `shop`, and two controllers, one of them the leader."""
    with ApiServer(tmp_path_factory.mktemp("status"), binaries) as server:
        server.kubectl("apply", "--server-side", "-f", str(ROOT / "deploy" / "crds"))
        crds = [f"crd/{plural}.{GROUP}" for plural in PLURALS.values()]
        server.kubectl("wait", "--for=condition=Established", "--timeout=30s", *crds)
        made = ControlPlane(server)
        made.namespace("shop")
        with made.controller("one"), made.controller("two"):
            yield made


PLURALS = {
    "AuthorizationPolicy": "authorizationpolicies",
    "PeerAuthentication": "peerauthentications",
}


def put(mesh: ControlPlane, kind: str, name: str, spec: Json) -> None:
    metadata = {"name": name, "namespace": "shop"}
    obj = {"apiVersion": f"{GROUP}/v1", "kind": kind, "metadata": metadata, "spec": spec}
    mesh.server.kubectl("apply", "--validate=ignore", "-f", "-", stdin=json.dumps(obj))


def read(mesh: ControlPlane, kind: str, name: str) -> Json:
    words = ("-n", "shop", "get", PLURALS[kind], name, "-o", "json", "--show-managed-fields")
    found: Json = json.loads(mesh.server.kubectl(*words))
    return found


def condition(mesh: ControlPlane, kind: str, name: str) -> Json:
    """Wait for the condition of the object's current generation."""

    def current() -> Json | None:
        obj = read(mesh, kind, name)
        for each in obj.get("status", {}).get("conditions", []):
            if each["type"] == CONDITION:
                is_current = each["observedGeneration"] == obj["metadata"]["generation"]
                return dict(each) if is_current else None
        return None

    found: Json = wait_until(current, f"the condition of {name}")
    return found


def test_undecodable_policy_has_condition_and_delays_no_other(mesh: ControlPlane) -> None:
    deep = "[" * 1200 + "]" * 1200
    body = f'''{{"apiVersion": "{GROUP}/v1", "kind": "AuthorizationPolicy",
        "metadata": {{"name": "deep", "namespace": "shop"}}, "spec": {{"x": {deep}}}}}'''
    path = f"/apis/{GROUP}/v1/namespaces/shop/authorizationpolicies"
    mesh.server.kubectl("create", "--raw", path, "-f", "-", stdin=body)
    put(mesh, "AuthorizationPolicy", "after-deep", GOOD)
    for name, status in (("after-deep", "True"), ("deep", "False")):
        words = ("-n", "shop", "get", "authorizationpolicy", name, "-o", "jsonpath={.status}")
        wait_until(lambda w=words: mesh.server.kubectl(*w), f"the condition of {name}")  # type: ignore[misc]
        (found,) = json.loads(mesh.server.kubectl(*words))["conditions"]
        assert (found["type"], found["status"]) == (CONDITION, status)
    mesh.server.kubectl("-n", "shop", "delete", "authorizationpolicy", "deep", "after-deep")


def test_condition_follows_correction_of_invalid_policy(mesh: ControlPlane) -> None:
    put(mesh, "AuthorizationPolicy", "mended", BAD)
    refused = condition(mesh, "AuthorizationPolicy", "mended")
    assert (refused["status"], refused["reason"]) == ("False", "Invalid")
    assert "spec.rules[0].from[0].source.namespaces" in refused["message"]
    assert "allows nothing" in refused["message"]
    put(mesh, "AuthorizationPolicy", "mended", GOOD)
    accepted = condition(mesh, "AuthorizationPolicy", "mended")
    assert (accepted["status"], accepted["reason"]) == ("True", "Accepted")
    shown = mesh.server.kubectl("-n", "shop", "get", "authorizationpolicy", "mended")
    assert "Accepted" in shown.splitlines()[1]


@pytest.mark.parametrize(
    ("kind", "spec", "reason", "text"),
    [
        ("AuthorizationPolicy", {"actions": "DENY"}, "Invalid", "actions"),
        ("AuthorizationPolicy", {"action": "AUDIT", "rules": [{}]}, "NoEffect", "AUDIT"),
        (
            "AuthorizationPolicy",
            {"rules": [{"to": [{"operation": {"paths": ["/x"]}}]}]},
            "UnsupportedValue",
            "paths",
        ),
        ("PeerAuthentication", {"mtls": {"mood": "STRICT"}}, "Invalid", "STRICT is in force"),
        ("PeerAuthentication", {"mtls": {"mode": "STRICT"}}, "Accepted", "in force"),
    ],
)
def test_condition_reasons(
    mesh: ControlPlane, kind: str, spec: Json, reason: str, text: str
) -> None:
    name = f"p-{reason.lower()}"
    put(mesh, kind, name, spec)
    found = condition(mesh, kind, name)
    assert found["reason"] == reason
    assert text in found["message"]


def test_condition_is_written_once_by_server_side_apply(mesh: ControlPlane) -> None:
    put(mesh, "AuthorizationPolicy", "once", BAD)
    condition(mesh, "AuthorizationPolicy", "once")
    version = read(mesh, "AuthorizationPolicy", "once")["metadata"]["resourceVersion"]
    put(mesh, "AuthorizationPolicy", "after", BAD)  # reconciled after `once`
    condition(mesh, "AuthorizationPolicy", "after")
    obj = read(mesh, "AuthorizationPolicy", "once")
    assert obj["metadata"]["resourceVersion"] == version
    ours = [m for m in obj["metadata"]["managedFields"] if m["manager"] == "ztunnel-controller"]
    assert [(m["operation"], m["subresource"]) for m in ours] == [("Apply", "status")]


def test_condition_of_another_controller_is_not_overwritten(mesh: ControlPlane) -> None:
    """istiod writes a condition of the same type."""
    put(mesh, "AuthorizationPolicy", "theirs", GOOD)
    condition(mesh, "AuthorizationPolicy", "theirs")
    path = f"/apis/{GROUP}/v1/namespaces/shop/authorizationpolicies/theirs/status"
    theirs = {"type": CONDITION, "status": "True", "reason": "Istiod", "observedGeneration": 1}
    mesh.server.request("PATCH", path, {"status": {"conditions": [theirs]}})
    wait_until(
        lambda: "owned by another controller" in mesh.log("one") + mesh.log("two"),
        "the conflict is logged",
    )
    assert condition(mesh, "AuthorizationPolicy", "theirs")["reason"] == "Istiod"


def test_policy_changed_while_controller_was_stopped_is_reconciled(mesh: ControlPlane) -> None:
    with mesh.frozen():
        put(mesh, "AuthorizationPolicy", "meanwhile", BAD)
    assert condition(mesh, "AuthorizationPolicy", "meanwhile")["reason"] == "Invalid"


@pytest.mark.parametrize(
    "words",
    [
        "patch authorizationpolicies.security.istio.io -n shop",
        "update authorizationpolicies.security.istio.io --subresource=status -n shop",
        "delete peerauthentications.security.istio.io -n shop",
        "create authorizationpolicies.security.istio.io -n shop",
    ],
)
def test_controller_cannot_change_policies(mesh: ControlPlane, words: str) -> None:
    who = "--as=system:serviceaccount:ztunnel-system:ztunnel-controller"
    assert mesh.server.try_kubectl("auth", "can-i", *words.split(), who).stdout.strip() == "no"
