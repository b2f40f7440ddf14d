# SPDX-License-Identifier: Apache-2.0
"""Configuration of the peers, and how an external one is plugged in."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from bench.comparison import certificates
from bench.peers import envoy
from bench.peers.envoy import Envoy
from bench.peers.external import VARIABLE, External
from bench.peers.haproxy import Haproxy
from bench.peers.peer import Certificates, Route
from bench.peers.registry import PEERS


@pytest.fixture
def made(tmp_path: Path) -> Certificates:
    return certificates.make(tmp_path / "certificates", ec.SECP384R1)


@pytest.fixture
def route(made: Certificates, tmp_path: Path) -> Route:
    return Route(
        client_netns="here",
        server_netns="there",
        listen=("127.0.0.1", 20000),
        tunnel=("10.1.2.3", 20001),
        forward=("10.1.2.3", 7000),
        certificates=made,
        directory=tmp_path,
    )


def test_keys_are_for_their_owner_only(made: Certificates) -> None:
    for secret in (made.key, made.bundle):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600


def test_certificate_has_the_requested_curve_and_is_signed_by_the_root(made: Certificates) -> None:
    leaf = x509.load_pem_x509_certificate(made.certificate.read_bytes())
    (root,) = x509.load_pem_x509_certificates(made.roots.read_bytes())
    leaf.verify_directly_issued_by(root)
    key = leaf.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp384r1"


def test_haproxy_has_one_thread_and_the_same_cipher_at_both_ends(route: Route) -> None:
    for role, address in (("outbound", "127.0.0.1:20000"), ("inbound", "10.1.2.3:20001")):
        argv, _ = Haproxy().command(route, role)
        output = Path(argv[-1]).read_text()
        assert "nbthread 1\n" in output
        assert output.count("TLS_AES_256_GCM_SHA384") == 2
        assert f"bind {address} " in output
        assert "verify required" in output


def test_envoy_tunnels_by_connect_and_requires_client_certificates(route: Route) -> None:
    (out,) = envoy.outbound(route)["static_resources"]["listeners"]
    assert _address(out) == ("127.0.0.1", 20000)
    proxy = out["filter_chains"][0]["filters"][0]["typed_config"]
    assert proxy["tunneling_config"] == {"hostname": "10.1.2.3:7000"}
    (come,) = envoy.inbound(route)["static_resources"]["listeners"]
    assert _address(come) == ("10.1.2.3", 20001)
    tls = come["filter_chains"][0]["transport_socket"]["typed_config"]
    assert tls["require_client_certificate"] is True
    assert Envoy.curve is ec.SECP384R1  # required by the policy that selects the cipher


def _address(listener: dict[str, Any]) -> tuple[str, int]:
    found = listener["address"]["socket_address"]
    return found["address"], found["port_value"]


def test_external_peer_gets_the_route_in_its_environment(
    route: Route, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "/bin/true")
    peer = External()
    assert peer.absent() is None
    argv, environment = peer.command(replace(route, directory=Path("/d")), "inbound")
    assert argv == ["/bin/true", "inbound"]
    assert environment["BENCH_TUNNEL"] == "10.1.2.3:20001"
    assert environment["BENCH_FORWARD"] == "10.1.2.3:7000"
    assert environment["BENCH_DIRECTORY"] == "/d"


@pytest.mark.parametrize("program", ["", "/no/such/program"])
def test_missing_external_peer_is_reported_as_absent(
    program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, program)
    assert VARIABLE in (External().absent() or "")


def test_peer_names_are_unique() -> None:
    assert len({peer.name for peer in PEERS}) == len(PEERS)
