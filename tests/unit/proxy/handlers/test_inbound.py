# SPDX-License-Identifier: Apache-2.0
"""Port 15008 against an independent HTTP/2 client, conforming or hostile."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
import time
from collections.abc import Iterator
from types import SimpleNamespace

import h2.events
import pytest

from tests.support.certificates import Authority
from tests.support.waiting import wait_until
from tests.unit.proxy.conftest import Pair
from tests.unit.proxy.h2client import Http2Client, tls_context
from tests.unit.proxy.harness import DEADLINE
from ztunnel.ipc.messages import Certificate
from ztunnel.proxy.tls import credentials, handshake
from ztunnel.proxy.tunnel import keepalive

DATA, GOAWAY = 0x0, 0x7  # frame types, RFC 9113


def client(pair: Pair, certificate: Certificate | None = None, alpn: str = "h2") -> Http2Client:
    mine = certificate or pair.authority.issue(pair.a.me.identity)
    return Http2Client(
        (pair.b.ip, 15008), mine, pair.authority.root_pem, source=pair.a.ip, alpn=alpn
    )


@contextlib.contextmanager
def reset_at_any_step() -> Iterator[None]:
    """The proxy may close the connection early; then the socket is not connected any more."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN):
            raise


def still_serves(pair: Pair) -> None:
    """A conforming client is still served: the hostile one affected no other."""
    with client(pair) as peer:
        assert peer.status(peer.connect(str(pair.app.address))) == 200
        pair.app.accept().close()


def test_200_with_baggage_then_bytes_both_ways(pair: Pair) -> None:
    with client(pair) as peer:
        stream = peer.connect(str(pair.app.address))
        headers = peer.headers(stream)
        assert headers[":status"] == "200"
        assert "k8s.namespace.name=test" in headers["baggage"]
        server = pair.app.accept()
        peer.h2.send_data(stream, b"over http/2", end_stream=True)
        peer.flush()
        assert server.recv(100) == b"over http/2"
        assert server.recv(100) == b""
        server.sendall(b"and back")
        server.close()
        assert peer.wait(h2.events.DataReceived, stream).data == b"and back"
        peer.wait(h2.events.StreamEnded, stream)


def test_settings_announce_hbone_windows_and_limits(pair: Pair) -> None:
    with client(pair) as peer:
        while not any(isinstance(one, h2.events.RemoteSettingsChanged) for one in peer.events):
            peer.read()
        remote = peer.h2.remote_settings
        assert remote.initial_window_size == 256 << 10
        assert remote.max_frame_size == 1 << 20
        assert remote.max_concurrent_streams == 200
        assert remote.max_header_list_size == 64 << 10
        assert peer.h2.outbound_flow_control_window == 1 << 20


@pytest.mark.parametrize("port", [15001, 15006, 15008])
def test_connect_to_reserved_ports_is_400(pair: Pair, port: int) -> None:
    with client(pair) as peer:
        assert peer.status(peer.connect(f"{pair.b.ip}:{port}")) == 400
    still_serves(pair)


@pytest.mark.parametrize("target", ["my-app:80", "10.0.0.1", "10.0.0.1:x", ":80", "1:2:3"])
def test_bad_authority_is_400(pair: Pair, target: str) -> None:
    with client(pair) as peer:
        assert peer.status(peer.connect(target)) == 400


def test_connect_to_another_pods_address_is_400(pair: Pair) -> None:
    with client(pair) as peer:
        assert peer.status(peer.connect(f"{pair.a.ip}:80")) == 400


def test_get_is_400(pair: Pair) -> None:
    headers = [
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", str(pair.app.address)),
    ]
    with client(pair) as peer:
        assert peer.status(peer.request(headers)) == 400
    still_serves(pair)


def test_connection_refused_by_the_app_is_503(pair: Pair) -> None:
    with client(pair) as peer:
        assert peer.status(peer.connect(f"{pair.b.ip}:1")) == 503


def test_stream_reset_by_the_client_resets_the_app(pair: Pair) -> None:
    with client(pair) as peer:
        stream = peer.connect(str(pair.app.address))
        assert peer.status(stream) == 200
        server = pair.app.accept()
        peer.h2.reset_stream(stream)
        peer.flush()
        with pytest.raises(ConnectionResetError):
            server.recv(1)


def test_lost_tls_connection_resets_the_app(pair: Pair) -> None:
    peer = client(pair)
    assert peer.status(peer.connect(str(pair.app.address))) == 200
    server = pair.app.accept()
    peer.sock.close()
    with pytest.raises(ConnectionResetError):
        server.recv(1)


def refused(pair: Pair, certificate: Certificate | None, alpn: str = "h2") -> None:
    """With TLS 1.3 a client notices a refusal only when it reads."""
    context = tls_context(certificate, pair.authority.root_pem, alpn)
    with socket.create_connection((pair.b.ip, 15008), DEADLINE) as raw:
        try:
            with context.wrap_socket(raw) as sock:
                assert sock.recv(1) == b""
        except (ssl.SSLError, ConnectionResetError):
            pass
    wait_until(lambda: pair.b.context.tracker.stats.handshakes_failed == 1)
    still_serves(pair)


def test_client_of_another_ca_is_refused(pair: Pair) -> None:
    refused(pair, Authority().issue(pair.a.me.identity))


def test_expired_client_certificate_is_refused(pair: Pair) -> None:
    refused(pair, pair.authority.issue(pair.a.me.identity, expired=True))


def test_client_of_another_trust_domain_is_refused(pair: Pair) -> None:
    refused(pair, pair.authority.issue("spiffe://elsewhere/ns/test/sa/a"))


def test_certificate_without_spiffe_id_is_refused(pair: Pair) -> None:
    refused(pair, pair.authority.issue("https://example.org/a"))


def test_client_certificate_of_a_ca_is_refused(pair: Pair) -> None:
    refused(pair, pair.authority.issue(pair.a.me.identity, ca=True))


@pytest.mark.parametrize("signs", ["key_cert_sign", "crl_sign"])
def test_client_certificate_that_may_sign_others_is_refused(pair: Pair, signs: str) -> None:
    refused(pair, pair.authority.issue(pair.a.me.identity, signs=signs))


@pytest.mark.parametrize("other", ["spiffe://cluster.local/ns/n/sa/other", "https://example.org/a"])
@pytest.mark.parametrize("is_first", [True, False])
def test_client_certificate_with_two_uris_is_refused(
    pair: Pair, other: str, is_first: bool
) -> None:
    uris = [pair.a.me.identity, other]
    refused(pair, pair.authority.issue(*(uris if is_first else reversed(uris))))


def test_no_client_certificate_is_refused(pair: Pair) -> None:
    refused(pair, None)


@pytest.mark.parametrize("alpn", ["", "http/1.1"])
def test_wrong_alpn_is_refused(pair: Pair, alpn: str) -> None:
    refused(pair, pair.authority.issue(pair.a.me.identity), alpn)


@pytest.mark.parametrize(
    "junk", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"\0" * 99, b"\xff"]
)
def test_junk_before_tls_closes_the_connection(pair: Pair, junk: bytes) -> None:
    with socket.create_connection((pair.b.ip, 15008), DEADLINE) as raw, reset_at_any_step():
        raw.sendall(junk)
        raw.shutdown(socket.SHUT_WR)
        while raw.recv(4096):
            pass
    still_serves(pair)


def test_connections_without_handshake_are_closed_after_the_timeout(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshake, "HANDSHAKE_TIMEOUT_S", 0.2)
    with socket.create_connection((pair.b.ip, 15008), DEADLINE) as raw:
        assert raw.recv(1) == b""


def test_handshake_limit_aborts_the_oldest_handshake(pair: Pair) -> None:
    idle = [socket.create_connection((pair.b.ip, 15008), DEADLINE) for _ in range(300)]
    wait_until(lambda: pair.b.context.tracker.stats.handshakes_failed >= 44)
    assert idle[0].recv(1) == b""
    still_serves(pair)
    for sock in idle:
        sock.close()


def test_junk_inside_tls_closes_the_connection(pair: Pair) -> None:
    context = tls_context(pair.authority.issue(pair.a.me.identity), pair.authority.root_pem, "h2")
    with (
        socket.create_connection((pair.b.ip, 15008), DEADLINE) as raw,
        context.wrap_socket(raw) as sock,
    ):
        sock.sendall(os.urandom(4096))
        try:
            while sock.recv(4096):
                pass
        except (ConnectionResetError, ssl.SSLError):
            pass
    still_serves(pair)


def test_oversize_headers_do_not_reach_the_app(pair: Pair) -> None:
    with client(pair) as peer:
        stream = peer.connect(str(pair.app.address), [("x", "y" * 10_000)] * 9)
        with pytest.raises((EOFError, OSError, AssertionError)):
            assert peer.status(stream) == 200
    still_serves(pair)


def test_10000_sequential_streams_are_served(pair: Pair) -> None:
    """The streams are refused: none leaves state behind."""
    with client(pair) as peer:
        for _ in range(100):
            streams = [
                peer.h2.get_next_available_stream_id() and peer.connect(f"{pair.b.ip}:15008")
                for _ in range(100)
            ]
            for stream in streams:
                assert peer.status(stream) == 400
            peer.events.clear()
        (connection,) = list(pair.b.worker.pods[pair.b.me.pod_uid].live)
        assert connection._tunnel.streams == {}  # type: ignore[attr-defined]
    still_serves(pair)


def test_streams_beyond_the_limit_are_refused_and_others_continue(pair: Pair) -> None:
    with client(pair) as peer:
        peer.connect(str(pair.app.address))
        peer.h2.remote_settings.update({3: 1000})  # the client ignores the announced limit
        peer.h2.remote_settings.acknowledge()
        streams = [peer.connect(str(pair.app.address)) for _ in range(250)]
        peer.wait(h2.events.StreamReset, streams[-1])
        assert peer.status(streams[0]) == 200
    still_serves(pair)


def test_slowly_sent_frame_does_not_block_other_connections(pair: Pair) -> None:
    with client(pair) as peer:
        for byte in b"\x00\x00\x20\x01\x04\x00\x00\x00\x01":
            peer.sock.sendall(bytes([byte]))
            started = time.monotonic()
            still_serves(pair)
            assert time.monotonic() - started < DEADLINE / 2


def test_peer_that_completes_no_frame_is_closed(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keepalive, "PING_INTERVAL_S", 0.1)
    context = tls_context(pair.authority.issue(pair.a.me.identity), pair.authority.root_pem, "h2")
    with (
        socket.create_connection((pair.b.ip, 15008), DEADLINE) as raw,
        context.wrap_socket(raw) as sock,
    ):
        drip = iter(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r" + bytes(1000))
        wait_until(
            lambda: is_closed_while_sending(sock, next(drip)), "the proxy to close the connection"
        )
    still_serves(pair)


def is_closed_while_sending(sock: ssl.SSLSocket, byte: int) -> bool:
    try:
        sock.sendall(bytes([byte]))
    except (ConnectionError, ssl.SSLError):
        return True
    return False


def test_peer_that_does_not_answer_ping_is_closed(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keepalive, "PING_INTERVAL_S", 0.05)
    monkeypatch.setattr(keepalive, "PING_TIMEOUT_S", 0.1)
    with client(pair) as peer:
        assert peer.status(peer.connect(str(pair.app.address))) == 200
        server = pair.app.accept()
        with pytest.raises(ConnectionResetError):
            server.recv(1)  # the client does not read, so it does not answer PING


def test_tunnel_drains_when_the_client_certificate_expires(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keepalive, "PING_INTERVAL_S", 0.05)
    with client(pair) as peer:
        stream = peer.connect(str(pair.app.address))
        assert peer.status(stream) == 200
        server = pair.app.accept()
        two_days_on = SimpleNamespace(time=lambda: time.time() + 48 * 3600)
        monkeypatch.setattr(credentials, "time", two_days_on)
        wait_for_frame(peer.sock, GOAWAY)
        server.sendall(b"still here")  # admitted connections continue
        assert wait_for_frame(peer.sock, DATA) == b"still here"
        server.close()


def wait_for_frame(sock: ssl.SSLSocket, kind: int) -> bytes:
    """The payload of the next frame of a type; h2 reads nothing after GOAWAY."""
    while True:
        head = exactly(sock, 9)
        payload = exactly(sock, int.from_bytes(head[:3], "big"))
        if head[3] == kind:
            return payload


def exactly(sock: ssl.SSLSocket, count: int) -> bytes:
    read = b""
    while len(read) < count:
        more = sock.recv(count - len(read))
        assert more, "closed by the proxy"
        read += more
    return read


def test_allowed_same_node_pair_is_reported_once(pair: Pair) -> None:
    with client(pair) as peer:
        for _ in range(3):
            assert peer.status(peer.connect(str(pair.app.address))) == 200
            pair.app.accept().close()
    wait_until(lambda: pair.b.agent.allowed, "the report")
    message = pair.b.agent.allowed[0]
    assert (message.source_ip, message.source_identity) == (pair.a.ip, pair.a.me.identity)
    assert (message.pod_uid, message.destination) == (pair.b.me.pod_uid, pair.app.address)
    assert message.revision == 1
    assert len(pair.b.agent.allowed) == 1


def test_allowed_peer_with_other_identity_than_its_address_is_not_reported(pair: Pair) -> None:
    """The address is a's, the certificate b's own: allowed, but not as the pod at that address."""
    with client(pair, pair.authority.issue(pair.b.me.identity)) as peer:
        assert peer.status(peer.connect(str(pair.app.address))) == 200
        pair.app.accept().close()
    still_serves(pair)
    wait_until(lambda: pair.b.agent.allowed, "the report of the expected peer")
    assert {message.source_identity for message in pair.b.agent.allowed} == {pair.a.me.identity}
