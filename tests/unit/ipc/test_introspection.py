# SPDX-License-Identifier: Apache-2.0
"""The agent's types of a worker's replies match what the worker encodes."""

from __future__ import annotations

import msgspec

from ztunnel.ipc import introspection
from ztunnel.ipc.introspection import ConnectionRow, PeerRow, View
from ztunnel.proxy.conntrack.record import Direction, Peer, Record, Stats


def test_rows_have_the_fields_of_the_worker_records() -> None:
    assert ConnectionRow.__struct_fields__ == Record.__struct_fields__
    assert PeerRow.__struct_fields__ == Peer.__struct_fields__


def test_reply_of_a_worker_is_decoded_unchanged() -> None:
    record = Record(
        id=1,
        direction=Direction.INBOUND,
        source=Peer("10.0.0.1:1", "web", "shop", "spiffe://td/ns/shop/sa/web"),
        destination=Peer("10.0.0.2:80"),
        started=1.5,
        sent=7,
        policy="shop/allow",
        established=True,
    )
    body = msgspec.msgpack.encode([record])
    assert introspection.decode(View.CONNECTIONS, body) == [msgspec.to_builtins(record)]
    stats = Stats(opened=3, udp_dropped=1)
    body = msgspec.msgpack.encode(stats)
    assert introspection.decode(View.STATS, body) == msgspec.to_builtins(stats)
