# SPDX-License-Identifier: Apache-2.0
"""Inbound decisions: accepted clients and their identity, and the status of rejections."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.mesh.builders import PLAIN, addresses, mapped, mesh, ports, workload
from ztunnel.mesh.headers.forwarded import format_forwarded
from ztunnel.mesh.model import SocketAddress
from ztunnel.mesh.ports import RESERVED
from ztunnel.mesh.routing.decisions import Accept, Reject
from ztunnel.mesh.routing.inbound import check_connect, check_plain

SERVER = workload("server", "10.244.2.2", "fd00:10:244:2::2", account="web")
CLIENT = workload("client", "10.244.1.2", "fd00:10:244:1::2", account="client")
SIBLING = workload("sibling", "10.244.1.3", account="client")  # CLIENT's service account
STRANGER = workload("stranger", "10.244.1.4", account="stranger")
STATE = mesh(SERVER, CLIENT, SIBLING, STRANGER)

LOCAL = SocketAddress("10.244.2.2", 15008)
LOCAL6 = SocketAddress("fd00:10:244:2::2", 15008)
PEER = SocketAddress("10.244.1.2", 41000)
DESTINATION = SocketAddress("10.244.2.2", 80)
SERVICE = "web.shop.svc.cluster.local"


@dataclass(frozen=True)
class Connect:
    """A request as decoded by the codec."""

    authority: bytes = b"10.244.2.2:80"
    headers: tuple[tuple[bytes, bytes], ...] = ()
    method: bytes = b"CONNECT"
    protocol: bytes = b""
    path: bytes = b""


def forwarded(ip: str, port: int, host: str = "") -> tuple[bytes, bytes]:
    return b"forwarded", format_forwarded(SocketAddress(ip, port), host).encode()


def check(
    request: Connect,
    *,
    local: SocketAddress = LOCAL,
    peer: SocketAddress = PEER,
    identity: str = CLIENT.identity,
) -> Accept | Reject:
    return check_connect(STATE, request, local=local, peer=peer, identity=identity)


def accepted(request: Connect, *, peer: SocketAddress = PEER) -> Accept:
    decision = check(request, peer=peer)
    assert isinstance(decision, Accept)
    return decision


def test_connect_to_this_pod_is_accepted_as_its_peer() -> None:
    assert check(Connect()) == Accept(PEER, DESTINATION, CLIENT, SERVER)


def test_connect_over_ipv6_is_accepted() -> None:
    peer = SocketAddress("fd00:10:244:1::2", 41000)
    decision = check(Connect(b"[fd00:10:244:2::2]:80"), local=LOCAL6, peer=peer)
    assert decision == Accept(peer, SocketAddress("fd00:10:244:2::2", 80), CLIENT, SERVER)


@pytest.mark.parametrize(
    ("authority", "local"),
    [
        (f"[{mapped('10.244.2.2')}]:80", LOCAL),
        ("[FD00:10:244:2:0:0:0:2]:80", LOCAL6),
        ("[fd00:0010:0244:0002::0002]:80", LOCAL6),
    ],
)
def test_authority_may_use_any_spelling_of_the_pod_address(
    authority: str, local: SocketAddress
) -> None:
    decision = check(Connect(authority.encode()), local=local)
    assert isinstance(decision, Accept)
    assert decision.destination == SocketAddress(local.ip, 80)


@pytest.mark.parametrize(
    "method", [b"GET", b"POST", b"connect", b"CONNECT ", b"CONNECT-UDP", b"", b"\xff", b"X" * 9999]
)
def test_anything_but_connect_is_a_bad_request(method: bytes) -> None:
    decision = check(Connect(method=method))
    assert isinstance(decision, Reject)
    assert decision.status == 400
    assert len(decision.reason) < 120


@pytest.mark.parametrize(
    "authority",
    [
        b"",
        b"10.244.2.2",
        b"10.244.2.2:0",
        b"10.244.2.2:65536",
        b"10.244.2.2:080",
        b"010.244.2.2:80",
        b"user@10.244.2.2:80",
        b"server:80",
        b"web.shop.svc.cluster.local:80",
        b"fd00:10:244:2::2:80",
        b"[fd00:10:244:2::2%eth0]:80",
        b"10.244.2.2:80\n",
        b"10.244.2.2:80\x00",
        "10.244.2.2:８０".encode(),
        b"\xff\xfe",
        b"x" * 100_000,
    ],
)
def test_bad_authority_is_a_bad_request(authority: bytes) -> None:
    decision = check(Connect(authority))
    assert isinstance(decision, Reject)
    assert decision.status == 400
    assert len(decision.reason) < 400


@pytest.mark.parametrize(
    "authority",
    [
        "10.244.1.2:80",  # another pod
        "[fd00:10:244:2::2]:80",  # this pod, but not where the connection came in
        "127.0.0.1:80",
        "[::1]:80",
        "0.0.0.0:80",
        "[::]:80",
        "169.254.169.254:80",
        "172.30.0.1:80",
        "[::ffff:127.0.0.1]:80",
    ],
)
def test_connect_to_any_other_address_is_a_bad_request(authority: str) -> None:
    decision = check(Connect(authority.encode()))
    assert isinstance(decision, Reject)
    assert decision.status == 400
    assert decision.reason.endswith("is not this pod, 10.244.2.2")


@pytest.mark.parametrize("port", sorted(RESERVED))
def test_connect_to_a_loop_port_is_a_bad_request(port: int) -> None:
    decision = check(Connect(f"10.244.2.2:{port}".encode()))
    assert decision == Reject(400, f"port {port} is reserved for the mesh")


def test_connect_to_an_unknown_workload_is_unavailable() -> None:
    local = SocketAddress("10.244.2.99", 15008)
    decision = check(Connect(b"10.244.2.99:80"), local=local)
    assert decision == Reject(503, "no workload owns the address 10.244.2.99")


# Whom the peer may speak for


def test_forwarded_source_equal_to_the_connection_source_is_trusted() -> None:
    decision = accepted(Connect(headers=(forwarded(PEER.ip, 55555, SERVICE),)))
    assert decision == Accept(SocketAddress(PEER.ip, 55555), DESTINATION, CLIENT, SERVER, SERVICE)


def test_forwarded_source_of_a_workload_with_the_proven_identity_is_trusted() -> None:
    decision = accepted(Connect(headers=(forwarded("10.244.1.3", 5),)))
    assert decision.client == SocketAddress("10.244.1.3", 5)
    assert decision.source == SIBLING


@pytest.mark.parametrize("ip", ["10.244.1.4", "10.244.2.2", "192.0.2.1", "127.0.0.1", "fd00::1"])
def test_forwarded_source_of_any_other_workload_is_not_trusted(ip: str) -> None:
    decision = accepted(Connect(headers=(forwarded(ip, 5, SERVICE),)))
    assert decision == Accept(PEER, DESTINATION, CLIENT, SERVER, SERVICE)


def test_peer_from_an_address_of_another_identity_has_no_source_workload() -> None:
    peer = SocketAddress("10.244.1.4", 5)
    assert accepted(Connect(), peer=peer) == Accept(peer, DESTINATION, None, SERVER)
    claimed = Connect(headers=(forwarded("10.244.1.4", 6),))
    assert accepted(claimed, peer=peer).source is None


def test_peer_from_an_unknown_address_has_no_source_workload() -> None:
    peer = SocketAddress("192.0.2.1", 5)
    assert accepted(Connect(), peer=peer) == Accept(peer, DESTINATION, None, SERVER)


def test_only_the_first_forwarded_header_counts() -> None:
    headers = (forwarded(PEER.ip, 1), forwarded(PEER.ip, 2))
    assert accepted(Connect(headers=headers)).client.port == 1


@pytest.mark.parametrize(
    "value", [b"", b"for=", b"for=unknown", b'for="10.244.1.3"', b"\xff" * 99, b"x" * 100_000]
)
def test_malformed_forwarded_header_is_ignored(value: bytes) -> None:
    assert accepted(Connect(headers=((b"forwarded", value),))) == accepted(Connect())


# Anything at all

headers = st.lists(
    st.tuples(
        st.sampled_from((b"forwarded", b"baggage", b"traceparent", b"")) | st.binary(max_size=20),
        st.binary(max_size=600)
        | st.builds(lambda ip, port: forwarded(ip, port)[1], addresses, ports),
    ),
    max_size=4,
).map(tuple)


@given(
    st.sampled_from((b"CONNECT", b"CONNECT", b"GET")) | st.binary(max_size=20),
    st.just(b"10.244.2.2:80")
    | st.builds(lambda ip, port: str(SocketAddress(ip, port)).encode(), addresses, ports)
    | st.binary(max_size=100),
    headers,
)
def test_hostile_request_never_raises_or_reaches_another_pod(
    method: bytes, authority: bytes, fields: tuple[tuple[bytes, bytes], ...]
) -> None:
    decision = check(Connect(authority, fields, method))
    if isinstance(decision, Reject):
        assert decision.status == 400
        return
    assert method == b"CONNECT"
    assert decision.destination.ip == LOCAL.ip
    assert decision.destination.port not in RESERVED
    assert decision.workload == SERVER
    speaks_for = STATE.workload_at(decision.client.ip)
    assert decision.client.ip == PEER.ip or (
        speaks_for is not None and speaks_for.identity == CLIENT.identity
    )


# Plaintext


def plain(client: SocketAddress, destination: SocketAddress) -> Accept | Reject:
    return check_plain(STATE, SERVER.addresses, client, destination)


@pytest.mark.parametrize("ip", SERVER.addresses)
def test_plaintext_from_outside_the_mesh_reaches_the_pod(ip: str) -> None:
    client, destination = SocketAddress("192.0.2.1", 5), SocketAddress(ip, 80)
    assert plain(client, destination) == Accept(client, destination, None, SERVER)


def test_plaintext_from_a_known_pod_names_it_as_source() -> None:
    client = workload("outsider", "10.244.1.9", protocol=PLAIN)
    state = mesh(SERVER, client)
    source = SocketAddress("10.244.1.9", 5)
    decision = check_plain(state, SERVER.addresses, source, DESTINATION)
    assert decision == Accept(source, DESTINATION, client, SERVER)


@pytest.mark.parametrize("ip", ["10.244.1.2", "127.0.0.1", "::1", "172.30.0.1", "0.0.0.0"])
def test_plaintext_to_any_other_address_is_rejected(ip: str) -> None:
    assert plain(PEER, SocketAddress(ip, 80)) == Reject(400, f"{ip} is not this pod")


@pytest.mark.parametrize("port", sorted(RESERVED))
def test_plaintext_to_a_loop_port_is_rejected(port: int) -> None:
    decision = plain(PEER, SocketAddress("10.244.2.2", port))
    assert decision == Reject(400, f"port {port} is reserved for the mesh")


def test_plaintext_to_an_unknown_workload_is_unavailable() -> None:
    decision = check_plain(mesh(CLIENT), SERVER.addresses, PEER, DESTINATION)
    assert decision == Reject(503, "no workload owns the address 10.244.2.2")


def udp(path: bytes, protocol: bytes = b"connect-udp") -> Connect:
    return Connect(authority=b"10.244.2.2:15008", protocol=protocol, path=path)


def test_connect_udp_destination_is_its_path() -> None:
    decision = accepted(udp(b"/.well-known/masque/udp/10.244.2.2/53/"))
    assert decision.udp
    assert decision.destination == SocketAddress("10.244.2.2", 53)
    assert not accepted(Connect()).udp


@pytest.mark.parametrize(
    "request_",
    [
        udp(b"/.well-known/masque/udp/10.244.2.3/53/"),
        udp(b"/.well-known/masque/udp/127.0.0.1/53/"),
        udp(b"/"),
        udp(b""),
        udp(b"/.well-known/masque/udp/10.244.2.2/53/", b"websocket"),
    ],
)
def test_connect_udp_to_another_pod_is_rejected(request_: Connect) -> None:
    decision = check(request_)
    assert isinstance(decision, Reject)
    assert decision.status == 400
