# SPDX-License-Identifier: Apache-2.0
"""Certificates of peers, as the nodes of a running lab verify them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import pytest
from cryptography import x509

from tests.lab.helpers.harness import addresses, client, proxy_log, python_pod
from tests.support.waiting import wait_until
from ztunnel.datapath import netns
from ztunnel.identity import ca
from ztunnel.identity.csr import new_request
from ztunnel.identity.csr_signer import DiskSigner
from ztunnel.lab import Lab

PEER = "spiffe://cluster.local/ns/default/sa/default"


def identity_files(
    directory: Path,
    authority: Path,
    identity: str = PEER,
    *,
    trust_domain: str = "cluster.local",
    ttl: timedelta = timedelta(hours=1),
) -> tuple[Path, Path]:
    """Files (chain, key) of a certificate by the CA in `authority`, which is created if it is
    missing."""
    ca.load_or_create(authority, trust_domain)
    request = new_request(identity)
    issued = asyncio.run(DiskSigner(ca.load(authority), ttl=ttl).sign(identity, request.csr_pem))
    chain, key = directory / "chain.pem", directory / "key.pem"
    chain.write_bytes(issued.chain_pem)
    key.touch(0o600)
    key.write_bytes(request.key_pem)
    return chain, key


def dial(
    lab: Lab, target: str, files: tuple[Path, Path] | None, port: int = 15008
) -> ssl.SSLSocket:
    """TLS as the proxy of a peer opens it, from the plain client's namespace on node1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(lab.names.ca / "root-cert.pem")
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    if files is not None:
        context.load_cert_chain(*files)
    return context.wrap_socket(raw(lab, target))


def raw(lab: Lab, target: str, port: int = 15008) -> socket.socket:
    """A TCP connection from the plain client's namespace."""
    path = Path("/run/netns") / lab.names.pod_netns("plain", "client")
    with path.open("rb") as namespace, netns.entered(namespace.fileno()):
        sock = socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET)
    sock.settimeout(10)
    sock.connect((target, port))
    return sock


class Peer:
    """An independent HTTP/2 client: the h2 library over the ssl module."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self.sock = sock
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.flush()

    def flush(self) -> None:
        self.sock.sendall(self.h2.data_to_send())

    def events(self) -> list[h2.events.Event]:
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionResetError("the server closed the connection")
        found: list[h2.events.Event] = self.h2.receive_data(data)
        self.flush()
        return found

    def request(self, headers: list[tuple[str, str]]) -> int:
        stream: int = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, headers)
        self.flush()
        return stream

    def connect(self, authority: str, *more: tuple[str, str]) -> tuple[int, dict[str, str]]:
        """Send CONNECT; return the stream and the response headers (empty after a reset)."""
        return self.answer(self.request([(":method", "CONNECT"), (":authority", authority), *more]))

    def answer(self, stream: int) -> tuple[int, dict[str, str]]:
        while True:
            for event in self.events():
                if getattr(event, "stream_id", None) != stream:
                    continue
                if isinstance(event, h2.events.ResponseReceived):
                    return stream, {str(k): str(v) for k, v in event.headers or []}
                if isinstance(event, h2.events.StreamReset):
                    return stream, {}

    def body(self, stream: int) -> bytes:
        parts: list[bytes] = []
        while True:
            for event in self.events():
                if isinstance(event, h2.events.DataReceived) and event.stream_id == stream:
                    parts.append(event.data or b"")
                if isinstance(event, h2.events.StreamEnded) and event.stream_id == stream:
                    return b"".join(parts)


@pytest.fixture
def peer(lab: Lab, tmp_path: Path) -> Iterator[Peer]:
    """A peer with a certificate of the CA of the lab for default/default."""
    files = identity_files(tmp_path, lab.names.ca)
    with dial(lab, addresses(lab, "server")[4], files) as sock:
        yield Peer(sock)


def test_independent_http2_client_is_served(lab: Lab, peer: Peer) -> None:
    target = addresses(lab, "server")[4]
    assert peer.sock.selected_alpn_protocol() == "h2"
    stream, headers = peer.connect(f"{target}:7001")
    assert headers[":status"] == "200"
    assert "k8s.namespace.name=default" in headers["baggage"]
    assert "k8s.pod.name=server" in headers["baggage"]
    said = json.loads(peer.body(stream))
    assert said["accept"][0] == f"::ffff:{addresses(lab, 'client', 'plain')[4]}"


def test_http2_limits_match_istio_and_windows_start_small(peer: Peer) -> None:
    while not peer.h2.remote_settings.max_frame_size > 16384:
        peer.events()
    settings = peer.h2.remote_settings
    assert settings.initial_window_size == 256 << 10
    assert settings.max_frame_size == 1 << 20
    assert settings.max_concurrent_streams == 200
    assert settings.max_header_list_size == 64 << 10
    while peer.h2.outbound_flow_control_window < 1 << 20:
        peer.events()


def test_forwarded_address_of_the_same_identity_reaches_the_app(lab: Lab, peer: Peer) -> None:
    mine, target = addresses(lab, "client")[4], addresses(lab, "server")[4]
    stream, headers = peer.connect(f"{target}:7001", ("forwarded", f'for="{mine}:4321"'))
    assert headers[":status"] == "200"
    assert json.loads(peer.body(stream))["accept"] == [f"::ffff:{mine}", 4321]


def test_forwarded_address_of_another_identity_is_rejected(lab: Lab, peer: Peer) -> None:
    other, target = addresses(lab, "server")[4], addresses(lab, "server")[4]
    stream, _ = peer.connect(f"{target}:7001", ("forwarded", f'for="{other}:4321"'))
    said = json.loads(peer.body(stream))
    assert said["accept"][0] == f"::ffff:{addresses(lab, 'client', 'plain')[4]}"


def test_invalid_requests_get_the_specified_status(lab: Lab, peer: Peer) -> None:
    target, other = addresses(lab, "server")[4], addresses(lab, "my-app-peer")[4]
    rows = {
        f"{other}:7000": "400",  # another pod
        f"{target}:15001": "400",
        f"{target}:15006": "400",
        f"{target}:15008": "400",
        "my-app:80": "400",
        f"{target}": "400",
        f"{target}:0": "400",
        f"{target}:7999": "503",  # no listener
    }
    for authority, status in rows.items():
        _, headers = peer.connect(authority)
        assert headers.get(":status") == status, authority
    stream = peer.request(
        [(":method", "GET"), (":scheme", "https"), (":authority", target), (":path", "/")]
    )
    assert peer.answer(stream)[1][":status"] == "400"


@pytest.fixture(scope="module", autouse=True)
def _other_pod(lab: Lab) -> Iterator[None]:
    lab.apply(python_pod("my-app-peer", "node2"))
    yield
    lab.delete("pod", "my-app-peer")


def _refused(lab: Lab, files: tuple[Path, Path] | None) -> None:
    """In TLS 1.3 the client may finish first, so the first read reports the rejection."""
    said = b""
    target = addresses(lab, "server")[4]
    with contextlib.suppress(ssl.SSLError, ConnectionError), dial(lab, target, files) as sock:
        sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        said = sock.recv(1)
    assert said == b"", "the server spoke to an unproven peer"


def test_missing_client_certificate_is_rejected(lab: Lab) -> None:
    _refused(lab, None)


def test_certificate_of_another_ca_is_rejected(lab: Lab, tmp_path: Path) -> None:
    _refused(lab, identity_files(tmp_path, tmp_path / "ca"))


def test_expired_certificate_is_rejected(lab: Lab, tmp_path: Path) -> None:
    files = identity_files(tmp_path, lab.names.ca, ttl=timedelta(seconds=1))
    expiry = datetime.now(UTC) + timedelta(seconds=1)
    # notAfter includes its last second: RFC 5280, 4.1.2.5
    wait_until(
        lambda: datetime.now(UTC) > expiry + timedelta(seconds=1), "the certificate to expire"
    )
    _refused(lab, files)


def test_foreign_trust_domain_is_rejected(lab: Lab, tmp_path: Path) -> None:
    _refused(
        lab, identity_files(tmp_path, lab.names.ca, "spiffe://elsewhere/ns/default/sa/default")
    )


def test_junk_before_tls_does_not_disturb_other_connections(lab: Lab) -> None:
    target = addresses(lab, "server")[4]
    for junk in (b"GET / HTTP/1.1\r\n\r\n", b"\0" * 4096, bytes(range(256)) * 64):
        with contextlib.suppress(ConnectionError), raw(lab, target) as sock:
            sock.sendall(junk)
            while sock.recv(4096):
                pass
    assert client(lab, "client", "echo", target, 7000, "alive") == {"said": "alive"}


def test_oversize_headers_end_the_connection_not_the_proxy(lab: Lab, peer: Peer) -> None:
    target = addresses(lab, "server")[4]
    peer.h2.local_settings.max_header_list_size = 1 << 20
    with contextlib.suppress(h2.exceptions.ProtocolError, ConnectionError, ssl.SSLError):
        peer.connect(f"{target}:7000", *((f"x-{n}", "y" * 8000) for n in range(20)))
    assert client(lab, "client", "echo", target, 7000, "alive") == {"said": "alive"}


def test_ten_thousand_streams_are_bounded(lab: Lab, peer: Peer) -> None:
    """h2 itself refuses more than 200 streams, so the test sends raw frames as a hostile peer
    would."""
    target = addresses(lab, "server")[4]
    block = peer.h2.encoder.encode([(":method", "CONNECT"), (":authority", f"{target}:7005")])
    try:
        for number in range(10_000):
            stream = (2 * number + 1).to_bytes(4, "big")
            peer.sock.sendall(len(block).to_bytes(3, "big") + b"\x01\x04" + stream + block)
    except (ConnectionError, ssl.SSLError):
        pass
    assert client(lab, "client", "echo", target, 7000, "alive") == {"said": "alive"}


def test_slowly_sent_frame_does_not_delay_other_connections(lab: Lab) -> None:
    target = addresses(lab, "server")[4]
    dripping = [raw(lab, target) for _ in range(50)]
    for sock in dripping:
        sock.sendall(b"\x16\x03")
    assert client(lab, "client", "echo", target, 7000, "alive") == {"said": "alive"}
    for sock in dripping:
        sock.close()


def test_client_rejects_a_server_with_an_unexpected_identity(lab: Lab) -> None:
    """With its agent down, the proxy on node2 presents the old account, while node1 learns that the
    pod has another. The proxy of the client must reject it."""
    target = addresses(lab, "server")[4]
    pod = lab.pod("server")
    lab.kill("node2", "agent")
    try:
        lab.store.put(_with_account(pod, "somebody-else"))
        wait_until(
            lambda: client(lab, "client", "poke", target, 7000)["end"] == "ECONNRESET",
            "node1 to expect another identity",
        )
        assert "sa/somebody-else" in proxy_log(lab, "node1")
    finally:
        lab.store.put(pod)
        lab.start("node2", "agent")
    wait_until(
        lambda: client(lab, "client", "poke", target, 7000)["end"] == "data", "the old identity"
    )


def _with_account(pod: dict[str, Any], account: str) -> dict[str, Any]:
    return {**pod, "spec": {**pod["spec"], "serviceAccountName": account}}


@pytest.mark.timeout(180)
def test_certificates_rotate_at_half_life_without_interrupting_connections() -> None:
    """A lab with a certificate lifetime of eight seconds."""
    with Lab(f"r{os.getpid() % 100000}", agent_options=("--cert-ttl", "8")) as lab:
        lab.apply(python_pod("server", "node2", script="server.py"))
        target = addresses(lab, "server")[4]
        before = serial(lab, target)
        said = client(lab, "client", "repeat", target, 7000, "14")
        assert said["failed"] == 0, said
        assert serial(lab, target) != before


def serial(lab: Lab, target: str) -> str:
    """The serial number of the certificate that a pod presents."""
    argv = ("openssl", "s_client", "-connect", f"{target}:15008", "-alpn", "h2", "-showcerts")
    done = lab.node_exec("node1", "sh", "-c", f"{' '.join(argv)} </dev/null")
    leaf = x509.load_pem_x509_certificates(done.stdout.encode())[0]
    return str(leaf.serial_number)
