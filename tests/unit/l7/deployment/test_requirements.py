# SPDX-License-Identifier: Apache-2.0
"""What the listeners of an ingress gateway require of its objects."""

from __future__ import annotations

from typing import Any

from ztunnel.l7.deployment.requirements import Requirements, requirements
from ztunnel.l7.deployment.service import GatewayPort, Transport
from ztunnel.l7.names import CertificateSource, ca_id
from ztunnel.l7.objects import l7_object
from ztunnel.l7.store import L7Store

API = "gateway.networking.k8s.io/v1"
Object = dict[str, Any]


def gateway(*listeners: Object, **spec: Any) -> Object:
    spec = {"gatewayClassName": "ztunnel", "listeners": list(listeners), **spec}
    metadata = {"name": "web", "namespace": "shop"}
    return {"apiVersion": API, "kind": "Gateway", "metadata": metadata, "spec": spec}


def https(listener: str, *, host: str = "", **ref: str) -> Object:
    found = {"port": 443, "protocol": "HTTPS", "tls": {"certificateRefs": [ref]}}
    return {**found, "name": listener, **({"hostname": host} if host else {})}


def grant(namespace: str) -> Object:
    spec = {
        "from": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "namespace": "shop"}],
        "to": [{"group": "", "kind": "Secret"}],
    }
    metadata = {"name": "grant", "namespace": namespace}
    return {"apiVersion": API, "kind": "ReferenceGrant", "metadata": metadata, "spec": spec}


def test_http3_adds_udp_to_https_listeners() -> None:
    made = gateway(https("c", name="tls"), {"name": "a", "port": 80, "protocol": "HTTP"})
    made["metadata"]["annotations"] = {"ztunnel.dev/http3": "true"}
    assert [(port.number, port.transport) for port in required(made).ports] == [
        (80, Transport.TCP),
        (443, Transport.TCP),
        (443, Transport.UDP),
    ]


def test_certificate_of_a_listener_without_authorities_is_required() -> None:
    refs = [{"group": "", "kind": "ConfigMap", "name": "missing"}]
    tls = {"frontend": {"default": {"validation": {"caCertificateRefs": refs}}}}
    found = required(gateway(https("c", name="tls"), tls=tls))
    assert CertificateSource("Secret", "shop", "tls") in found.sources


def required(*objects: Object) -> Requirements:
    store = L7Store()
    for obj in objects:
        store.put(l7_object(obj))
    return requirements(store, l7_object(objects[0]))


def test_ports_follow_the_accepted_listeners() -> None:
    found = required(
        gateway(
            {"name": "a", "port": 80, "protocol": "HTTP"},
            {"name": "b", "port": 80, "protocol": "HTTP", "hostname": "b.example"},
            https("c", name="tls"),
            {"name": "d", "port": 53, "protocol": "UDP"},
            {"name": "e", "port": 15008, "protocol": "TCP"},  # of the mesh
        )
    )
    assert found.ports == (
        GatewayPort(53, Transport.UDP, "udp"),
        GatewayPort(80, Transport.TCP, "http"),
        GatewayPort(443, Transport.TCP, "https"),
    )


def test_certificate_is_required_before_it_is_usable() -> None:
    assert required(gateway(https("a", name="tls"))).sources == (
        CertificateSource("Secret", "shop", "tls"),
    )


def test_certificate_of_another_namespace_needs_a_grant() -> None:
    wanted = gateway(https("a", name="tls", namespace="certificates"))
    assert required(wanted).sources == ()
    assert required(wanted, grant("elsewhere")).sources == ()
    assert required(wanted, grant("certificates")).sources == (
        CertificateSource("Secret", "certificates", "tls"),
    )


def test_other_kinds_are_never_read() -> None:
    assert required(gateway(https("a", kind="ConfigMap", name="tls"))).sources == ()


def test_same_certificate_of_two_listeners_is_required_once() -> None:
    both = gateway(https("a", name="tls"), https("b", host="b.example", name="tls"))
    assert len(required(both).certificates) == 1


def test_bundle_of_clients_authorities_is_identified_by_all_references() -> None:
    refs = [{"group": "", "kind": "ConfigMap", "name": n} for n in ("first", "second")]
    tls = {"frontend": {"default": {"validation": {"caCertificateRefs": refs}}}}
    (use,) = required(gateway(tls=tls)).certificates
    sources = [CertificateSource("ConfigMap", "shop", n) for n in ("first", "second")]
    assert use.sources == tuple(sources)
    assert use.file == f"{ca_id(sources)}.ca"


def test_certificate_towards_backends_is_required() -> None:
    tls = {"backend": {"clientCertificateRef": {"name": "client"}}}
    assert required(gateway(tls=tls)).sources == (CertificateSource("Secret", "shop", "client"),)
