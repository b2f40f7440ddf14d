# SPDX-License-Identifier: Apache-2.0
"""When a connection through a waypoint is tried another time.

While a waypoint is attached, detached, scaled or restarted, the nodes learn of it at different
moments. The waypoint's node then rejects the CONNECT (400: not, or not yet, its destination; 503:
its Envoy does not accept), or a pod of the waypoint is gone. Nothing was delivered in these cases,
so the client's node decides again, with its present state, and repeats what the application sent.
"""

from __future__ import annotations

from typing import Final, Protocol

from ztunnel.mesh.model import SocketAddress
from ztunnel.mesh.routing.inbound import BAD_REQUEST, UNAVAILABLE
from ztunnel.proxy.tunnel.connection_plan import ConnectionPlan

RETRY_TIMEOUT_S: Final = 2.0  # since the first failure
FIRST_RETRY_DELAY_S: Final = 0.025  # doubled each time
RETRIED_STATUSES: Final = (BAD_REQUEST, UNAVAILABLE)  # not 401: policy has decided


class Planner(Protocol):
    """Decides on a destination with the present state of the mesh."""

    def plan_again(self, destination: SocketAddress) -> ConnectionPlan | str:
        """The plan, or the reason why there is none."""


class RetrySchedule:
    """The delays of one connection."""

    __slots__ = ("_deadline", "_delay")

    def __init__(self, now: float) -> None:
        """`now`: of the first failure, monotonic seconds."""
        self._deadline = now + RETRY_TIMEOUT_S
        self._delay = FIRST_RETRY_DELAY_S

    def next_delay(self, now: float) -> float:
        """Seconds to wait before the next attempt; negative if there is none."""
        delay, self._delay = self._delay, self._delay * 2
        return delay if now + delay <= self._deadline else -1.0
