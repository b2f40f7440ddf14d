# SPDX-License-Identifier: Apache-2.0
"""TLS origination of a real Envoy to a real TLS server."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.envoy.traffic.worlds import destination_rule, fields_of, world_with_versions
from tests.support.certificate_authority import CertificateAuthority
from tests.support.waypoint.backend import Backend
from tests.support.waypoint.client import Answer, request
from tests.support.waypoint.envoy import running_envoy
from tests.support.waypoint.world import World
from ztunnel.l7.traffic import tls as tls_fields

HOST = "secure.example.com"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for HOST, in one file with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    path.write_bytes(
        built.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


@pytest.fixture
def trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's authorities are the issuer of the certificate."""
    monkeypatch.setattr(tls_fields, "SYSTEM_BUNDLE", str(certificate))


@contextmanager
def tls_backend(certificate: Path, names: list[str]) -> Iterator[Backend]:
    """A TLS server that records the server names of its clients."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.sni_callback = lambda _socket, name, _context: names.append(name or "")
    with Backend("tls", context=context) as backend:
        yield backend


def get(certificate: Path, tmp_path: Path, tls: dict[str, Any]) -> tuple[Answer, list[str]]:
    names: list[str] = []
    with tls_backend(certificate, names) as backend:
        world, vip = world_with_versions({"v1": backend})
        world.add(destination_rule({"tls": tls}))
        with running_envoy(world.compile(), tmp_path) as envoy:
            return request(envoy.port, vip, headers={"host": HOST}), names


@pytest.mark.usefixtures("trusted")
def test_requests_are_sent_over_tls_with_server_name(certificate: Path, tmp_path: Path) -> None:
    tls = {"mode": "SIMPLE", "caCertificates": "system", "sni": HOST}
    answer, names = get(certificate, tmp_path, tls)
    assert (answer.status, answer.backend) == (200, "tls")
    assert names == [HOST]


@pytest.mark.usefixtures("trusted")
def test_server_name_is_the_host_of_the_request_by_default(
    certificate: Path, tmp_path: Path
) -> None:
    tls = {"mode": "SIMPLE", "caCertificates": "system"}
    answer, names = get(certificate, tmp_path, tls)
    assert answer.status == 200
    assert names == [HOST]


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize(
    "tls",
    [
        {"sni": "other.example.com"},
        {"sni": HOST, "subjectAltNames": ["other.example.com"]},
    ],
)
def test_server_with_another_name_is_not_trusted(
    tls: dict[str, Any], certificate: Path, tmp_path: Path
) -> None:
    given = {"mode": "SIMPLE", "caCertificates": "system", **tls}
    assert get(certificate, tmp_path, given)[0].status == 503


def test_server_of_an_unknown_authority_is_not_trusted(certificate: Path, tmp_path: Path) -> None:
    assert get(certificate, tmp_path, {"mode": "SIMPLE", "sni": HOST})[0].status == 503


def test_verification_can_be_disabled(certificate: Path, tmp_path: Path) -> None:
    tls = {"mode": "SIMPLE", "sni": "other", "insecureSkipVerify": True}
    assert get(certificate, tmp_path, tls)[0].status == 200


def policy(validation: dict[str, Any], **target: str) -> dict[str, Any]:
    return {
        "kind": "BackendTLSPolicy",
        "metadata": {"name": "tls", "namespace": "default"},
        "spec": {
            "targetRefs": [{"group": "", "kind": "Service", "name": "web", **target}],
            "validation": validation,
        },
    }


SYSTEM = {"wellKnownCACertificates": "System", "hostname": HOST}


def test_backend_tls_policy_verifies_with_the_systems_authorities(
    certificate: Path, tmp_path: Path
) -> None:
    names: list[str] = []
    with tls_backend(certificate, names) as backend:
        world, vip = world_with_versions({"v1": backend})
        world.add(policy(SYSTEM))
        with running_envoy(world.compile(), tmp_path) as envoy:
            assert request(envoy.port, vip).status == 503
            assert set(names) == {HOST}  # TLS was attempted, and the certificate is not trusted
            assert envoy.stat("cluster.default/web|80.ssl.fail_verify_error") >= 1


@pytest.mark.usefixtures("trusted")
def test_backend_tls_policy_sends_requests_over_tls(certificate: Path, tmp_path: Path) -> None:
    names: list[str] = []
    with tls_backend(certificate, names) as backend:
        world, vip = world_with_versions({"v1": backend})
        world.add(policy(SYSTEM, sectionName="p80"))
        with running_envoy(world.compile(), tmp_path) as envoy:
            assert request(envoy.port, vip).backend == "tls"
            assert names == [HOST]


def test_backend_tls_policy_of_another_port_does_not_apply() -> None:
    world = World()
    world.service("web")
    world.add(policy(SYSTEM, sectionName="other"))
    assert "transport_socket" not in fields_of(world).fields


PRIVATE = {"caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": "ca"}]}


def with_authorities(pem: str, validation: dict[str, Any] | None = None) -> dict[str, Any]:
    """A policy with references, as the controller annotates it."""
    found = policy(validation or {**PRIVATE, "hostname": HOST})
    found["metadata"]["annotations"] = {"ztunnel.dev/ca-certificates": pem}
    return found


def test_backend_tls_policy_verifies_with_authorities_of_config_maps(tmp_path: Path) -> None:
    ours, other = CertificateAuthority("ours"), CertificateAuthority("other")
    server = tmp_path / "private.pem"
    server.write_text(ours.issue(HOST))
    for name in ("ours", "other"):
        (tmp_path / name).mkdir()
    with tls_backend(server, []) as backend:
        world, vip = world_with_versions({"v1": backend})
        world.add(with_authorities(other.pem + ours.pem))
        with running_envoy(world.compile(), tmp_path / "ours") as envoy:
            assert request(envoy.port, vip).backend == "tls"
        world.add(with_authorities(other.pem))
        with running_envoy(world.compile(), tmp_path / "other") as envoy:
            assert request(envoy.port, vip).status == 503
            assert envoy.stat("cluster.default/web|80.ssl.fail_verify_error") >= 1


@pytest.mark.parametrize(
    ("pem", "message"),
    [
        ("", "has not published"),
        ("x", "in PEM"),
        ("-----BEGIN CERTIFICATE-----\n", "in PEM"),
        (CertificateAuthority().pem * 200, "in PEM"),
    ],
)
def test_missing_authorities_reject_requests_and_are_reported(pem: str, message: str) -> None:
    world = World()
    world.service("web")
    world.add(with_authorities(pem))
    found = fields_of(world)
    assert found.rejected
    (problem,) = found.problems
    assert (problem.kind, problem.severity) == ("BackendTLSPolicy", "error")
    assert problem.reason == "InvalidCACertificateRef"
    assert message in problem.message


def test_annotation_without_references_has_no_effect() -> None:
    world = World()
    world.service("web")
    world.add(with_authorities(CertificateAuthority().pem, SYSTEM))
    context = fields_of(world).fields["transport_socket"]["typed_config"]["common_tls_context"]
    assert context["validation_context"]["trusted_ca"] == {"filename": tls_fields.SYSTEM_BUNDLE}


def test_backend_tls_policy_takes_precedence_over_destination_rule() -> None:
    world = World()
    world.service("web")
    world.add(policy(SYSTEM))
    world.add(destination_rule({"tls": {"mode": "SIMPLE", "sni": "other"}}))
    found = fields_of(world)
    assert found.fields["transport_socket"]["typed_config"]["sni"] == HOST
    assert [(p.kind, p.reason) for p in found.problems] == [("DestinationRule", "Conflicted")]
