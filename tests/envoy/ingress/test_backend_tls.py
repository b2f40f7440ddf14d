# SPDX-License-Identifier: Apache-2.0
"""TLS of ingress gateways to backends: BackendTLSPolicy, and the gateway's own certificate."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificate_authority import CertificateAuthority
from tests.support.ingress.certificates import GatewayCertificates
from tests.support.ingress.client import fetch
from tests.support.ingress.envoy import running_gateway
from tests.support.waypoint.backend import Backend
from tests.support.waypoint.client import Answer
from tests.support.waypoint.world import World
from ztunnel.kube.objects.l7_kinds import CA_CERTIFICATES_ANNOTATION
from ztunnel.l7.names import TypeUrl

HOST = "backend.example.com"
OBJECTS = """
kind: Gateway
metadata:
  name: edge
  namespace: default
  annotations: {ztunnel.dev/gateway-certificates: '%s'}
spec:
  gatewayClassName: ztunnel
  listeners: [{name: http, port: 80, protocol: HTTP}]
  %s
---
kind: HTTPRoute
metadata: {name: web, namespace: default}
spec:
  parentRefs: [{name: edge}]
  rules:
  - matches: [{path: {value: /plain}}]
    backendRefs: [{name: plain, port: 80}]
  - backendRefs: [{name: secure, port: 443}]
"""
OWN_CERTIFICATE = "tls: {backend: {clientCertificateRef: {name: own}}}"


class Lab:
    """A gateway with a TLS backend, whose clients' certificates are recorded."""

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch, stack: ExitStack) -> None:
        self.directory = directory
        self.certificates = GatewayCertificates(directory, patch)
        self.certificates.add("own", "gateway.example.com")
        self.authority = self.certificates.authority
        self.clients: list[str] = []
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        path = directory / "server.pem"
        path.write_text(self.authority.issue(HOST))
        self.context.load_cert_chain(path)
        self.context.load_verify_locations(cadata=self.authority.pem)
        secure = stack.enter_context(Backend("secure", context=self.context))
        plain = stack.enter_context(Backend("plain"))
        self.world = World()
        # named as in the conformance suite: the port declares HTTPS
        self.world.service("secure", {443: "https"}, [secure.port], waypoint="")
        self.world.service("plain", {80: "http"}, [plain.port], waypoint="")

    def require_client_certificate(self) -> None:
        self.context.verify_mode = ssl.CERT_REQUIRED

    def policy(self, name: str = "policy", created: str = "", **validation: Any) -> None:
        """Add a BackendTLSPolicy of the secure service, as the controller publishes it."""
        self.world.add(
            {
                "kind": "BackendTLSPolicy",
                "metadata": {
                    "name": name,
                    "namespace": "default",
                    "creationTimestamp": created,
                    "annotations": {CA_CERTIFICATES_ANNOTATION: self.authority.pem},
                },
                "spec": {
                    "targetRefs": [{"group": "", "kind": "Service", "name": "secure"}],
                    "validation": {
                        "hostname": HOST,
                        "caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": "ca"}],
                        **validation,
                    },
                },
            }
        )

    def get(self, path: str = "/", *, own: bool = False, files: str = "") -> Answer:
        """Compile, start the gateway, and send a request."""
        annotation = files or self.certificates.annotation
        self.world.apply(OBJECTS % (annotation, OWN_CERTIFICATE if own else ""))
        config = self.world.compile("default/edge")
        with running_gateway(config, self.directory) as gateway:
            return fetch(gateway.ports[80], HOST, path)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    with ExitStack() as stack:
        yield Lab(tmp_path, monkeypatch, stack)


def test_policy_encrypts_to_the_backend(lab: Lab) -> None:
    lab.policy()
    answer = lab.get()
    assert answer.backend == "secure"
    assert answer.received["headers"]["host"] == HOST


def test_backend_with_another_name_is_not_trusted(lab: Lab) -> None:
    lab.policy(hostname="other.example.com")
    assert lab.get().status == 503


@pytest.mark.parametrize(("name", "expected"), [(HOST, 200), ("other.example.com", 503)])
def test_subject_alternative_names_replace_the_hostname(lab: Lab, name: str, expected: int) -> None:
    lab.policy(hostname="sni.example.com", subjectAltNames=[{"type": "Hostname", "hostname": name}])
    assert lab.get().status == expected


def test_system_authorities_do_not_include_a_private_one(lab: Lab) -> None:
    lab.policy(caCertificateRefs=[], wellKnownCACertificates="System")
    assert lab.get().status == 503


def test_oldest_policy_applies(lab: Lab) -> None:
    lab.policy("younger", "2026-02-01T00:00:00Z", hostname="other.example.com")
    lab.policy("older", "2026-01-01T00:00:00Z")
    assert lab.get().status == 200


def test_gateway_presents_its_certificate(lab: Lab) -> None:
    lab.require_client_certificate()
    lab.policy()
    assert lab.get().status == 503
    assert lab.get(own=True).backend == "secure"


def test_certificate_of_another_authority_is_refused_by_the_backend(lab: Lab) -> None:
    lab.require_client_certificate()
    lab.policy()
    lab.certificates.authority = CertificateAuthority("other")
    lab.certificates.add("own", "gateway.example.com")
    assert lab.get(own=True).status == 503


def test_missing_certificate_closes_backends_with_a_policy_only(lab: Lab) -> None:
    lab.policy()
    assert lab.get(own=True, files=json.dumps({})).status == 503
    (problem,) = [p for p in lab.world.compile("default/edge").problems if p.kind == "Gateway"]
    assert (problem.field, problem.reason) == ("spec.tls.backend", "InvalidClientCertificateRef")
    assert lab.get("/plain", own=True, files=json.dumps({})).backend == "plain"


def test_backend_without_policy_gets_no_certificate(lab: Lab) -> None:
    lab.world.apply(OBJECTS % (lab.certificates.annotation, OWN_CERTIFICATE))
    clusters = lab.world.compile("default/edge").resources[TypeUrl.CLUSTER]
    assert all("transport_socket" not in each for each in clusters.values())
