# SPDX-License-Identifier: Apache-2.0
"""Which UDP flows a pod has, which of them are over for lack of use, whether one more may come.

A flow has no end of its own: it is over when nothing was sent for a while, sooner if it was
never answered. A full table makes room by its longest idle flow, first among those that were
never answered (queries that nobody answers must not push out what lives), but never by one in use.

    ONE_WAY --both directions--> TWO_WAY
       | idle ONE_WAY_IDLE          | idle TWO_WAY_IDLE
       v                            v
      over                         over

Pure: the caller brings the time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

LIMIT = 4096  # flows of one pod
ONE_WAY_IDLE = 30.0  # seconds; nf_conntrack_udp_timeout's default
TWO_WAY_IDLE = 120.0  # seconds; RFC 4787 4.3 (REQ-5) wants 2 minutes at least
IN_USE = 5.0  # seconds since its last datagram that protect a flow from making room

Flow = TypeVar("Flow", bound=Hashable)


class Flows(Generic[Flow]):
    """The flows of one pod, each with the time of its last use."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._one_way: OrderedDict[Flow, float] = OrderedDict()  # longest idle first, as is
        self._two_way: OrderedDict[Flow, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._one_way) + len(self._two_way)

    def __contains__(self, flow: Flow) -> bool:
        return flow in self._one_way or flow in self._two_way

    @property
    def is_full(self) -> bool:
        return len(self) >= self._limit

    def add(self, flow: Flow, now: float) -> None:
        """A flow began."""
        self._one_way[flow] = now

    def remove(self, flow: Flow) -> None:
        """It is over; nothing if it was not there."""
        self._one_way.pop(flow, None)
        self._two_way.pop(flow, None)

    def used(self, flow: Flow, now: float) -> None:
        """A datagram passed, the way the first one went."""
        table = self._two_way if flow in self._two_way else self._one_way
        if flow in table:
            table[flow] = now
            table.move_to_end(flow)

    def answered(self, flow: Flow, now: float) -> None:
        """A datagram passed the other way."""
        if self._one_way.pop(flow, None) is not None or flow in self._two_way:
            self._two_way[flow] = now
            self._two_way.move_to_end(flow)

    def expired(self, now: float) -> list[Flow]:
        """Those that are over by now; the caller removes them."""
        return [
            *_older(self._one_way, now - ONE_WAY_IDLE),
            *_older(self._two_way, now - TWO_WAY_IDLE),
        ]

    def spare(self, now: float) -> Flow | None:
        """Whom to end so that another may come; None when all are in use."""
        for table in (self._one_way, self._two_way):
            for flow, used in table.items():
                if used <= now - IN_USE:
                    return flow
                break  # the longest idle one is first
        return None

    def all(self) -> list[Flow]:
        """Every flow."""
        return [*self._one_way, *self._two_way]


def _older(table: OrderedDict[Flow, float], before: float) -> list[Flow]:
    found = []
    for flow, used in table.items():
        if used > before:
            break
        found.append(flow)
    return found
