# SPDX-License-Identifier: Apache-2.0
"""Wildcard hosts whose names Envoy resolves (DYNAMIC_DNS): which names, addresses and ports."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.certificate_authority import CertificateAuthority
from tests.support.waypoint.backend import Backend
from tests.support.waypoint.client import Answer, dial, request
from tests.support.waypoint.envoy import RunningEnvoy, running_envoy
from tests.support.waypoint.name_server import NameServer, resolving
from tests.support.waypoint.world import LOOPBACK, World
from ztunnel.l7.traffic import tls as tls_fields

HOST = "*.example.com"


@dataclass
class Egress:
    """Port 80 of `http` and port 443 of `tls` lead to the targets of the tests' backends."""

    envoy: RunningEnvoy
    names: NameServer
    http: str
    tls: str

    def get(self, host: str, path: str = "/") -> Answer:
        return request(self.envoy.port, (self.http, 80), path=path, headers={"host": host})

    def handshake(self, name: str | None) -> bytes:
        """The certificate that the server of this SNI shows. Raises OSError if there is none."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with dial(self.envoy.port, (self.tls, 443)) as sock:
            sock.settimeout(5)
            with context.wrap_socket(sock, server_hostname=name) as secure:
                return secure.getpeercert(binary_form=True) or b""


@pytest.fixture(scope="module")
def egress(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Egress]:
    directory: Path = tmp_path_factory.mktemp("envoy")
    pem = directory / "server.pem"
    pem.write_text(CertificateAuthority().issue("a.example.com"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    world = World()
    with Backend("plain") as plain, Backend("tls", context=context) as tls, NameServer() as names:
        http_vip = world.entry(HOST, {80: "http"}, dynamic=plain.port)
        tls_vip = world.entry(HOST, {443: "tls"}, dynamic=tls.port, name="tls", namespace="other")
        world.apply(POLICY)
        config = resolving(world.compile(), names)
        assert config.problems == ()
        with running_envoy(config, directory) as envoy:
            yield Egress(envoy, names, http_vip, tls_vip)


POLICY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-admin, namespace: default}
spec:
  targetRefs: [{group: networking.istio.io, kind: ServiceEntry, name: external}]
  action: DENY
  rules:
  - to: [{operation: {hosts: [forbidden.example.com]}}]
  - to: [{operation: {paths: [/admin]}}]
    from: [{source: {principals: [cluster.local/ns/default/sa/client]}}]
"""


def test_names_below_the_wildcard_are_resolved_and_dialed(egress: Egress) -> None:
    for name in ("a.example.com", "b.c.example.com", "UPPER.example.com"):
        egress.names.names[name.lower()] = (LOOPBACK,)
        answer = egress.get(name)
        assert (answer.status, answer.backend) == (200, "plain")
        assert answer.received["headers"]["host"] == name


@pytest.mark.parametrize(
    "host",
    [
        *("example.com", "other.com", "aexample.com", "a.example.com.evil.com", "127.0.0.1"),
        *("localhost", "[::1]", "169.254.169.254", "a.example.com:80@127.0.0.1", "x"),
        *("127.0.0.1#.example.org", "a.example.com.", ".example.net", "a.example.com/"),
    ],
)
def test_names_outside_the_wildcard_are_refused(egress: Egress, host: str) -> None:
    egress.names.queried.clear()
    assert egress.get(host).status in (400, 404)
    assert egress.names.queried == set()


@pytest.mark.parametrize(
    "host", ["127.0.0.1:80#.example.com", "127.0.0.1/.example.com", "[::1]:80.example.com"]
)
def test_host_that_only_ends_like_the_wildcard_is_never_an_address(
    egress: Egress, host: str
) -> None:
    assert egress.get(host).status in (400, 404, 503)


def test_port_of_the_host_header_is_not_dialed(egress: Egress, tmp_path: Path) -> None:
    egress.names.names["port.example.com"] = (LOOPBACK,)
    with Backend("internal") as internal:
        answer = egress.get(f"port.example.com:{internal.port}")
        assert answer.backend == "plain"
        assert internal.requests == []


def test_unknown_name_answers_503(egress: Egress) -> None:
    assert egress.get("absent.example.com").status == 503


def test_policies_of_the_entry_apply(egress: Egress) -> None:
    egress.names.names["forbidden.example.com"] = (LOOPBACK,)
    egress.names.names["a.example.com"] = (LOOPBACK,)
    assert egress.get("forbidden.example.com").status == 403
    assert egress.get("forbidden.example.com:8080").status == 403
    assert egress.get("a.example.com", "/admin").status == 403
    assert egress.get("a.example.com", "/").status == 200


def test_tls_is_forwarded_by_sni(egress: Egress) -> None:
    egress.names.names["a.example.com"] = (LOOPBACK,)
    assert egress.handshake("a.example.com")
    assert egress.handshake("A.EXAMPLE.COM")


@pytest.mark.parametrize("name", ["example.com", "other.com", "localhost", None])
def test_tls_with_another_name_or_none_is_closed(egress: Egress, name: str | None) -> None:
    egress.names.queried.clear()
    with pytest.raises(OSError):
        egress.handshake(name)
    assert egress.names.queried == set()


def test_tls_to_an_unknown_name_is_closed(egress: Egress) -> None:
    with pytest.raises(OSError):
        egress.handshake("absent.example.com")


def test_bytes_that_are_not_tls_are_closed(egress: Egress) -> None:
    with dial(egress.envoy.port, (egress.tls, 443)) as sock:
        sock.settimeout(10)
        sock.sendall(b"GET / HTTP/1.1\r\nhost: a.example.com\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(100) == b""


@pytest.mark.parametrize(
    "ip",
    [
        *("127.0.0.1", "127.9.9.9", "0.0.0.0", "169.254.169.254", "224.0.0.1", "240.240.0.7"),
        *("255.255.255.255", "::1", "::", "::ffff:127.0.0.1", "fe80::1", "2001:2::7", "ff02::1"),
    ],
)
def test_names_that_resolve_to_special_addresses_are_refused(special: Egress, ip: str) -> None:
    name = f"h{ip.replace(':', '-').replace('.', '-')}.example.com"
    special.names.names[name] = (ip,)
    assert special.get(name).status == 503
    assert name in special.names.queried
    with pytest.raises(OSError):
        special.handshake(name)


@pytest.fixture(scope="module")
def special(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Egress]:
    """With the filter of addresses as it is; the backend would answer at every loopback address."""
    world = World()
    with Backend("plain") as plain, NameServer() as names:
        http_vip = world.entry(HOST, {80: "http"}, dynamic=plain.port)
        tls_vip = world.entry(HOST, {443: "tls"}, dynamic=plain.port, name="tls", namespace="other")
        config = resolving(world.compile(), names, loopback=False)
        with running_envoy(config, tmp_path_factory.mktemp("special")) as envoy:
            yield Egress(envoy, names, http_vip, tls_vip)
            assert plain.requests == []


def test_other_gateways_and_other_services_get_no_dynamic_cluster() -> None:
    world = World()
    world.entry(HOST, {80: "http"}, dynamic=80)
    world.service("web")
    world.apply(
        """
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: default}
spec:
  parentRefs: [{group: "", kind: Service, name: web}]
  rules:
  - backendRefs: [{group: networking.istio.io, kind: Hostname, name: "*.example.com", port: 80}]
"""
    )
    problems = world.compile().problems
    assert any("only its own routes" in problem.message for problem in problems)


ORIGINATION = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: tls, namespace: default}
spec:
  host: "*.example.com"
  trafficPolicy: {tls: {mode: SIMPLE}}
"""


def test_tls_is_originated_and_the_certificate_verified_by_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = CertificateAuthority()
    pem, roots = tmp_path / "server.pem", tmp_path / "roots.pem"
    pem.write_text(authority.issue("a.example.com"))
    roots.write_text(authority.pem)
    monkeypatch.setattr(tls_fields, "SYSTEM_BUNDLE", str(roots))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    seen: list[str | None] = []
    context.sni_callback = lambda _, name, __: seen.append(name)
    world = World().apply(ORIGINATION)
    with Backend("tls", context=context) as tls, NameServer() as names:
        vip = world.entry(HOST, {80: "http"}, dynamic=tls.port)
        names.names["a.example.com"] = names.names["b.example.com"] = (LOOPBACK,)
        with running_envoy(resolving(world.compile(), names), tmp_path) as envoy:
            egress = Egress(envoy, names, vip, "")
            assert egress.get("a.example.com").backend == "tls"
            assert egress.get("b.example.com").status == 503  # the certificate is of another name
    assert seen[:2] == ["a.example.com", "b.example.com"]


def test_rule_that_cannot_be_honoured_rejects_the_requests(tmp_path: Path) -> None:
    world = World().apply(ORIGINATION.replace("SIMPLE", "MUTUAL"))
    with Backend("plain") as plain, NameServer() as names:
        vip = world.entry(HOST, {80: "http"}, dynamic=plain.port)
        names.names["a.example.com"] = (LOOPBACK,)
        config = world.compile()
        assert any("MUTUAL" in str(each) or "mode" in str(each) for each in config.problems)
        with running_envoy(resolving(config, names), tmp_path) as envoy:
            assert Egress(envoy, names, vip, "").get("a.example.com").status == 503
        assert plain.requests == []
