# SPDX-License-Identifier: Apache-2.0
"""Counters of redirected UDP that the proxy dropped, by reason.

A worker's counters hold what it has not reported yet; the agent's hold the node's totals.
"""

from __future__ import annotations

from enum import StrEnum

from ztunnel.ipc.messages import UdpDropCounts


class UdpDropReason(StrEnum):
    """Values of the label `reason` of `ztunnel_udp_drops_total`."""

    BUFFER_FULL = "buffer_full"  # a datagram: the tunnel or the app's socket had no room
    FLOW_LIMIT = "flow_limit"  # a new flow beyond the pod's limit


class UdpDropCounters:
    """Counters that only grow until they are flushed."""

    def __init__(self) -> None:
        self.by_reason = dict.fromkeys(UdpDropReason, 0)

    def count(self, reason: UdpDropReason) -> None:
        """Count one drop."""
        self.by_reason[reason] += 1

    def flush(self) -> UdpDropCounts | None:
        """Return the counts since the last flush and reset them; None if there are none."""
        counts = UdpDropCounts(tuple(self.by_reason.values()))
        if not any(counts.by_reason):
            return None
        self.by_reason = dict.fromkeys(UdpDropReason, 0)
        return counts

    def add(self, counts: UdpDropCounts) -> None:
        """Add a worker's counts. Negative values are ignored: totals never decrease."""
        for reason, count in zip(UdpDropReason, counts.by_reason, strict=False):
            self.by_reason[reason] += max(0, count)
