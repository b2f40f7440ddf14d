# SPDX-License-Identifier: Apache-2.0
"""Ingresses as HTTPRoutes and ListenerSets."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.kube.objects.fields import TranslateError
from ztunnel.l7.kubernetes_ingress.selection import served_ingresses
from ztunnel.l7.kubernetes_ingress.spec import (
    CONTROLLER_NAME,
    MAX_HOSTS,
    class_name,
    ingress_class,
    parse_ingress,
)
from ztunnel.l7.kubernetes_ingress.translation import MAX_RULES, Translation, translate

PORTS = {("shop", "web", "http"): 8080}


def path(
    text: str | None, kind: str = "Prefix", service: str = "web", port: Any = 80
) -> dict[str, Any]:
    named = {"name": port} if isinstance(port, str) else {"number": port}
    backend = {"service": {"name": service, "port": named}}
    found: dict[str, Any] = {"pathType": kind, "backend": backend}
    return found | ({"path": text} if text is not None else {})


def ingress(name: str = "web", namespace: str = "shop", **spec: Any) -> dict[str, Any]:
    metadata = {
        "name": name,
        "namespace": namespace,
        "uid": f"uid-{name}",
        "creationTimestamp": "2026-11-30T00:00:00Z",
        "annotations": spec.pop("annotations", {}),
    }
    return {"kind": "Ingress", "metadata": metadata, "spec": spec}


def rule(host: str, *paths: dict[str, Any]) -> dict[str, Any]:
    return ({"host": host} if host else {}) | {"http": {"paths": list(paths)}}


def run(*objects: dict[str, Any]) -> Translation:
    parsed = [parse_ingress(each) for each in objects]
    return translate(parsed, "mesh/front", lambda *key: PORTS.get(key))


def specs(found: Translation, kind: str) -> list[dict[str, Any]]:
    return [each["spec"] for each in found.objects if each["kind"] == kind]


def test_a_rule_becomes_a_route_of_the_gateway() -> None:
    found = run(ingress(rules=[rule("a.example", path("/x"), path("/y", "Exact", port=81))]))
    (route,) = specs(found, "HTTPRoute")
    assert route["hostnames"] == ["a.example"]
    (parent,) = route["parentRefs"]
    assert (parent["kind"], parent["namespace"], parent["name"]) == ("Gateway", "mesh", "front")
    assert [each["matches"][0]["path"] for each in route["rules"]] == [
        {"type": "PathPrefix", "value": "/x"},
        {"type": "Exact", "value": "/y"},
    ]
    assert route["rules"][1]["backendRefs"] == [{"name": "web", "port": 81}]
    assert found.problems == ()


def test_objects_are_owned_by_their_ingress() -> None:
    found = run(ingress(rules=[rule("", path("/"))], tls=[{"secretName": "cert"}]))
    for each in found.objects:
        assert each["metadata"]["namespace"] == "shop"
        assert [owner["uid"] for owner in each["metadata"]["ownerReferences"]] == ["uid-web"]


def test_a_path_without_text_matches_all_paths() -> None:
    (route,) = specs(
        run(ingress(rules=[rule("", path(None, "ImplementationSpecific"))])), "HTTPRoute"
    )
    assert route["rules"][0]["matches"][0]["path"] == {"type": "PathPrefix", "value": "/"}
    assert "hostnames" not in route


def test_a_port_is_resolved_by_name() -> None:
    (route,) = specs(run(ingress(rules=[rule("", path("/", port="http"))])), "HTTPRoute")
    assert route["rules"][0]["backendRefs"] == [{"name": "web", "port": 8080}]


def test_an_unknown_port_name_leaves_a_rule_without_backend() -> None:
    found = run(ingress(rules=[rule("", path("/", port="grpc"))]))
    (route,) = specs(found, "HTTPRoute")
    assert "backendRefs" not in route["rules"][0]
    assert "has no port 'grpc'" in str(found.problems[0])


def test_a_resource_backend_is_reported() -> None:
    backend = {"resource": {"apiGroup": "k8s.example", "kind": "Bucket", "name": "static"}}
    found = run(ingress(defaultBackend=backend))
    assert [each.field for each in found.problems] == ["spec.defaultBackend.resource"]


def test_a_default_backend_serves_what_no_rule_matches() -> None:
    backend = {"service": {"name": "rest", "port": {"number": 80}}}
    found = run(ingress(rules=[rule("a.example", path("/x"))], defaultBackend=backend))
    for route in specs(found, "HTTPRoute"):
        assert route["rules"][-1]["matches"][0]["path"]["value"] == "/"
        assert route["rules"][-1]["backendRefs"][0]["name"] == "rest"
    assert [r.get("hostnames") for r in specs(found, "HTTPRoute")] == [["a.example"], None]


def test_a_rule_of_another_ingress_precedes_a_default_backend() -> None:
    backend = {"service": {"name": "rest", "port": {"number": 80}}}
    first = ingress("a", rules=[rule("a.example", path("/x"))], defaultBackend=backend)
    second = ingress("b", rules=[rule("a.example", path("/"))])
    routes = [r for r in specs(run(first, second), "HTTPRoute") if r.get("hostnames")]
    assert [len(route["rules"]) for route in routes] == [1, 1]


def test_an_ingress_of_another_namespace_does_not_disable_a_default_backend() -> None:
    backend = {"service": {"name": "rest", "port": {"number": 80}}}
    first = ingress("a", rules=[rule("a.example", path("/x"))], defaultBackend=backend)
    second = ingress("b", "tenant", rules=[rule("a.example", path("/"))])
    routes = [r for r in specs(run(first, second), "HTTPRoute") if r.get("hostnames")]
    assert [len(route["rules"]) for route in routes] == [2, 1]


def test_many_paths_become_several_routes() -> None:
    paths = [path(f"/{number}") for number in range(2 * MAX_RULES + 1)]
    found = run(ingress(rules=[rule("a.example", *paths)]))
    assert [len(r["rules"]) for r in specs(found, "HTTPRoute")] == [MAX_RULES, MAX_RULES, 1]
    names = [each["metadata"]["name"] for each in found.objects]
    assert len(set(names)) == len(names)


def test_ingresses_of_a_namespace_share_the_listener_of_a_host() -> None:
    tls = [{"hosts": ["a.example"], "secretName": "cert"}]
    first = ingress("a", rules=[rule("a.example", path("/a"))], tls=tls)
    second = ingress("b", rules=[rule("a.example", path("/b"))], tls=tls)
    found = run(first, second)
    (listeners,) = [each for each in found.objects if each["kind"] == "ListenerSet"]
    assert [o["name"] for o in listeners["metadata"]["ownerReferences"]] == ["a", "b"]
    (listener,) = listeners["spec"]["listeners"]
    assert listener["hostname"] == "a.example"
    assert listener["tls"]["certificateRefs"] == [{"name": "cert"}]
    for route in specs(found, "HTTPRoute"):
        assert [each["kind"] for each in route["parentRefs"]] == ["Gateway", "ListenerSet"]
        assert route["parentRefs"][1]["name"] == listeners["metadata"]["name"]


def test_a_second_secret_for_a_host_is_reported() -> None:
    first = ingress("a", tls=[{"hosts": ["a.example"], "secretName": "one"}])
    second = ingress("b", tls=[{"hosts": ["a.example"], "secretName": "two"}])
    found = run(second, first)
    assert len(specs(found, "ListenerSet")) == 1
    assert [(each.name, each.field) for each in found.problems] == [("b", "spec.tls[0].secretName")]


def test_certificates_of_other_namespaces_are_not_used() -> None:
    tls = [{"hosts": ["a.example"], "secretName": "cert"}]
    other = ingress("a", "bank", rules=[rule("a.example", path("/"))], tls=tls)
    mine = ingress("b", rules=[rule("a.example", path("/b"))])
    found = run(other, mine)
    (route,) = [o for o in found.objects if o["metadata"]["namespace"] == "shop"]
    assert [each["kind"] for each in route["spec"]["parentRefs"]] == ["Gateway"]


def test_annotations_of_other_controllers_are_reported() -> None:
    name = "nginx.ingress.kubernetes.io/rewrite-target"
    found = run(ingress(annotations={name: "/", "example.com/owner": "me"}))
    assert [each.field for each in found.problems] == [f"metadata.annotations[{name}]"]


@pytest.mark.parametrize(
    "spec",
    [
        {"rules": [rule("", path("x"))]},
        {"rules": [rule("", path("/", "Regex"))]},
        {"rules": "x"},
        {"tls": [{"hosts": "a"}]},
    ],
)
def test_an_invalid_spec_is_rejected(spec: dict[str, Any]) -> None:
    with pytest.raises(TranslateError):
        parse_ingress(ingress(**spec))


def test_a_class_names_its_gateway() -> None:
    parameters = {
        "apiGroup": "gateway.networking.k8s.io",
        "kind": "Gateway",
        "scope": "Namespace",
        "namespace": "mesh",
        "name": "front",
    }
    spec = {"controller": CONTROLLER_NAME, "parameters": parameters}
    found = ingress_class({"metadata": {"name": "ztunnel"}, "spec": spec})
    assert found is not None
    assert (found.gateway, found.error) == ("mesh/front", "")
    spec["parameters"] = {**parameters, "kind": "ConfigMap"}
    invalid = ingress_class({"metadata": {"name": "ztunnel"}, "spec": spec})
    assert invalid is not None
    assert "want Gateway" in invalid.error
    assert ingress_class({"metadata": {"name": "x"}, "spec": {"controller": "x"}}) is None


def test_the_annotation_precedes_the_class_of_the_spec() -> None:
    annotations = {"kubernetes.io/ingress.class": "ztunnel"}
    assert class_name(ingress(ingressClassName="nginx", annotations=annotations)) == "ztunnel"
    assert class_name(ingress(ingressClassName="nginx")) == "nginx"
    assert class_name(ingress()) == ""


def test_number_of_objects_of_an_ingress_is_limited() -> None:
    names = [f"h{number}.example" for number in range(MAX_HOSTS + 1)]
    with pytest.raises(TranslateError, match="rules"):
        parse_ingress(ingress(rules=[rule(name, path("/")) for name in names]))
    with pytest.raises(TranslateError, match="tls"):
        parse_ingress(ingress(tls=[{"hosts": names, "secretName": "web"}]))


# A JSON value in place of any field
odd = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)
FIELDS = (
    *(("rules",), ("rules", 0), ("rules", 0, "host"), ("rules", 0, "http")),
    *(("rules", 0, "http", "paths"), ("rules", 0, "http", "paths", 0)),
    *(("rules", 0, "http", "paths", 0, name) for name in ("path", "pathType", "backend")),
    *(("rules", 0, "http", "paths", 0, "backend", name) for name in ("service", "resource")),
    ("rules", 0, "http", "paths", 0, "backend", "service", "port"),
    *(("tls",), ("tls", 0), ("tls", 0, "hosts"), ("tls", 0, "secretName")),
    *(("defaultBackend",), ("defaultBackend", "service"), ("ingressClassName",)),
)


@given(st.sampled_from(FIELDS), odd)
def test_ingress_of_any_content_is_translated_or_rejected(
    field: tuple[str | int, ...], value: object
) -> None:
    spec: dict[str, Any] = {
        "ingressClassName": "mesh",
        "rules": [rule("a.example", path("/x"))],
        "tls": [{"hosts": ["a.example"], "secretName": "web"}],
        "defaultBackend": path("/")["backend"],
    }
    node: Any = spec
    for name in field[:-1]:
        node = node[name]
    node[field[-1]] = value
    hostile = {**ingress(name="hostile", namespace="tenant"), "spec": spec}
    good = ingress(rules=[rule("b.example", path("/"))])
    problems: list[str] = []
    parameters = {
        "apiGroup": "gateway.networking.k8s.io",
        "kind": "Gateway",
        "scope": "Namespace",
        "namespace": "mesh",
        "name": "front",
    }
    served = served_ingresses(
        [hostile, {**good, "spec": {**good["spec"], "ingressClassName": "mesh"}}],
        [
            {
                "kind": "IngressClass",
                "metadata": {"name": "mesh"},
                "spec": {"controller": CONTROLLER_NAME, "parameters": parameters},
            }
        ],
        lambda _, text: problems.append(text),
    )
    found = translate([each.ingress for each in served], "mesh/front", lambda *_: 80)
    assert len(served) == 2 or problems or field == ("ingressClassName",)
    assert [
        each["spec"]["hostnames"]
        for each in found.objects
        if each["kind"] == "HTTPRoute" and each["metadata"]["namespace"] == "shop"
    ] == [["b.example"]]
