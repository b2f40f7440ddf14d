# SPDX-License-Identifier: Apache-2.0
"""TLS sessions on real sockets. The peer is Python's ssl, or `openssl s_client`."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.certificates import Authority
from tests.unit.proxy.h2client import tls_context
from tests.unit.proxy.harness import DEADLINE
from ztunnel.proxy.io.buffers import BUFFER_BYTES, Buffer, BufferPool
from ztunnel.proxy.io.event_loop import READ, WRITE
from ztunnel.proxy.tls import credentials
from ztunnel.proxy.tls.session import RECORD_BYTES, CertificateError, TlsError, TlsSession

US, PEER = "spiffe://cluster.local/ns/n/sa/us", "spiffe://cluster.local/ns/n/sa/peer"
MANY_UPDATES = 200


class Peer:
    """A client with TLS in memory, so that the test controls when octets are sent."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing)

    def do_handshake(self, sock: socket.socket) -> None:
        """Complete the handshake on this side; its last flight stays in `outgoing`."""
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                sock.sendall(self.outgoing.read())
                self.incoming.write(sock.recv(1 << 16))
            else:
                return

    def decrypt(self, octets: bytes) -> bytes:
        self.incoming.write(octets)
        plain = b""
        with contextlib.suppress(ssl.SSLWantReadError):
            while chunk := self.tls.read(1 << 16):
                plain += chunk
        return plain


@dataclass
class Ends:
    session: TlsSession
    peer: Peer
    sock: socket.socket  # the peer's, blocking
    buffer: Buffer

    def read(self) -> bytes:
        """All plaintext that has arrived, including data sent with the handshake."""
        plain = bytes(self.buffer.view[: self.session.read_into(self.buffer)])
        while not self.session.end_reason and select.select([self.session.sock], [], [], 0)[0]:
            plain += bytes(self.buffer.view[: self.session.read_into(self.buffer)])
        return plain

    def write(self, plain: bytes) -> bool:
        self.buffer.view[: len(plain)] = plain
        return self.session.write(self.buffer, len(plain))


@contextlib.contextmanager
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The session's and the peer's socket of one TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname(), DEADLINE)
        ours, _ = listener.accept()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


def step(session: TlsSession) -> int:
    """Call `handshake` until it is complete, or needs input that has not arrived."""
    while True:
        mask = session.handshake()
        readable, _, _ = select.select([session.sock], [], [], 0)
        if not mask or not (mask & READ and readable):
            return mask


@contextlib.contextmanager
def served(authority: Authority, context: ssl.SSLContext | None = None) -> Iterator[Ends]:
    """A server session, and a client whose last handshake message is not sent yet."""
    if context is None:
        context = tls_context(authority.issue(PEER), authority.root_pem, "h2")
    ours = credentials.load_credentials(authority.issue(US)).server
    with sockets() as (mine, theirs):
        session = TlsSession(mine, ours, BufferPool(), server_side=True)
        peer = Peer(context)
        with contextlib.suppress(ssl.SSLWantReadError):
            peer.tls.do_handshake()
        theirs.sendall(peer.outgoing.read())
        wait_readable(mine)
        step(session)
        peer.do_handshake(theirs)
        yield Ends(session, peer, theirs, Buffer())


@pytest.fixture
def ends(authority: Authority) -> Iterator[Ends]:
    """Session and client after the handshake."""
    with served(authority) as made:
        made.sock.sendall(made.peer.outgoing.read())
        wait_readable(made.session.sock)
        assert step(made.session) == 0
        yield made


def wait_readable(sock: socket.socket) -> None:
    assert select.select([sock], [], [], DEADLINE)[0], "nothing arrived"


def test_data_in_the_segment_of_the_last_handshake_message_is_read(
    authority: Authority,
) -> None:
    with served(authority) as ends:
        ends.peer.tls.write(b"early bird")
        ends.sock.sendall(ends.peer.outgoing.read())
        wait_readable(ends.session.sock)
        assert step(ends.session) == 0
        assert ends.read() == b"early bird"


def test_session_reports_peer_certificate_cipher_and_protocol(ends: Ends) -> None:
    assert credentials.check_peer(ends.session) == PEER
    assert ends.session.protocol == credentials.ALPN
    assert ends.session.cipher in credentials.CIPHERS
    assert not ends.session.resumed


def test_whole_buffer_is_sent_by_one_system_call(ends: Ends) -> None:
    sends = []

    class Counted(socket.socket):
        def send(self, data, flags=0):  # type: ignore[no-untyped-def]
            sends.append(len(data))
            return super().send(data, flags)

    mine = ends.session.sock
    mine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * BUFFER_BYTES)
    ends.session.sock = Counted(fileno=mine.detach())
    with ends.session.sock:
        ends.session.sock.setblocking(False)
        ends.write(bytes(BUFFER_BYTES))
    assert sends[0] > BUFFER_BYTES
    assert sum(sends[1:]) == 0 or len(sends) == 2  # a second one only if the first was short


def test_pending_ciphertext_arrives_in_order(ends: Ends) -> None:
    plain = bytes(range(256)) * (BUFFER_BYTES // 256)
    mine = ends.session.sock
    mine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, RECORD_BYTES)
    rounds = 0
    while ends.write(plain):
        rounds += 1
    rounds += 1
    assert ends.session.pending
    ends.sock.setblocking(False)
    received = b""
    while len(received) < rounds * len(plain):
        with contextlib.suppress(BlockingIOError):
            received += ends.peer.decrypt(ends.sock.recv(1 << 20))
        ends.session.flush()
    assert not ends.session.pending
    assert received == plain * rounds


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    sizes=st.lists(st.integers(1, 3 * RECORD_BYTES), min_size=1, max_size=6),
    cuts=st.lists(st.integers(1, 40_000), min_size=1, max_size=8),
)
def test_all_plaintext_is_read_however_the_octets_are_split(
    authority: Authority, sizes: list[int], cuts: list[int]
) -> None:
    with served(authority) as ends:
        ends.sock.sendall(ends.peer.outgoing.read())
        wait_readable(ends.session.sock)
        assert step(ends.session) == 0
        plain = b""
        for number, size in enumerate(sizes):
            part = bytes([number]) * size
            plain += part
            ends.peer.tls.write(part)
        octets = ends.peer.outgoing.read()
        received, sent, turn = ends.read(), 0, 0
        while sent < len(octets):
            piece = octets[sent : sent + cuts[turn % len(cuts)]]
            sent, turn = sent + len(piece), turn + 1
            ends.sock.sendall(piece)
            wait_readable(ends.session.sock)
            received += ends.read()
        assert received == plain
        assert not ends.session.end_reason


def test_end_of_the_peer_differs_from_no_input(ends: Ends) -> None:
    assert ends.read() == b""
    assert ends.session.end_reason == ""
    with contextlib.suppress(ssl.SSLWantReadError):
        ends.peer.tls.unwrap()
    ends.sock.sendall(ends.peer.outgoing.read())
    wait_readable(ends.session.sock)
    ends.read()
    assert ends.session.end_reason == "closed by peer"


def test_invalid_record_ends_the_session(ends: Ends) -> None:
    ends.sock.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
    wait_readable(ends.session.sock)
    assert ends.read() == b""
    assert "bad record mac" in ends.session.end_reason


def test_close_notify_reaches_the_peer(ends: Ends) -> None:
    ends.session.send_close_notify()
    while not is_over(ends.peer.tls):
        octets = ends.sock.recv(1 << 16)
        assert octets, "the connection closed without close_notify"
        ends.peer.incoming.write(octets)


def is_over(session: ssl.SSLObject) -> bool:
    """Whether close_notify has arrived; session tickets precede it."""
    try:
        return session.read(1) == b""
    except ssl.SSLWantReadError:
        return False


def test_untrusted_peer_gets_an_alert_and_the_error_names_the_cause(authority: Authority) -> None:
    other = Authority()
    context = tls_context(other.issue(PEER), authority.root_pem, "h2")
    with served(authority, context) as ends:
        ends.sock.sendall(ends.peer.outgoing.read())
        wait_readable(ends.session.sock)
        with pytest.raises(CertificateError, match="certificate signature failure"):
            step(ends.session)
        ends.peer.incoming.write(ends.sock.recv(1 << 16))
        with pytest.raises(ssl.SSLError, match="alert"):
            ends.peer.tls.read(1)


def test_peer_without_certificate_is_refused(authority: Authority) -> None:
    with served(authority, tls_context(None, authority.root_pem, "h2")) as ends:
        ends.sock.sendall(ends.peer.outgoing.read())
        wait_readable(ends.session.sock)
        with pytest.raises(TlsError, match="peer did not return a certificate"):
            step(ends.session)


def test_disconnect_during_the_handshake_is_reported(authority: Authority) -> None:
    context = credentials.load_credentials(authority.issue(US)).server
    with sockets() as (mine, theirs):
        session = TlsSession(mine, context, BufferPool(), server_side=True)
        assert session.handshake() == READ
        theirs.close()
        wait_readable(mine)
        with pytest.raises(TlsError, match="closed by peer"):
            session.handshake()


def test_handshake_waits_for_write_when_the_socket_is_full(authority: Authority) -> None:
    context = credentials.load_credentials(authority.issue(US)).client
    with sockets() as (mine, theirs):
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        with contextlib.suppress(BlockingIOError):
            while True:
                mine.send(bytes(RECORD_BYTES))
        session = TlsSession(mine, context, BufferPool(), server_side=False)
        assert session.handshake() == WRITE
        assert session.pending


def test_key_updates_are_answered_without_other_traffic(authority: Authority) -> None:
    """`openssl s_client` sends a key update request for each line K."""
    context = credentials.load_credentials(authority.issue(US)).server
    client = authority.issue(PEER)
    with (
        tempfile.TemporaryDirectory(prefix="zt-") as directory,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        pem = Path(directory, "pem")
        pem.write_bytes(client.key_pem + client.chain_pem)
        port = listener.getsockname()[1]
        command = f"openssl s_client -connect 127.0.0.1:{port} -alpn h2 -tls1_3 -cert {pem}"
        with subprocess.Popen(
            command.split(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as program:
            assert program.stdin is not None
            mine, _ = listener.accept()
            with mine:
                mine.setblocking(False)
                session, buffer = (
                    TlsSession(mine, context, BufferPool(), server_side=True),
                    Buffer(),
                )
                while session.handshake():
                    wait_readable(mine)
                received = b""
                for number in range(1, MANY_UPDATES + 1):
                    words = [b"K\n"] if number % 10 else [b"K\n", b"and on\n"]
                    for line in words:  # it rejects more than 32 updates in a row
                        program.stdin.write(line)
                        program.stdin.flush()
                        wait_readable(mine)
                        received += bytes(buffer.view[: session.read_into(buffer)])
                        assert not session.end_reason, session.end_reason
                session.write(buffer, 1)  # encrypted with the newest key
                assert not session.pending
                program.stdin.close()
                wait_readable(mine)
                while not session.end_reason:
                    received += bytes(buffer.view[: session.read_into(buffer)])
            program.wait(DEADLINE)
            assert received.count(b"and on\n") == MANY_UPDATES // 10
            assert session.end_reason == "closed by peer"
