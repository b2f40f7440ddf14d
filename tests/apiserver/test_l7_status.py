# SPDX-License-Identifier: Apache-2.0
"""The controller writes the status of Services, routes and policies of L7, and Events."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.apiserver.control_plane import ControlPlane, manifests, wait_until
from tests.support.apiserver.gateway_crds import install_crds
from tests.support.apiserver.server import ApiServer
from tests.support.certificate_authority import CertificateAuthority

Json = dict[str, Any]
GATEWAY = "gateway.networking.k8s.io"
OURS = "ztunnel.dev/waypoint-controller"
BOUND = "istio.io/WaypointBound"


@pytest.fixture(scope="module")
def mesh(binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A server with the CRDs, two controllers, and a ready waypoint `shop/way`."""
    with ApiServer(tmp_path_factory.mktemp("status"), binaries) as server:
        install_crds(server)
        made = ControlPlane(server)
        server.apply(*manifests("controller-guard.yaml"))
        with made.controller("one"), made.controller("two"):
            made.namespace("shop")
            put(made, "Gateway", "shop", "way", waypoint())
            ready(made, "shop")
            yield made


def waypoint(**spec: Any) -> Json:
    listener = {"name": "mesh", "port": 15008, "protocol": "HBONE"}
    return {"gatewayClassName": "istio-waypoint", "listeners": [listener], **spec}


def put(
    mesh: ControlPlane,
    kind: str,
    namespace: str,
    name: str,
    spec: Json,
    *,
    labels: Json | None = None,
    version: str = f"{GATEWAY}/v1",
) -> None:
    metadata = {"name": name, "namespace": namespace, "labels": labels or {}}
    body = {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}
    mesh.server.kubectl(
        *("apply", "--server-side", "--validate=ignore", "-f", "-"), stdin=json.dumps(body)
    )


def service(
    mesh: ControlPlane, name: str, labels: Json | None = None, namespace: str = "shop"
) -> None:
    mesh.namespace(namespace)
    ports = [{"name": "http", "port": 80}]
    spec = {"ports": ports, "selector": {"app": name}}
    put(mesh, "Service", namespace, name, spec, labels=labels, version="v1")


def ready(mesh: ControlPlane, namespace: str, name: str = "way", count: int = 1) -> None:
    """Wait for the Deployment, and set its status as the Deployment controller does."""
    words = ("-n", namespace, "get", "deployment", name, "--ignore-not-found", "-o", "name")
    wait_until(lambda: mesh.server.kubectl(*words).strip(), "the Deployment")
    status = {"replicas": count, "readyReplicas": count}
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}/status"
    mesh.server.request("PATCH", path, {"status": status})


def read(mesh: ControlPlane, kind: str, name: str, namespace: str = "shop") -> Json:
    found: Json = json.loads(mesh.server.kubectl("-n", namespace, "get", kind, name, "-o", "json"))
    return found


def bound(mesh: ControlPlane, name: str, namespace: str = "shop") -> tuple[str, str]:
    """Status and reason of a Service's condition."""
    conditions = read(mesh, "service", name, namespace).get("status", {}).get("conditions") or []
    found = [(each["status"], each["reason"]) for each in conditions if each["type"] == BOUND]
    return found[0] if found else ("", "")


def parents(mesh: ControlPlane, kind: str, name: str) -> list[dict[str, tuple[str, str]]]:
    """Per parent of ours, status and reason by type."""
    status = read(mesh, kind, name).get("status") or {}
    return [
        {each["type"]: (each["status"], each["reason"]) for each in parent["conditions"]}
        for parent in status.get("parents") or []
        if parent["controllerName"] == OURS
    ]


def http_route(mesh: ControlPlane, name: str, service_name: str, backend: str, **rule: Any) -> None:
    parent = {"group": "", "kind": "Service", "name": service_name, "port": 80}
    spec = {
        "parentRefs": [parent],
        "rules": [{"backendRefs": [{"name": backend, "port": 80}], **rule}],
    }
    put(mesh, "HTTPRoute", "shop", name, spec)


def events(mesh: ControlPlane, name: str) -> list[str]:
    """The messages of the Events on an object."""
    selector = f"--field-selector=involvedObject.name={name}"
    found = json.loads(mesh.server.kubectl("-n", "shop", "get", "events", selector, "-o", "json"))
    return [each["message"] for each in found["items"]]


def test_service_is_bound_to_its_waypoint(mesh: ControlPlane) -> None:
    service(mesh, "bound", {"istio.io/use-waypoint": "way"})
    wait_until(lambda: bound(mesh, "bound") == ("True", "WaypointAccepted"), "bound")
    service(mesh, "plain")
    put(mesh, "Service", "shop", "bound", read(mesh, "service", "bound")["spec"], version="v1")
    wait_until(lambda: bound(mesh, "bound") == ("", ""), "the condition is removed")
    assert bound(mesh, "plain") == ("", "")


def test_missing_waypoint_is_reported_until_it_is_ready(mesh: ControlPlane) -> None:
    service(mesh, "early", {"istio.io/use-waypoint": "late"})
    wait_until(lambda: bound(mesh, "early") == ("False", "WaypointMissing"), "missing")
    put(mesh, "Gateway", "shop", "late", waypoint())
    wait_until(lambda: bound(mesh, "early") == ("False", "WaypointIsNotReady"), "not ready")
    ready(mesh, "shop", "late")
    wait_until(lambda: bound(mesh, "early") == ("True", "WaypointAccepted"), "ready")
    ready(mesh, "shop", "late", 0)
    wait_until(lambda: bound(mesh, "early") == ("False", "WaypointIsNotReady"), "lost its pods")


def test_waypoint_of_another_namespace_must_admit_it(mesh: ControlPlane) -> None:
    labels = {"istio.io/use-waypoint": "way", "istio.io/use-waypoint-namespace": "shop"}
    service(mesh, "guest", labels, "elsewhere")
    wait_until(lambda: bound(mesh, "guest", "elsewhere") == ("False", "AttachmentDenied"), "denied")


def test_route_is_accepted_and_follows_its_backend(mesh: ControlPlane) -> None:
    service(mesh, "web", {"istio.io/use-waypoint": "way"})
    http_route(mesh, "web", "web", "later")
    accepted = ("True", "Accepted")
    wait_until(
        lambda: (
            parents(mesh, "httproute", "web")
            == [{"Accepted": accepted, "ResolvedRefs": ("False", "BackendNotFound")}]
        ),
        "the missing backend",
    )
    assert any("later" in message for message in events(mesh, "web"))
    service(mesh, "later")
    wait_until(
        lambda: (
            parents(mesh, "httproute", "web")
            == [{"Accepted": accepted, "ResolvedRefs": ("True", "ResolvedRefs")}]
        ),
        "the backend exists",
    )
    (parent,) = read(mesh, "httproute", "web")["status"]["parents"]
    (spec,) = read(mesh, "httproute", "web")["spec"]["parentRefs"]
    assert parent["parentRef"] == spec


def test_route_of_unknown_service_is_not_accepted(mesh: ControlPlane) -> None:
    http_route(mesh, "lost", "nowhere", "nowhere")
    wait_until(
        lambda: (
            [each.get("Accepted") for each in parents(mesh, "httproute", "lost")]
            == [("False", "NoMatchingParent")]
        ),
        "the missing parent",
    )


def test_entries_of_other_controllers_are_kept(mesh: ControlPlane) -> None:
    service(mesh, "both")
    http_route(mesh, "both", "both", "both")
    wait_until(lambda: parents(mesh, "httproute", "both"), "our entry")
    theirs = {
        "parentRef": {"group": GATEWAY, "kind": "Gateway", "name": "edge"},
        "controllerName": "example.com/other",
        "conditions": [
            {
                "type": "Accepted",
                "status": "True",
                "reason": "Accepted",
                "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
        ],
    }
    status = read(mesh, "httproute", "both")["status"]
    path = f"/apis/{GATEWAY}/v1/namespaces/shop/httproutes/both/status"
    mesh.server.request("PATCH", path, {"status": {"parents": [theirs, *status["parents"]]}})
    http_route(mesh, "both", "both", "both", matches=[{"path": {"value": "/x"}}])

    def is_current() -> bool:
        obj = read(mesh, "httproute", "both")
        found = {each["controllerName"]: each for each in obj["status"]["parents"]}
        ours = found.get(OURS)
        generation = obj["metadata"]["generation"]
        is_updated = ours is not None and all(
            each["observedGeneration"] == generation for each in ours["conditions"]
        )
        return is_updated and found.get("example.com/other") == theirs

    wait_until(is_current, "both entries")


def test_rejection_by_envoy_is_in_the_status_of_the_route(mesh: ControlPlane) -> None:
    service(mesh, "odd", {"istio.io/use-waypoint": "way"})
    http_route(mesh, "odd", "odd", "odd")
    wait_until(lambda: parents(mesh, "httproute", "odd"), "accepted")
    mesh.pod("shop", "way-1", node="node1")
    mesh.server.kubectl(*("-n", "shop", "label", "pod", "way-1", f"{GATEWAY}/gateway-name=way"))
    rejected = {
        "hash": "1",
        "resources": [
            {
                "type": "envoy.config.route.v3.RouteConfiguration",
                "name": "shop/odd|80",
                "message": "no such cluster " + "x" * 300,
            }
        ],
    }
    annotation = f"ztunnel.dev/rejected-config={json.dumps(rejected)}"
    mesh.server.kubectl("-n", "shop", "annotate", "pod", "way-1", annotation)
    wait_until(
        lambda: (
            parents(mesh, "httproute", "odd")[0].get("PartiallyInvalid")
            == ("True", "RejectedByProxy")
        ),
        "Envoy's message",
    )
    assert "no such cluster" in json.dumps(read(mesh, "httproute", "odd")["status"])
    mesh.server.kubectl("-n", "shop", "annotate", "pod", "way-1", "ztunnel.dev/rejected-config-")
    wait_until(lambda: "PartiallyInvalid" not in parents(mesh, "httproute", "odd")[0], "it is gone")


def condition(mesh: ControlPlane, kind: str, name: str) -> tuple[str, str]:
    status = read(mesh, kind, name).get("status") or {}
    found = [
        (each["status"], each["reason"])
        for each in status.get("conditions") or []
        if each["type"] == "ZtunnelAccepted"
    ]
    return found[0] if found else ("", "")


def test_service_entry_for_the_name_of_a_service_is_rejected_while_it_exists(
    mesh: ControlPlane,
) -> None:
    service(mesh, "claimed")
    port = {"number": 80, "name": "http", "protocol": "HTTP"}
    spec = {"hosts": ["claimed.shop"], "ports": [port], "resolution": "DNS"}
    put(mesh, "ServiceEntry", "shop", "thief", spec, version="networking.istio.io/v1")
    invalid = ("False", "Invalid")
    wait_until(
        lambda: condition(mesh, "serviceentry", "thief") == invalid, "the entry to be rejected"
    )
    wait_until(lambda: events(mesh, "thief"), "an Event")
    mesh.server.kubectl("-n", "shop", "delete", "service", "claimed")
    wait_until(
        lambda: condition(mesh, "serviceentry", "thief") != invalid, "the entry to be accepted"
    )


def test_service_entry_gets_virtual_addresses_beside_its_condition(mesh: ControlPlane) -> None:
    version = "networking.istio.io/v1"
    ports = [{"number": 443, "name": "tls", "protocol": "TLS"}]
    spec = {"hosts": ["a.vendor.test", "*.vendor.test"], "resolution": "DYNAMIC_DNS"} | {
        "ports": ports
    }

    def addresses(name: str = "vendor") -> list[tuple[str, str]]:
        found = read(mesh, "serviceentry", name).get("status", {}).get("addresses", [])
        return [(each["host"], each["value"]) for each in found]

    labels = {"istio.io/use-waypoint": "way"}
    put(mesh, "ServiceEntry", "shop", "vendor", spec, labels=labels, version=version)
    wait_until(lambda: len(addresses()) == 4, "two addresses for each host")
    before = addresses()
    assert {host for host, _ in before} == {"a.vendor.test", "*.vendor.test"}
    assert sum(value.startswith("240.240.") for _, value in before) == 2
    wait_until(
        lambda: any(
            each["type"] == BOUND
            for each in read(mesh, "serviceentry", "vendor")["status"].get("conditions", [])
        ),
        "the condition",
    )
    assert addresses() == before  # the condition is applied by another field manager
    opted_out = {"networking.istio.io/enable-autoallocate-ip": "false"}
    put(mesh, "ServiceEntry", "shop", "none", spec, labels=opted_out, version=version)
    smaller = {**spec, "hosts": ["a.vendor.test"]}
    put(mesh, "ServiceEntry", "shop", "vendor", smaller, labels=labels, version=version)
    wait_until(lambda: addresses() == before[:2], "the addresses of the removed host to go")
    assert addresses("none") == []


def test_request_authentication_has_a_condition(mesh: ControlPlane) -> None:
    version = "security.istio.io/v1"
    reference = [{"group": "", "kind": "Service", "name": "web"}]
    bad = {"targetRefs": reference, "jwtRules": [{"audiences": ["a"]}]}
    put(mesh, "RequestAuthentication", "shop", "bad", bad, version=version)
    wait_until(
        lambda: condition(mesh, "requestauthentication", "bad") == ("False", "Invalid"), "invalid"
    )
    put(mesh, "RequestAuthentication", "shop", "unused", {"jwtRules": []}, version=version)
    wait_until(
        lambda: condition(mesh, "requestauthentication", "unused") == ("True", "UnsupportedValue"),
        "has no effect",
    )


def test_policy_with_l7_rules_is_accepted_where_a_waypoint_enforces_it(mesh: ControlPlane) -> None:
    service(mesh, "guarded")
    spec = {
        "targetRefs": [{"group": "", "kind": "Service", "name": "guarded"}],
        "rules": [{"to": [{"operation": {"methods": ["GET"]}}]}],
    }
    put(mesh, "AuthorizationPolicy", "shop", "get", spec, version="security.istio.io/v1")
    kind = "authorizationpolicy"
    wait_until(lambda: condition(mesh, kind, "get")[1] == "UnsupportedValue", "by the node")
    service(mesh, "guarded", {"istio.io/use-waypoint": "way"})
    wait_until(lambda: condition(mesh, kind, "get") == ("True", "Accepted"), "by the waypoint")


def test_backend_tls_policy_has_the_waypoint_as_ancestor(mesh: ControlPlane) -> None:
    service(mesh, "secure", {"istio.io/use-waypoint": "way"})
    target = [{"group": "", "kind": "Service", "name": "secure"}]
    system = {"hostname": "secure.example.com", "wellKnownCACertificates": "System"}

    def accepted() -> list[tuple[str, tuple[str, str]]]:
        status = read(mesh, "backendtlspolicy", "secure").get("status") or {}
        return [
            (each["ancestorRef"]["name"], (condition["status"], condition["reason"]))
            for each in status.get("ancestors") or []
            for condition in each["conditions"]
            if condition["type"] == "Accepted"
        ]

    put(mesh, "BackendTLSPolicy", "shop", "secure", {"targetRefs": target, "validation": system})
    wait_until(lambda: accepted() == [("way", ("True", "Accepted"))], "accepted")
    reference = {"group": "", "kind": "ConfigMap", "name": "ca"}
    private = {"hostname": "secure.example.com", "caCertificateRefs": [reference]}
    mesh.server.kubectl("-n", "shop", "delete", "backendtlspolicy", "secure")
    put(mesh, "BackendTLSPolicy", "shop", "secure", {"targetRefs": target, "validation": private})
    wait_until(lambda: accepted() == [("way", ("False", "NoValidCACertificate"))], "rejected")
    mesh.server.kubectl("-n", "shop", "delete", "backendtlspolicy", "secure")


def test_certificates_of_config_maps_are_published(mesh: ControlPlane) -> None:
    service(mesh, "private", {"istio.io/use-waypoint": "way"})
    one, two = CertificateAuthority("one"), CertificateAuthority("two")
    config_map: Json = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "authority", "namespace": "shop"},
        "data": {"ca.crt": one.key_pem + one.pem},
    }
    reference = {"group": "", "kind": "ConfigMap", "name": "authority"}
    validation = {"hostname": "private.example.com", "caCertificateRefs": [reference]}
    target = [{"group": "", "kind": "Service", "name": "private"}]
    spec = {"targetRefs": target, "validation": validation}

    def state() -> tuple[str, dict[str, tuple[str, str]]]:
        """The annotation, and the conditions."""
        obj = read(mesh, "backendtlspolicy", "private")
        annotations = obj["metadata"].get("annotations") or {}
        found = {
            each["type"]: (each["status"], each["reason"])
            for ancestor in (obj.get("status") or {}).get("ancestors") or []
            for each in ancestor["conditions"]
        }
        return annotations.get("ztunnel.dev/ca-certificates", ""), found

    missing = {
        "Accepted": ("False", "NoValidCACertificate"),
        "ResolvedRefs": ("False", "InvalidCACertificateRef"),
    }
    valid = {"Accepted": ("True", "Accepted"), "ResolvedRefs": ("True", "ResolvedRefs")}
    put(mesh, "BackendTLSPolicy", "shop", "private", spec)
    wait_until(lambda: state() == ("", missing), lambda: f"no ConfigMap, found {state()}")
    mesh.server.apply(config_map)
    wait_until(lambda: state() == (one.pem, valid), lambda: f"published, found {state()}", 10)
    config_map["data"] = {"ca.crt": two.pem}
    mesh.server.apply(config_map)
    wait_until(lambda: state() == (two.pem, valid), lambda: f"updated, found {state()}", 10)
    managers = {
        each["manager"]: json.dumps(each["fieldsV1"])
        for each in read_with_managers(mesh, "backendtlspolicy", "private")
    }
    assert "f:ztunnel.dev/ca-certificates" in managers["ztunnel-backend-certificates"]
    reference["kind"] = "Secret"
    put(mesh, "BackendTLSPolicy", "shop", "private", spec)
    other_kind = {**missing, "ResolvedRefs": ("False", "InvalidKind")}
    wait_until(lambda: state() == ("", other_kind), lambda: f"removed, found {state()}")


def read_with_managers(mesh: ControlPlane, kind: str, name: str) -> list[Json]:
    words = ("-n", "shop", "get", kind, name, "-o", "json", "--show-managed-fields")
    found: list[Json] = json.loads(mesh.server.kubectl(*words))["metadata"]["managedFields"]
    return found


def test_udp_route_is_not_accepted(mesh: ControlPlane) -> None:
    service(mesh, "dns")
    spec = {
        "parentRefs": [{"group": "", "kind": "Service", "name": "dns", "port": 80}],
        "rules": [{"backendRefs": [{"name": "dns", "port": 80}]}],
    }
    put(mesh, "UDPRoute", "shop", "dns", spec)
    wait_until(
        lambda: parents(mesh, "udproute", "dns") == [{"Accepted": ("False", "UnsupportedValue")}],
        "UDP",
    )


def test_destination_rule_has_a_condition(mesh: ControlPlane) -> None:
    service(mesh, "web", {"istio.io/use-waypoint": "way"})
    version = "networking.istio.io/v1"
    rule = {"host": "web", "trafficPolicy": {"loadBalancer": {"simple": "LEAST_REQUEST"}}}
    put(mesh, "DestinationRule", "shop", "web", rule, version=version)
    wait_until(lambda: condition(mesh, "destinationrule", "web") == ("True", "Accepted"), "valid")
    put(mesh, "DestinationRule", "shop", "lost", {**rule, "host": "nowhere"}, version=version)
    wait_until(
        lambda: condition(mesh, "destinationrule", "lost") == ("True", "UnsupportedValue"),
        "its host does not exist",
    )


def test_500_routes_of_a_namespace_settle_without_a_hot_loop(mesh: ControlPlane) -> None:
    service(mesh, "many", {"istio.io/use-waypoint": "way"}, "many")
    routes = [
        {
            "apiVersion": f"{GATEWAY}/v1",
            "kind": "HTTPRoute",
            "metadata": {"name": f"r{index}", "namespace": "many"},
            "spec": {
                "parentRefs": [{"group": "", "kind": "Service", "name": "many"}],
                "rules": [{"backendRefs": [{"name": "many", "port": 80}]}],
            },
        }
        for index in range(500)
    ]
    items = {"apiVersion": "v1", "kind": "List", "items": routes}
    mesh.server.kubectl("create", "-f", "-", stdin=json.dumps(items))

    def written() -> list[str]:
        text = mesh.server.kubectl("-n", "many", "get", "httproutes", "-o", "json")
        return [
            each["metadata"]["resourceVersion"]
            for each in json.loads(text)["items"]
            if each.get("status", {}).get("parents")
        ]

    start = time.monotonic()
    wait_until(lambda: len(written()) == 500, lambda: f"500, found {len(written())}", 90)
    print(f"500 routes have a status after {time.monotonic() - start:.1f} s")
    before = written()
    service(mesh, "unrelated")
    time.sleep(2)
    assert written() == before
