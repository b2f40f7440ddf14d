# SPDX-License-Identifier: Apache-2.0
"""Extended CONNECT for UDP against the h2 library, as client and server (RFC 8441, RFC 9298)."""

from __future__ import annotations

import h2.config
import h2.connection
import h2.events
import h2.settings

from ztunnel.hbone.capsule import CapsuleReader, datagram_header
from ztunnel.hbone.connection import Connection, Role
from ztunnel.hbone.events import DataReceived, RequestReceived, ResponseReceived

REQUEST = [
    (b":method", b"CONNECT"),
    (b":protocol", b"connect-udp"),
    (b":scheme", b"https"),
    (b":authority", b"10.0.0.2:15008"),
    (b":path", b"/.well-known/masque/udp/10.0.0.2/53/"),
    (b"capsule-protocol", b"?1"),
]


def _payloads(reader: CapsuleReader, octets: bytes) -> list[bytes]:
    return [bytes(one) for one in reader.feed(memoryview(octets))]


def test_extended_connect_from_our_client_to_h2() -> None:
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    server.initiate_connection()
    server.update_settings({h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL: 1})
    client = Connection(Role.CLIENT)
    assert not client.settings_received
    client.receive(memoryview(server.data_to_send()), 0.0)
    assert client.settings_received
    assert client.peer_extended_connect
    stream = client.request(REQUEST)
    header = client.data_frame_header(stream, 7)
    sent = datagram_header(4) + b"ping"
    events = server.receive_data(client.take_output() + header + sent)
    request = next(one for one in events if isinstance(one, h2.events.RequestReceived))
    assert dict(request.headers or [])[b":protocol"] == b"connect-udp"
    data = next(one for one in events if isinstance(one, h2.events.DataReceived))
    assert _payloads(CapsuleReader(), data.data or b"") == [b"ping"]
    server.send_headers(stream, [(":status", "200"), ("capsule-protocol", "?1")])
    server.send_data(stream, datagram_header(4) + b"pong")
    got = client.receive(memoryview(server.data_to_send()), 0.0)
    assert [one.status for one in got if isinstance(one, ResponseReceived)] == [200]
    octets = b"".join(bytes(one.payload) for one in got if isinstance(one, DataReceived))
    assert _payloads(CapsuleReader(), octets) == [b"pong"]


def test_extended_connect_from_h2_to_our_server() -> None:
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    server = Connection(Role.SERVER, extended_connect=True)
    client.receive_data(server.take_output())
    assert client.remote_settings.enable_connect_protocol == 1
    client.send_headers(1, [(name.decode(), value.decode()) for name, value in REQUEST])
    client.send_data(1, datagram_header(4) + b"ping")
    got = server.receive(memoryview(client.data_to_send()), 0.0)
    request = next(one for one in got if isinstance(one, RequestReceived))
    assert (request.protocol, request.path) == (b"connect-udp", REQUEST[4][1])
    octets = b"".join(bytes(one.payload) for one in got if isinstance(one, DataReceived))
    assert _payloads(CapsuleReader(), octets) == [b"ping"]


def test_window_covers_several_frames() -> None:
    client = Connection(Role.CLIENT)
    stream = client.request(REQUEST)
    assert client.sendable(stream) == 16_384
    assert client.window(stream) == 65_535
    client.data_frame_header(stream, 16_384)
    assert client.window(stream) == 65_535 - 16_384
    assert client.window(99) == 0
