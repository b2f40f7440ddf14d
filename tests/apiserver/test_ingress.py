# SPDX-License-Identifier: Apache-2.0
"""The controller serves Ingresses on a real API server, with the permissions of deploy/."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.apiserver.control_plane import ControlPlane, manifests, wait_until
from tests.support.apiserver.gateway_crds import install_crds
from tests.support.apiserver.server import ApiServer
from ztunnel.l7.kubernetes_ingress.spec import CONTROLLER_NAME

Json = dict[str, Any]
GATEWAY = "gateway.networking.k8s.io"


@pytest.fixture(scope="module")
def mesh(binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A server with the CRDs, the guard, a controller, and IngressClass `ztunnel`."""
    with ApiServer(tmp_path_factory.mktemp("ingress"), binaries) as server:
        install_crds(server)
        made = ControlPlane(server)
        server.apply(*manifests("controller-guard.yaml"))
        made.namespace("front")
        apply(made, ingress_class("ztunnel", "front", "edge"), gateway("front", "edge"))
        with made.controller("one"):
            yield made


def apply(mesh: ControlPlane, *objects: Json) -> None:
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
    mesh.server.kubectl("apply", "-f", "-", stdin=text)


def ingress_class(name: str, namespace: str, gateway: str) -> Json:
    parameters = {
        "apiGroup": GATEWAY,
        "kind": "Gateway",
        "scope": "Namespace",
        "namespace": namespace,
        "name": gateway,
    }
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "IngressClass",
        "metadata": {"name": name},
        "spec": {"controller": CONTROLLER_NAME, "parameters": parameters},
    }


def gateway(namespace: str, name: str) -> Json:
    listener = {"name": "http", "port": 80, "protocol": "HTTP"}
    listener["allowedRoutes"] = {"namespaces": {"from": "All"}}
    return {
        "apiVersion": f"{GATEWAY}/v1",
        "kind": "Gateway",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "annotations": {"networking.istio.io/service-type": "ClusterIP"},
        },
        "spec": {"gatewayClassName": "ztunnel", "listeners": [listener]},
    }


def ingress(namespace: str, name: str, host: str, **spec: Any) -> Json:
    backend = {"service": {"name": "web", "port": {"name": "http"}}}
    path = {"path": "/", "pathType": "Prefix", "backend": backend}
    rules = [{"host": host, "http": {"paths": [path]}}]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"ingressClassName": "ztunnel", "rules": rules, **spec},
    }


def web(namespace: str, port: int = 8080) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": namespace},
        "spec": {"ports": [{"name": "http", "port": port}], "selector": {"app": "web"}},
    }


def made_for(mesh: ControlPlane, kind: str, namespace: str) -> list[Json]:
    """The objects that the controller made in a namespace."""
    words = ("-n", namespace, "get", kind, "-l", "ztunnel.dev/ingress=true", "-o", "json")
    found: list[Json] = json.loads(mesh.server.kubectl(*words))["items"]
    return found


def one(mesh: ControlPlane, kind: str, namespace: str) -> Json:
    """Wait for the only object that the controller makes in a namespace."""

    def found() -> Json | None:
        objects = made_for(mesh, kind, namespace)
        return objects[0] if len(objects) == 1 else None

    result: Json = wait_until(found, f"a {kind} in {namespace}")
    return result


def test_an_ingress_is_served_by_a_route_that_follows_its_service(mesh: ControlPlane) -> None:
    mesh.namespace("routes")
    apply(mesh, web("routes"), ingress("routes", "web", "a.example"))
    route = one(mesh, "httproute", "routes")
    assert route["spec"]["hostnames"] == ["a.example"]
    (parent,) = route["spec"]["parentRefs"]
    assert (parent["namespace"], parent["name"]) == ("front", "edge")
    assert route["spec"]["rules"][0]["backendRefs"][0]["port"] == 8080
    (owner,) = route["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"]) == ("Ingress", "web")
    apply(mesh, web("routes", 9090))

    def follows() -> bool:
        rule = one(mesh, "httproute", "routes")["spec"]["rules"][0]
        return bool(rule["backendRefs"][0]["port"] == 9090)

    wait_until(follows, "the new port in the route")


def test_a_changed_route_is_replaced_and_then_left_alone(mesh: ControlPlane) -> None:
    mesh.namespace("changed")
    apply(mesh, web("changed"), ingress("changed", "web", "c.example"))
    route = one(mesh, "httproute", "changed")
    patch = json.dumps({"spec": {"hostnames": ["stolen.example"]}})
    name = route["metadata"]["name"]
    mesh.server.kubectl("-n", "changed", "patch", "httproute", name, "--type=merge", "-p", patch)

    def replaced() -> str | None:
        found = one(mesh, "httproute", "changed")
        is_same = found["spec"] == route["spec"]
        return str(found["metadata"]["generation"]) if is_same else None

    generation = wait_until(replaced, "the route as it was")
    apply(mesh, ingress("changed", "other", "d.example"))  # causes another pass
    wait_until(lambda: len(made_for(mesh, "httproute", "changed")) == 2, "a second route")
    assert str(
        next(
            each["metadata"]["generation"]
            for each in made_for(mesh, "httproute", "changed")
            if each["metadata"]["name"] == name
        )
    ) == str(generation)


def test_hosts_with_a_certificate_get_a_listener(mesh: ControlPlane) -> None:
    mesh.namespace("tls")
    tls = [{"hosts": ["b.example"], "secretName": "cert"}]
    apply(mesh, web("tls"), ingress("tls", "web", "b.example", tls=tls))
    listeners = one(mesh, "listenerset", "tls")
    (listener,) = listeners["spec"]["listeners"]
    assert (listener["port"], listener["hostname"]) == (443, "b.example")
    assert listener["tls"]["certificateRefs"][0]["name"] == "cert"
    parents = one(mesh, "httproute", "tls")["spec"]["parentRefs"]
    assert {each["name"] for each in parents} == {"edge", listeners["metadata"]["name"]}


def test_the_status_has_the_addresses_of_the_gateway(mesh: ControlPlane) -> None:
    mesh.namespace("status")
    apply(mesh, web("status"), ingress("status", "web", "c.example"))

    def service_address() -> str | None:
        words = ("-n", "front", "get", "gateway", "edge", "-o", "json")
        found = json.loads(mesh.server.kubectl(*words)).get("status") or {}
        return next((each["value"] for each in found.get("addresses") or []), None)

    def published() -> bool:
        words = ("-n", "status", "get", "ingress", "web", "-o", "json")
        status = json.loads(mesh.server.kubectl(*words))["status"]
        points = (status.get("loadBalancer") or {}).get("ingress") or []
        wanted = service_address()
        return wanted is not None and [p.get("ip") for p in points] == [wanted]

    wait_until(published, "the address in the status of the Ingress")


def test_objects_of_an_ingress_that_leaves_the_class_are_deleted(mesh: ControlPlane) -> None:
    mesh.namespace("leaving")
    apply(mesh, web("leaving"), ingress("leaving", "web", "d.example"))
    one(mesh, "httproute", "leaving")
    apply(mesh, ingress("leaving", "web", "d.example", ingressClassName="other"))
    wait_until(lambda: not made_for(mesh, "httproute", "leaving"), "the route to be deleted")


def test_an_ingress_of_another_class_is_left_alone(mesh: ControlPlane) -> None:
    mesh.namespace("other")
    apply(mesh, web("other"), ingress("other", "web", "e.example", ingressClassName="nginx"))
    mesh.namespace("later")
    apply(mesh, web("later"), ingress("later", "web", "f.example"))
    one(mesh, "httproute", "later")
    assert made_for(mesh, "httproute", "other") == []


def test_what_is_not_honoured_becomes_an_event(mesh: ControlPlane) -> None:
    mesh.namespace("events")
    unknown = ingress("events", "web", "g.example")
    unknown["metadata"]["annotations"] = {"nginx.ingress.kubernetes.io/rewrite-target": "/"}
    apply(mesh, unknown)  # its Service does not exist

    def messages() -> str | None:
        found = json.loads(mesh.server.kubectl("-n", "events", "get", "events", "-o", "json"))
        text = "\n".join(each["message"] for each in found["items"])

        return text if "rewrite-target" in text and "no port 'http'" in text else None

    wait_until(messages, "Events about the Ingress")
