# SPDX-License-Identifier: Apache-2.0
"""What a worker answers to the agent's queries, in MessagePack."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ztunnel.proxy.conntrack.tracker import ConnectionTracker
from ztunnel.proxy.tunnel.pool import TunnelPool

LARGEST_ANSWER = 900 * 1024  # bytes: a link packet holds 1 MiB


def view(what: str, report: ConnectionTracker, pool: TunnelPool) -> bytes:
    """MessagePack of "connections" (list), "tunnels" (list) or "stats" (object); nil for others."""
    if what == "connections":
        return _fitting(report.live())
    if what == "tunnels":
        return _fitting(_tunnels(pool))
    if what == "stats":
        return msgspec.msgpack.encode(report.stats)
    return msgspec.msgpack.encode(None)


def _tunnels(pool: TunnelPool) -> list[object]:
    return [
        {
            "source": key.source,
            "peer": tunnel.peer,
            "address": str(key.address),
            "workload": key.workload,
            "streams": len(tunnel.streams),
            "served": tunnel.stream_count,
        }
        for key, tunnel in pool.tunnels()
    ]


def _fitting(rows: Sequence[object]) -> bytes:
    """As many rows as one message can carry: a view for people, not an account."""
    encoded = msgspec.msgpack.encode(rows)
    while len(encoded) > LARGEST_ANSWER:
        rows = rows[: len(rows) * LARGEST_ANSWER // len(encoded)]
        encoded = msgspec.msgpack.encode(rows)
    return encoded
