# SPDX-License-Identifier: Apache-2.0
"""What workers dropped of carried UDP, summed: it only grows, though workers come and go."""

from __future__ import annotations

from collections.abc import Iterable

from ztunnel.agent.workers.session import WorkerAnswer

REASONS = {
    "udp_dropped": "datagram",  # a tunnel or an app had no room for it
    "udp_refused": "flow",  # a pod had no room for a further flow
}


class UdpDropCounters:
    """One per agent; fed with the answers to `stats`."""

    def __init__(self) -> None:
        self.sums = dict.fromkeys(REASONS.values(), 0)
        self._last: dict[int, dict[str, int]] = {}  # by the worker's pid

    def take(self, answers: Iterable[WorkerAnswer]) -> None:
        """Add what is new since each worker's last answer."""
        for answer in answers:
            if not isinstance(answer.body, dict):
                continue
            last = self._last.get(answer.pid, {})
            now = {name: int(answer.body.get(name, 0)) for name in REASONS}
            for name, reason in REASONS.items():
                before = last.get(name, 0)
                self.sums[reason] += max(0, now[name] - before)  # a pid may be another's by now
            self._last[answer.pid] = now
