# SPDX-License-Identifier: Apache-2.0
"""The views of a worker that the agent can request, as MessagePack."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ztunnel.hbone.buffer_budget import BufferBudget
from ztunnel.proxy.conntrack.tracker import ConnectionTracker
from ztunnel.proxy.tunnel.pool import TunnelPool

MAX_BODY_BYTES = 900 * 1024  # below `channel.MAX_MESSAGE_BYTES`


def view(what: str, tracker: ConnectionTracker, pool: TunnelPool, budget: BufferBudget) -> bytes:
    """The view "connections" (list), "tunnels" (list) or "stats" (object); nil for others."""
    if what == "connections":
        return _truncated(tracker.live())
    if what == "tunnels":
        return _truncated(_tunnels(pool))
    if what == "stats":
        buffers = {"buffered_bytes": budget.used, "buffer_limit_bytes": budget.limit}
        return msgspec.msgpack.encode(msgspec.structs.asdict(tracker.stats) | buffers)
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


def _truncated(rows: Sequence[object]) -> bytes:
    """As many rows as fit into one message."""
    encoded = msgspec.msgpack.encode(rows)
    while len(encoded) > MAX_BODY_BYTES:
        rows = rows[: len(rows) * MAX_BODY_BYTES // len(encoded)]
        encoded = msgspec.msgpack.encode(rows)
    return encoded
