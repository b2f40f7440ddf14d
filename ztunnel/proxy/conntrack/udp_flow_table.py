# SPDX-License-Identifier: Apache-2.0
"""The UDP flows of a pod: which ones have expired, and which one may be evicted for a new one.

UDP has no end of a flow, so a flow expires when it is idle, sooner if it never had a reply. A full
table evicts its longest idle flow, first among those without a reply (unanswered queries must not
displace flows in use), but never one that is in use.

    ONE_WAY --first reply--> TWO_WAY
       | idle for              | idle for
       | ONE_WAY_IDLE_TIMEOUT  | TWO_WAY_IDLE_TIMEOUT
       v                       v
    expired                 expired

Does no I/O. The caller provides the time in seconds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

MAX_FLOWS = 4096  # of one pod
ONE_WAY_IDLE_TIMEOUT_S = 30.0  # the default of nf_conntrack_udp_timeout
TWO_WAY_IDLE_TIMEOUT_S = 120.0  # RFC 4787 section 4.3 (REQ-5): at least two minutes
IN_USE_S = 5.0  # a flow with a more recent datagram is never evicted

Flow = TypeVar("Flow", bound=Hashable)


class UdpFlowTable(Generic[Flow]):
    """The flows of one pod with the time of their last datagram."""

    def __init__(self, limit: int = MAX_FLOWS) -> None:
        self._limit = limit
        self._one_way: OrderedDict[Flow, float] = OrderedDict()  # both: longest idle first
        self._two_way: OrderedDict[Flow, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._one_way) + len(self._two_way)

    def __contains__(self, flow: Flow) -> bool:
        return flow in self._one_way or flow in self._two_way

    @property
    def is_full(self) -> bool:
        return len(self) >= self._limit

    def add(self, flow: Flow, now: float) -> None:
        """Add a new flow."""
        self._one_way[flow] = now

    def remove(self, flow: Flow) -> None:
        """Remove a flow, if it is there."""
        self._one_way.pop(flow, None)
        self._two_way.pop(flow, None)

    def touch(self, flow: Flow, now: float) -> None:
        """Record a datagram in the direction of the first one."""
        table = self._two_way if flow in self._two_way else self._one_way
        if flow in table:
            table[flow] = now
            table.move_to_end(flow)

    def touch_reply(self, flow: Flow, now: float) -> None:
        """Record a datagram in the opposite direction."""
        if self._one_way.pop(flow, None) is not None or flow in self._two_way:
            self._two_way[flow] = now
            self._two_way.move_to_end(flow)

    def expired(self, now: float) -> list[Flow]:
        """The flows whose idle timeout has passed; the caller removes them."""
        return [
            *_idle_since(self._one_way, now - ONE_WAY_IDLE_TIMEOUT_S),
            *_idle_since(self._two_way, now - TWO_WAY_IDLE_TIMEOUT_S),
        ]

    def eviction_candidate(self, now: float) -> Flow | None:
        """The flow to evict so that another can be added; None if all are in use."""
        for table in (self._one_way, self._two_way):
            for flow, used in table.items():
                if used <= now - IN_USE_S:
                    return flow
                break  # the longest idle flow is the first one
        return None

    def all(self) -> list[Flow]:
        """Every flow."""
        return [*self._one_way, *self._two_way]


def _idle_since(table: OrderedDict[Flow, float], when: float) -> list[Flow]:
    flows = []
    for flow, used in table.items():
        if used > when:
            break
        flows.append(flow)
    return flows
