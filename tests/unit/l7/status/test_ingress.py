# SPDX-License-Identifier: Apache-2.0
"""The status of ingress gateways and ListenerSets, in the words of the Gateway API."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ztunnel.kube.objects.l7_kinds import GATEWAY_CERTIFICATES_ANNOTATION
from ztunnel.l7.names import CertificateSource, ca_id, certificate_id
from ztunnel.l7.objects import l7_object
from ztunnel.l7.routing.attachment import RouteIndex
from ztunnel.l7.status.facts import CertificateError, CertificateFact, GatewayFacts, ip_addresses
from ztunnel.l7.status.ingress import IngressStatus, ingress_status
from ztunnel.l7.store import L7Store

Json = dict[str, Any]
SPACE, NAME = "shop", "web"
GROUP = "gateway.networking.k8s.io"
NOW = "2026-11-30T19:00:00Z"
READY = GatewayFacts(addresses=ip_addresses(["192.0.2.1"]), ready=1)
HTTP = {"name": "http", "port": 80, "protocol": "HTTP"}
CERT = certificate_id("Secret", SPACE, "cert")


def https(name: str = "https", port: int = 443, secret: str = "cert", **more: Any) -> Json:
    tls = {"certificateRefs": [{"name": secret}]}
    return {"name": name, "port": port, "protocol": "HTTPS", "tls": tls, **more}


def gateway(*listeners: Json, files: tuple[str, ...] = (), **spec: Any) -> Json:
    known = json.dumps(dict.fromkeys(files, "0" * 16))
    return {
        "kind": "Gateway",
        "metadata": {
            "name": NAME,
            "namespace": SPACE,
            "generation": 3,
            "annotations": {GATEWAY_CERTIFICATES_ANNOTATION: known},
        },
        "spec": {"gatewayClassName": "ztunnel", "listeners": list(listeners), **spec},
    }


def listener_set(name: str, *listeners: Json, space: str = SPACE, created: str = "") -> Json:
    parent = {"name": NAME, "namespace": SPACE}
    return {
        "kind": "ListenerSet",
        "metadata": {
            "name": name,
            "namespace": space,
            "generation": 1,
            "creationTimestamp": created,
        },
        "spec": {"parentRef": parent, "listeners": list(listeners)},
    }


def route(name: str, kind: str = "HTTPRoute", parent: Json | None = None) -> Json:
    parents = [{"name": NAME, "namespace": SPACE, **(parent or {})}]
    return {
        "kind": kind,
        "metadata": {"name": name, "namespace": SPACE},
        "spec": {"parentRefs": parents, "rules": [{"backendRefs": [{"name": "a", "port": 80}]}]},
    }


def status(*objects: Json, facts: GatewayFacts = READY) -> IngressStatus:
    store, index = L7Store(), RouteIndex()
    for each in objects:
        store.put(l7_object(each))
    index.refresh(store)
    found = store.get("Gateway", SPACE, NAME)
    assert found is not None
    return ingress_status(store, found, facts, index)


def conditions(entry: Json) -> dict[str, tuple[str, str]]:
    return {each["type"]: (each["status"], each["reason"]) for each in entry["conditions"]}


def rendered(*objects: Json, facts: GatewayFacts = READY) -> Json:
    return status(*objects, facts=facts).of_gateway({}, NOW)


def listeners(found: Json) -> dict[str, dict[str, tuple[str, str]]]:
    return {each["name"]: conditions(each) for each in found["listeners"]}


def sets(*objects: Json, facts: GatewayFacts = READY) -> dict[str, Json]:
    found = status(*objects, facts=facts)
    return {each.obj.name: found.of_set(each, {}, NOW) for each in found.sets}


def test_valid_gateway_with_ready_pod_is_programmed() -> None:
    found = rendered(gateway(HTTP), route("one"))
    assert conditions(found) == {
        "Accepted": ("True", "Accepted"),
        "Programmed": ("True", "Programmed"),
    }
    assert found["addresses"] == [{"type": "IPAddress", "value": "192.0.2.1"}]
    (listener,) = found["listeners"]
    assert listener["attachedRoutes"] == 1
    assert listener["supportedKinds"] == [
        {"group": GROUP, "kind": "HTTPRoute"},
        {"group": GROUP, "kind": "GRPCRoute"},
    ]
    assert conditions(listener) == {
        "Accepted": ("True", "Accepted"),
        "Conflicted": ("False", "NoConflicts"),
        "Programmed": ("True", "Programmed"),
        "ResolvedRefs": ("True", "ResolvedRefs"),
    }
    assert {each["observedGeneration"] for each in listener["conditions"]} == {3}


def test_unknown_protocol_concerns_its_listener_only() -> None:
    bad = {"name": "bad", "port": 1111, "protocol": "INVALID"}
    found = rendered(gateway(HTTP, bad))
    assert conditions(found)["Accepted"] == ("True", "ListenersNotValid")
    assert listeners(found)["bad"]["Accepted"] == ("False", "UnsupportedProtocol")
    assert listeners(found)["http"]["Programmed"] == ("True", "Programmed")
    assert found["listeners"][1]["supportedKinds"] == []
    alone = rendered(gateway(bad))
    assert conditions(alone) == {
        "Accepted": ("False", "ListenersNotValid"),
        "Programmed": ("False", "Invalid"),
    }


@pytest.mark.parametrize(
    ("kinds", "supported"),
    [(["InvalidRoute"], []), (["InvalidRoute", "HTTPRoute"], ["HTTPRoute"])],
)
def test_unknown_kind_of_routes_is_reported(kinds: list[str], supported: list[str]) -> None:
    allowed = {"allowedRoutes": {"kinds": [{"kind": kind} for kind in kinds]}}
    (listener,) = rendered(gateway({**HTTP, **allowed}))["listeners"]
    assert conditions(listener)["ResolvedRefs"] == ("False", "InvalidRouteKinds")
    assert [each["kind"] for each in listener["supportedKinds"]] == supported


def test_passthrough_supports_no_tcp_routes() -> None:
    kinds = {"allowedRoutes": {"kinds": [{"kind": "TCPRoute"}, {"kind": "TLSRoute"}]}}
    tls = {"name": "tls", "port": 443, "protocol": "TLS", "tls": {"mode": "Passthrough"}, **kinds}
    (listener,) = rendered(gateway(tls))["listeners"]
    assert conditions(listener)["ResolvedRefs"] == ("False", "InvalidRouteKinds")
    assert [each["kind"] for each in listener["supportedKinds"]] == ["TLSRoute"]


def test_listener_without_usable_certificate_is_not_programmed_but_counts_routes() -> None:
    found = rendered(gateway(https()), route("one"))
    assert listeners(found)["https"] == {
        "Accepted": ("True", "Accepted"),
        "Conflicted": ("False", "NoConflicts"),
        "Programmed": ("False", "Invalid"),
        "ResolvedRefs": ("False", "InvalidCertificateRef"),
    }
    assert found["listeners"][0]["attachedRoutes"] == 1
    assert conditions(found)["Programmed"] == ("False", "Invalid")


def test_invalid_new_certificate_is_reported_while_the_old_one_serves() -> None:
    fact = CertificateFact(True, CertificateError.INVALID, "Secret shop/cert: no key")
    facts = GatewayFacts(
        READY.problems, READY.addresses, ready=1, certificates={f"{CERT}.crt": fact}
    )
    found = rendered(gateway(https(), files=(f"{CERT}.crt",)), facts=facts)
    assert listeners(found)["https"]["ResolvedRefs"] == ("False", "InvalidCertificateRef")
    assert listeners(found)["https"]["Programmed"] == ("True", "Programmed")
    assert conditions(found)["Programmed"] == ("True", "Programmed")


def frontend(**ref: str) -> Json:
    return {"validation": {"caCertificateRefs": [{"kind": "ConfigMap", **ref}]}}


@pytest.mark.parametrize(
    ("ref", "reason"),
    [
        ({"name": "missing"}, "InvalidCACertificateRef"),
        ({"name": "a", "kind": "Service"}, "InvalidCACertificateKind"),
        ({"name": "a", "namespace": "other"}, "RefNotPermitted"),
    ],
)
def test_invalid_client_validation_concerns_https_at_its_port_only(
    ref: dict[str, str], reason: str
) -> None:
    bundle = ca_id([CertificateSource("ConfigMap", SPACE, "ca")])
    tls = {
        "frontend": {
            "default": frontend(name="ca"),
            "perPort": [{"port": 8443, "tls": frontend(**ref)}],
        }
    }
    found = listeners(
        rendered(
            gateway(
                HTTP,
                https(),
                https("other", 8443),
                tls=tls,
                files=(f"{CERT}.crt", f"{bundle}.ca"),
            )
        )
    )
    assert found["other"] == {
        "Accepted": ("False", "NoValidCACertificate"),
        "Conflicted": ("False", "NoConflicts"),
        "Programmed": ("False", "Invalid"),
        "ResolvedRefs": ("False", reason),
    }
    for name in ("http", "https"):
        assert found[name]["Programmed"] == ("True", "Programmed")


def test_insecure_validation_of_clients_is_a_condition_of_the_gateway() -> None:
    validation = frontend(name="ca")["validation"] | {"mode": "AllowInsecureFallback"}
    tls = {"frontend": {"default": {"validation": validation}}}
    found = conditions(rendered(gateway(HTTP, tls=tls)))
    assert found["InsecureFrontendValidationMode"] == ("True", "ConfigurationChanged")


@pytest.mark.parametrize(
    ("ref", "files", "state"),
    [
        ({"name": "cert"}, (f"{CERT}.crt",), ("True", "ResolvedRefs")),
        ({"name": "cert"}, (), ("False", "InvalidClientCertificateRef")),
        ({"name": "cert", "kind": "Wrong"}, (), ("False", "InvalidClientCertificateRef")),
        ({"name": "cert", "namespace": "other"}, (), ("False", "RefNotPermitted")),
    ],
)
def test_client_certificate_towards_backends_does_not_affect_acceptance(
    ref: dict[str, str], files: tuple[str, ...], state: tuple[str, str]
) -> None:
    tls = {"backend": {"clientCertificateRef": ref}}
    assert conditions(rendered(gateway(HTTP, tls=tls, files=files))) == {
        "Accepted": ("True", "Accepted"),
        "Programmed": ("True", "Programmed"),
        "ResolvedRefs": state,
    }


def test_unsupported_and_unusable_addresses() -> None:
    odd = [{"type": "example.com/x", "value": "y"}, {"value": "192.0.2.9"}]
    found = conditions(rendered(gateway(HTTP, addresses=odd)))
    assert found["Accepted"] == ("False", "UnsupportedAddress")
    facts = GatewayFacts(ready=1, address_error="the gateway has not got 192.0.2.9")
    found = conditions(rendered(gateway(HTTP, addresses=odd[1:]), facts=facts))
    assert found == {
        "Accepted": ("True", "Accepted"),
        "Programmed": ("False", "AddressNotUsable"),
    }


def test_gateway_without_pods_or_address_is_not_programmed() -> None:
    found = rendered(gateway(HTTP), facts=GatewayFacts(addresses=READY.addresses, ready=0))
    assert conditions(found)["Programmed"] == ("False", "Pending")
    assert listeners(found)["http"]["Programmed"] == ("False", "Pending")
    found = rendered(gateway(HTTP), facts=GatewayFacts(ready=1))
    assert conditions(found)["Programmed"] == ("False", "AddressNotAssigned")


def named(name: str, hostname: str = "", protocol: str = "HTTP") -> Json:
    return {"name": name, "port": 80, "protocol": protocol, "hostname": hostname}


def test_sets_are_not_admitted_by_default() -> None:
    objects = gateway(HTTP), listener_set("one", named("a", "a.example"))
    assert conditions(sets(*objects)["one"]) == {
        "Accepted": ("False", "NotAllowed"),
        "Programmed": ("False", "NotAllowed"),
    }
    assert rendered(*objects)["attachedListenerSets"] == 0


@pytest.mark.parametrize(
    ("conflicting", "reason"),
    [
        (named("dup", "dup.example"), "HostnameConflict"),
        (named("dup", protocol="TCP"), "ProtocolConflict"),
    ],
)
def test_later_listener_of_a_conflict_is_not_accepted(conflicting: Json, reason: str) -> None:
    own = named("first", "dup.example")
    objects = (
        gateway(own, allowedListeners={"namespaces": {"from": "Same"}}),
        listener_set("mixed", named("ok", "ok.example"), conflicting),
        listener_set("none", conflicting, created="2026-11-30T18:00:00Z"),
    )
    found = sets(*objects)
    for name in ("mixed", "none"):
        assert listeners(found[name])["dup"] == {
            "Accepted": ("False", reason),
            "Conflicted": ("True", reason),
            "Programmed": ("False", reason),
            "ResolvedRefs": ("True", "ResolvedRefs"),
        }
    assert conditions(found["mixed"]) == {
        "Accepted": ("True", "ListenersNotValid"),
        "Programmed": ("True", "Programmed"),
    }
    assert conditions(found["none"]) == {
        "Accepted": ("False", "ListenersNotValid"),
        "Programmed": ("False", "ListenersNotValid"),
    }
    whole = rendered(*objects)
    assert whole["attachedListenerSets"] == 1
    assert listeners(whole)["first"]["Conflicted"] == ("False", "NoConflicts")


def test_routes_of_a_set_count_at_its_own_listeners_only() -> None:
    objects = (
        gateway(named("own", "own.example"), allowedListeners={"namespaces": {"from": "Same"}}),
        listener_set("one", named("a", "a.example"), named("b", "b.example")),
        route("both", parent={"kind": "ListenerSet", "name": "one"}),
    )
    counts = {each["name"]: each["attachedRoutes"] for each in sets(*objects)["one"]["listeners"]}
    assert counts == {"a": 1, "b": 1}
    assert [each["attachedRoutes"] for each in rendered(*objects)["listeners"]] == [0]


def test_set_whose_only_certificate_needs_a_grant_is_not_valid() -> None:
    tls = {"certificateRefs": [{"name": "cert", "namespace": "vault"}]}
    foreign = {"name": "a", "port": 443, "protocol": "HTTPS", "tls": tls}
    objects = (
        gateway(HTTP, allowedListeners={"namespaces": {"from": "All"}}),
        listener_set("one", foreign, space="other"),
    )
    found = sets(*objects)["one"]
    assert conditions(found)["Accepted"] == ("False", "ListenersNotValid")
    assert listeners(found)["a"]["ResolvedRefs"] == ("False", "RefNotPermitted")
