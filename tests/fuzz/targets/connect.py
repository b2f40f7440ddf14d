# SPDX-License-Identifier: Apache-2.0
"""CONNECT requests, from the bytes of a connection to a decision.

The parser never raises and does not depend on how input is split, GOAWAY is its last frame, and a
request is accepted only for the pod that received it. A waypoint also accepts its service, and the
PROXY header for its Envoy contains nothing that the request claims, except the trace context.
"""

from __future__ import annotations

import random
from zlib import crc32

import msgspec

from tests.fuzz.target import Target, rearranged
from tests.support.policies import WEB
from ztunnel.hbone import frames, headers
from ztunnel.hbone.connection import Connection, Role
from ztunnel.hbone.constants import MAX_CONCURRENT_STREAMS
from ztunnel.hbone.events import ConnectionFailed, DataReceived, RequestReceived
from ztunnel.hbone.frames import END_HEADERS, END_STREAM, FrameType
from ztunnel.mesh.address import AddressError
from ztunnel.mesh.headers.connect_udp import format_target, parse_target
from ztunnel.mesh.headers.proxy_protocol import (
    TLV_IDENTITY,
    TLV_TRACEPARENT,
    parse_proxy_header,
)
from ztunnel.mesh.model import Service, ServicePort, SocketAddress, TunnelProtocol
from ztunnel.mesh.ports import RESERVED
from ztunnel.mesh.routing.decisions import Accept, Reject
from ztunnel.mesh.routing.inbound import check_connect
from ztunnel.mesh.state import MeshState
from ztunnel.proxy.handlers.waypoint_header import waypoint_header

POD = WEB.addresses[0]
VIP = "10.96.0.1"
GREETING = frames.PREFACE + frames.settings_frame([])
Pair = tuple[bytes, bytes]


class _Change:
    workloads = (msgspec.structs.replace(WEB, protocol=TunnelProtocol.HBONE),)
    services = removed_workloads = removed_services = policies = removed_policies = ()


class _WaypointChange(_Change):
    workloads = (msgspec.structs.replace(_Change.workloads[0], gateway="shop/wp"),)
    services = (  # type: ignore[assignment]
        Service(
            namespace="shop",
            name="api",
            vips=(VIP,),
            ports=(ServicePort(80),),
            hostname="api.shop.svc.cluster.local",
            waypoint="shop/wp",
        ),
    )


MESH, WAYPOINT_MESH = MeshState(), MeshState()
MESH.apply(_Change())
WAYPOINT_MESH.apply(_WaypointChange())
IDENTITY = "spiffe://cluster.local/ns/shop/sa/web"
PEER = SocketAddress("10.244.2.9", 40000)


def check(octets: bytes) -> None:
    whole, said = _received(octets, 1 << 20)
    again, answered = _received(octets, 1 + crc32(octets) % 32)
    assert answered == said, "another answer to the same octets in pieces"
    assert _requests(again) == _requests(whole)
    for request in _requests(whole):
        _decide(request)
    _check_path(octets)


def _received(octets: bytes, size: int) -> tuple[list[object], bytes]:
    connection = Connection(Role.SERVER, extended_connect=True)
    events: list[object] = list(connection.receive(memoryview(GREETING), 0.0))
    for at in range(0, len(octets), size):
        events += connection.receive(memoryview(octets)[at : at + size], 0.0)
    assert connection.open_streams <= MAX_CONCURRENT_STREAMS
    failures = [event for event in events if isinstance(event, ConnectionFailed)]
    assert failures == (events[-1:] if connection.failed else [])
    payload = sum(len(event.payload) for event in events if isinstance(event, DataReceived))
    assert payload <= len(octets)
    return events, connection.take_output()


def _requests(events: list[object]) -> list[RequestReceived]:
    return [event for event in events if isinstance(event, RequestReceived)]


def _decide(request: RequestReceived) -> None:
    block = headers.encode(request.headers)
    assert headers.decode_plain(block) == list(request.headers)
    decision = check_connect(
        MESH,
        request,
        local=SocketAddress(POD, 15008),
        peer=PEER,
        identity=IDENTITY,
    )
    if isinstance(decision, Accept):
        assert request.method == b"CONNECT"
        assert decision.destination.ip == POD
        assert decision.udp or decision.destination.port not in RESERVED
    else:
        assert isinstance(decision, Reject)
        assert decision.status in (400, 503)
    _decide_at_waypoint(request)


def _decide_at_waypoint(request: RequestReceived) -> None:
    decision = check_connect(
        WAYPOINT_MESH, request, local=SocketAddress(POD, 15008), peer=PEER, identity=IDENTITY
    )
    if isinstance(decision, Reject):
        assert decision.status in (400, 503)
        return
    if not decision.to_waypoint:
        assert decision.destination.ip == POD
        return
    assert not decision.udp
    assert decision.destination == SocketAddress(VIP, 80)
    trace = next((value for name, value in request.headers if name == b"traceparent"), b"")
    header = parse_proxy_header(waypoint_header(decision, IDENTITY, trace))
    assert header is not None
    assert header.destination == decision.destination
    assert header.source == decision.client
    assert [value for kind, value in header.tlvs if kind == TLV_IDENTITY] == [IDENTITY.encode()]
    claimed = {kind: value for kind, value in header.tlvs if kind != TLV_IDENTITY}
    assert claimed.pop(TLV_TRACEPARENT, trace) == trace
    assert not claimed or decision.source is not None


def _check_path(octets: bytes) -> None:
    try:
        target = parse_target(octets)
    except AddressError:
        return
    assert parse_target(format_target(target).encode()) == target


def _plain(fields: list[Pair], stream: int = 1, flags: int = END_HEADERS) -> bytes:
    """HEADERS that can break any rule; names and values are shorter than 127 bytes."""
    block = b"".join(
        b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value
        for name, value in ((name[:126], value[:126]) for name, value in fields)
    )
    return frames.frame(FrameType.HEADERS, flags, stream, block)


_CONNECT: list[Pair] = [(b":method", b"CONNECT"), (b":authority", b"10.244.1.7:80")]
_UDP: list[Pair] = [
    (b":method", b"CONNECT"),
    (b":protocol", b"connect-udp"),
    (b":scheme", b"https"),
    (b":authority", b"10.244.1.7:53"),
    (b":path", b"/.well-known/masque/udp/10.244.1.7/53/"),
]
_SPARE: list[Pair] = [
    *_UDP,
    (b":authority", b"[fd00::7]:80"),
    (b":authority", b"10.244.1.7:15008"),
    (b":authority", b"[::ffff:10.244.1.7]:80"),
    (b":authority", b"010.244.1.7:80"),
    (b":authority", b"10.96.0.1:80"),
    (b":authority", b"api.shop.svc.cluster.local:80"),
    (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    (b"host", b"elsewhere"),
    (b"forwarded", b'for="10.244.2.9:1";host=web.shop.svc.cluster.local'),
    (b"baggage", b"k8s.namespace.name=shop"),
    (b"transfer-encoding", b"chunked"),
    (b"content-length", b"5"),
    (b"te", b"trailers"),
    (b"Upper", b"case"),
    (b"nul", b"a\0b"),
    (b"", b""),
    (b":status", b"200"),
]
_FRAMES = (
    frames.ping(b"12345678"),
    frames.settings_frame([]),
    frames.window_update(0, 1000),
    frames.window_update(1, 0),
    frames.rst_stream(1, 8),
    frames.goaway(0, 0),
    frames.frame(FrameType.DATA, 0, 1, b"payload"),
    frames.frame(FrameType.DATA, END_STREAM, 1, b""),
    frames.frame(FrameType.CONTINUATION, END_HEADERS, 1, b""),
)


def _split(octets: bytes) -> list[bytes]:
    """The complete frames, and the remainder."""
    parts = []
    while octets:
        size = frames_end if (frames_end := 9 + int.from_bytes(octets[:3], "big")) else 9
        parts.append(octets[:size])
        octets = octets[size:]
    return parts


def _mutate(octets: bytes, chance: random.Random) -> bytes:
    fields = rearranged(chance.choice((_CONNECT, _UDP)), _SPARE, chance)
    flags = END_HEADERS if chance.random() < 0.9 else chance.getrandbits(8)
    request = _plain(fields, chance.choice((1, 1, 3, 5, 2, 0)), flags)
    return b"".join(rearranged(_split(octets), [request, request, *_FRAMES], chance))


TARGET = Target(
    check,
    seeds=(
        _plain(_CONNECT) + frames.frame(FrameType.DATA, END_STREAM, 1, b"hello"),
        _plain(_UDP),
        _plain([*_CONNECT, *_SPARE[12:14]]),
        _plain([(b":method", b"CONNECT"), (b":authority", b"10.96.0.1:80")]),
        _plain([(b":method", b"CONNECT"), (b":authority", b"api.shop.svc.cluster.local:80")]),
        _plain([(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/")]),
        b"/.well-known/masque/udp/fd00%3A%3A7/53/",
    ),
    mutate=_mutate,
    words=(
        *(part for pair in _SPARE for part in pair if part),
        b"CONNECT",
        b"/.well-known/masque/udp/",
        b"%3A",
        b"\x82",
        b"\x20",
    ),
    max_len=1000,
)
