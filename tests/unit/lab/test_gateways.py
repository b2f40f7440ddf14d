# SPDX-License-Identifier: Apache-2.0
"""The lab's Gateway controller."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from ztunnel.kube.objects.l7_kinds import GATEWAY_CERTIFICATES_ANNOTATION
from ztunnel.l7.names import certificate_id
from ztunnel.lab.cluster.l7.gateways import plan_gateways
from ztunnel.lab.objects import Key, Object, key_of
from ztunnel.lab.server_certificates import ROOT_FILE, tls_secret


def gateway(class_name: str = "istio-waypoint", **spec: Any) -> Object:
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": "waypoint", "namespace": "shop", "uid": "u1"},
        "spec": {
            "gatewayClassName": class_name,
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
            **spec,
        },
    }


def by_key(*objects: Object) -> dict[Key, Object]:
    return {key_of(obj): obj for obj in objects}


def test_waypoint_gets_an_account_a_deployment_and_a_service() -> None:
    plan = plan_gateways(by_key(gateway()))
    assert [obj["kind"] for obj in plan.objects] == ["ServiceAccount", "Deployment", "Service"]
    assert plan.problems == []


def test_gateway_of_another_class_runs_nothing() -> None:
    assert plan_gateways(by_key(gateway("nginx"))).objects == []


def test_scaled_deployment_keeps_its_replicas() -> None:
    objects = by_key(gateway())
    deployment = plan_gateways(objects).objects[1]
    deployment["spec"]["replicas"] = 3
    planned = plan_gateways({**objects, key_of(deployment): deployment})
    assert planned.objects[1]["spec"]["replicas"] == 3


def test_objects_of_a_deleted_gateway_are_stale() -> None:
    objects = by_key(*plan_gateways(by_key(gateway())).objects)
    plan = plan_gateways(objects)
    assert set(plan.stale) == set(objects)
    assert plan.objects == []


def test_missing_parameters_are_a_problem_and_replace_nothing() -> None:
    running = plan_gateways(by_key(gateway())).objects
    reference = {"group": "", "kind": "ConfigMap", "name": "absent"}
    broken = gateway(infrastructure={"parametersRef": reference})
    plan = plan_gateways(by_key(broken, *running))
    assert plan.objects == []
    assert "absent" in plan.problems[0]


def ingress(*references: Object) -> Object:
    listener = {
        "name": "https",
        "port": 443,
        "protocol": "HTTPS",
        "tls": {"certificateRefs": list(references)},
    }
    return gateway("ztunnel", listeners=[listener])


def stored(secret: Object) -> Object:
    """A Secret as the lab stores it."""
    data = {k: base64.b64encode(v.encode()).decode() for k, v in secret["stringData"].items()}
    return {"kind": "Secret", "metadata": secret["metadata"], "data": data}


def applied(objects: dict[Key, Object]) -> tuple[dict[Key, Object], list[str]]:
    """The objects after the plan is stored, and its problems."""
    plan = plan_gateways(objects)
    return {**objects, **by_key(*plan.objects, *plan.annotated)}, plan.problems


def test_ingress_gateway_gets_objects_named_after_gateway_and_class() -> None:
    found, _ = applied(by_key(ingress({"name": "tls"})))
    service = found[Key("Service", "shop", "waypoint-ztunnel")]["spec"]
    assert [port["port"] for port in service["ports"]] == [443]
    assert Key("Deployment", "shop", "waypoint-ztunnel") in found


def test_class_istio_of_another_controller_runs_nothing() -> None:
    other = {
        "kind": "GatewayClass",
        "metadata": {"name": "istio"},
        "spec": {"controllerName": "istio.io/gateway-controller"},
    }
    assert plan_gateways(by_key(gateway("istio"), other)).objects == []
    assert plan_gateways(by_key(gateway("istio"))).objects != []


def test_certificates_are_files_of_a_secret_and_names_in_the_annotation(tmp_path: Path) -> None:
    secret = stored(tls_secret(tmp_path / "ca", "tls", "shop", ["a.example"]))
    found, problems = applied(by_key(ingress({"name": "tls"}), secret))
    assert problems == []
    name = certificate_id("Secret", "shop", "tls")
    files = found[Key("Secret", "shop", "waypoint-ztunnel-certificates")]["data"]
    assert set(files) == {f"{name}.crt", f"{name}.key"}
    metadata = found[Key("Gateway", "shop", "waypoint")]["metadata"]
    annotation = metadata["annotations"][GATEWAY_CERTIFICATES_ANNOTATION]
    assert list(json.loads(annotation)) == [f"{name}.crt"]
    assert plan_gateways(found).annotated == []


def test_port_that_validates_clients_exists_with_the_authorities(tmp_path: Path) -> None:
    """Both become known at once."""
    secret = stored(tls_secret(tmp_path / "ca", "tls", "shop", ["a.example"]))
    edge = ingress({"name": "tls"})
    reference = {"group": "", "kind": "ConfigMap", "name": "clients"}
    edge["spec"]["tls"] = {
        "frontend": {"default": {"validation": {"caCertificateRefs": [reference]}}}
    }
    root = (tmp_path / "ca" / ROOT_FILE).read_text()
    authorities = {
        "kind": "ConfigMap",
        "metadata": {"name": "clients", "namespace": "shop"},
        "data": {"ca.crt": root},
    }
    found, problems = applied(by_key(edge, secret, authorities))
    assert problems == []
    service = found[Key("Service", "shop", "waypoint-ztunnel")]["spec"]
    assert [port["port"] for port in service["ports"]] == [443]


def test_invalid_renewal_leaves_the_previous_certificate(tmp_path: Path) -> None:
    secret = stored(tls_secret(tmp_path / "ca", "tls", "shop", ["a.example"]))
    before, _ = applied(by_key(ingress({"name": "tls"}), secret))
    broken = {**secret, "data": {**secret["data"], "tls.key": "AAAA"}}
    after, problems = applied({**before, key_of(broken): broken})
    assert "stays in use" in problems[0]
    key = Key("Secret", "shop", "waypoint-ztunnel-certificates")
    assert after[key]["data"] == before[key]["data"]


def test_certificate_of_another_namespace_needs_a_grant(tmp_path: Path) -> None:
    secret = stored(tls_secret(tmp_path / "ca", "tls", "other", ["a.example"]))
    wanted = ingress({"name": "tls", "namespace": "other"})
    found, _ = applied(by_key(wanted, secret))
    assert found[Key("Secret", "shop", "waypoint-ztunnel-certificates")]["data"] == {}
    grant = {
        "kind": "ReferenceGrant",
        "metadata": {"name": "grant", "namespace": "other"},
        "spec": {
            "from": [
                {"group": "gateway.networking.k8s.io", "kind": "Gateway", "namespace": "shop"}
            ],
            "to": [{"group": "", "kind": "Secret"}],
        },
    }
    found, _ = applied(by_key(wanted, secret, grant))
    assert len(found[Key("Secret", "shop", "waypoint-ztunnel-certificates")]["data"]) == 2


def test_invalid_listener_does_not_affect_other_gateways() -> None:
    broken = ingress({"name": "tls"})
    broken["spec"]["listeners"] = "none"
    other = gateway()
    other["metadata"] = {**other["metadata"], "name": "other"}
    found, _ = applied(by_key(broken, other))
    assert Key("Deployment", "shop", "other") in found
