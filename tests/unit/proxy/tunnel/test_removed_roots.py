# SPDX-License-Identifier: Apache-2.0
"""Tunnels do not outlive the trust in their peer, and peers authenticate again after a time."""

from __future__ import annotations

import socket
import ssl
import time
from types import SimpleNamespace

import msgspec
import pytest
from cryptography import x509

from tests.support.certificates import Authority
from tests.support.waiting import wait_until
from tests.unit.proxy.conftest import Pair
from tests.unit.proxy.h2client import Http2Client, tls_context
from tests.unit.proxy.handlers.test_outbound import dial_is_reset, ping
from tests.unit.proxy.harness import DEADLINE, Node
from ztunnel.ipc.messages import Certificate
from ztunnel.proxy.tls.credentials import load_credentials
from ztunnel.proxy.tunnel import keepalive
from ztunnel.proxy.tunnel import tunnel as tunnel_module
from ztunnel.proxy.tunnel.state import DRAINING

OLD, NEW = Authority("old"), Authority("new")


def certificate(identity: str, issuer: Authority, *roots: Authority) -> Certificate:
    issued = issuer.issue(identity)
    return msgspec.structs.replace(issued, roots_pem=b"".join(root.root_pem for root in roots))


def replace_certificate(node: Node, issuer: Authority, *roots: Authority) -> None:
    before = node.context.credentials[node.me.identity]
    node.agent.send(certificate(node.me.identity, issuer, *roots))
    wait_until(lambda: node.context.credentials[node.me.identity] is not before, "certificate")


def client(pair: Pair, issuer: Authority) -> Http2Client:
    return Http2Client(
        (pair.b.ip, 15008), issuer.issue(pair.a.me.identity), NEW.root_pem, source=pair.a.ip
    )


def is_closed(peer: Http2Client) -> bool:
    try:
        while True:
            peer.read()
    except (EOFError, ConnectionResetError, ssl.SSLError):
        return True
    except TimeoutError:
        return False


def start(pair: Pair, a_issuer: Authority = NEW, b_issuer: Authority = NEW) -> Pair:
    """Both nodes trust both roots."""
    pair.a.start(certificate(pair.a.me.identity, a_issuer, OLD, NEW))
    pair.b.start(certificate(pair.b.me.identity, b_issuer, OLD, NEW))
    return pair


def test_inbound_tunnel_is_closed_when_its_root_is_removed(fresh_pair: Pair) -> None:
    pair = start(fresh_pair)
    with client(pair, OLD) as old, client(pair, NEW) as new:
        for peer in (old, new):
            assert peer.status(peer.connect(str(pair.app.address))) == 200
        replace_certificate(pair.b, NEW, NEW)
        assert is_closed(old)
        assert new.status(new.connect(str(pair.app.address))) == 200


def test_outbound_tunnel_is_closed_when_its_root_is_removed(fresh_pair: Pair) -> None:
    pair = start(fresh_pair, b_issuer=OLD)
    with pair.a.dial() as app, pair.app.accept():
        wait_until(lambda: pair.a.context.pool.open, "a tunnel")
        replace_certificate(pair.a, NEW, NEW)
        wait_until(lambda: not pair.a.context.pool.open, "the tunnel to close")
        with pytest.raises(ConnectionResetError):
            app.recv(1)
    dial_is_reset(pair)


def test_open_streams_survive_a_change_that_keeps_their_root(fresh_pair: Pair) -> None:
    pair = start(fresh_pair)
    with pair.a.dial() as app:
        server = pair.app.accept()
        for roots in ((NEW,), (NEW, OLD), (NEW,)):
            for node in (pair.a, pair.b):
                replace_certificate(node, NEW, *roots)
            app.sendall(b"x")
            assert server.recv(1) == b"x"
    ping(pair)


def test_root_removed_during_the_handshake_refuses_the_peer(fresh_pair: Pair) -> None:
    pair = start(fresh_pair)
    context = tls_context(OLD.issue(pair.a.me.identity), NEW.root_pem, "h2")
    with socket.create_connection((pair.b.ip, 15008), DEADLINE) as raw:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing)
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        raw.sendall(outgoing.read())
        incoming.write(raw.recv(1 << 16))  # the server's flight
        replace_certificate(pair.b, NEW, NEW)
        tls.do_handshake()
        raw.sendall(outgoing.read())
        wait_until(lambda: pair.b.context.tracker.stats.handshakes_failed == 1, "the refusal")


def test_draining_worker_closes_tunnels_of_a_removed_root(fresh_pair: Pair) -> None:
    pair = start(fresh_pair)
    with client(pair, OLD) as old:
        assert old.status(old.connect(str(pair.app.address))) == 200
        removed = certificate(pair.b.me.identity, NEW, NEW)
        pair.b.in_loop(lambda: setattr(pair.b.worker, "_draining", True))
        pair.b.in_loop(lambda: pair.b.worker.receive(removed, []))
        assert is_closed(old)
        pair.b.in_loop(lambda: setattr(pair.b.worker, "_draining", False))


@pytest.mark.parametrize("expired", [False, True])
def test_trust_depends_on_the_root_not_on_the_expiry(expired: bool) -> None:
    identity = "spiffe://cluster.local/ns/n/sa/a"
    leaf = _parsed(OLD.issue(identity, expired=expired))
    session = SimpleNamespace(peer_certificate=leaf, peer_chain=[])
    assert load_credentials(certificate(identity, NEW, OLD, NEW)).trusts(session)
    assert not load_credentials(certificate(identity, NEW, NEW)).trusts(session)


def test_peer_cannot_extend_trust_by_the_chain_it_sent() -> None:
    identity = "spiffe://cluster.local/ns/n/sa/a"
    session = SimpleNamespace(
        peer_certificate=_parsed(OLD.issue(identity)), peer_chain=[OLD.root, NEW.root]
    )
    assert not load_credentials(certificate(identity, NEW, NEW)).trusts(session)


def test_inbound_tunnel_drains_at_its_maximum_age_without_a_failure(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keepalive, "PING_INTERVAL_S", 0.1)
    monkeypatch.setattr(tunnel_module, "MAX_INBOUND_AGE_S", 0.3)
    monkeypatch.setattr(tunnel_module, "GOAWAY_GRACE_S", 0.5)
    with pair.a.dial() as app:
        server = pair.app.accept()
        wait_until(pair.a.context.pool.tunnels, "a tunnel")
        ((_, first),) = pair.a.context.pool.tunnels()
        wait_until(lambda: first.state is DRAINING, "the first tunnel to drain")
        for _ in range(40):  # over several drains
            ping(pair)
            time.sleep(0.03)
        app.sendall(b"still open")
        assert server.recv(99) == b"still open"
        assert first.state is DRAINING
        server.close()
    wait_until(lambda: first not in pair.a.context.pool.open, "the drained tunnel to close")


def _parsed(issued: Certificate) -> x509.Certificate:
    return x509.load_pem_x509_certificate(issued.chain_pem)
