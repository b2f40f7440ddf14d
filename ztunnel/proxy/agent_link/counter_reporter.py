# SPDX-License-Identifier: Apache-2.0
"""Reports the worker's counters to the agent: every second, before each introspection reply, and
when the worker exits.

A report stays here until the agent acknowledges it, and a new agent receives it again. While no
agent is reachable, the counters accumulate in `WorkerCounters`. A worker that is killed loses what
it has not reported: at most one interval (docs/decisions/0009).
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable

from ztunnel.ipc.messages import CounterReport
from ztunnel.telemetry.worker_counters import WorkerCounters

INTERVAL_S = 1.0
MAX_SERIES_PER_REPORT = 500  # some hundred bytes each; a packet is at most 1 MiB
MAX_PENDING = 64  # reports without an acknowledgment


class CounterReporter:
    """One per worker process."""

    def __init__(self, send: Callable[[CounterReport], None], counters: WorkerCounters) -> None:
        self._send = send
        self._counters = counters
        self.instance = secrets.randbits(63)  # forked workers share the state of other generators
        self._seq = 0
        self._pending: deque[CounterReport] = deque()

    @property
    def pending(self) -> list[CounterReport]:
        """The unacknowledged reports, oldest first: sent first to a new agent."""
        return list(self._pending)

    def report(self) -> None:
        """Send the counts since the last report."""
        if len(self._pending) >= MAX_PENDING:
            return
        series = self._counters.traffic.flush()
        dns, udp_drops = self._counters.dns.flush(), self._counters.udp_drops.flush()
        log_drops = self._counters.log_drops.flush()
        while series or any(each is not None for each in (dns, udp_drops, log_drops)):
            self._seq += 1
            report = CounterReport(
                instance=self.instance,
                seq=self._seq,
                series=tuple(series[:MAX_SERIES_PER_REPORT]),
                dns=dns,
                udp_drops=udp_drops,
                log_drops=log_drops,
            )
            self._pending.append(report)
            self._send(report)
            series, dns, udp_drops, log_drops = series[MAX_SERIES_PER_REPORT:], None, None, None

    def acknowledged(self, seq: int) -> None:
        """Forget the reports up to `seq`: the agent has counted them."""
        while self._pending and self._pending[0].seq <= seq:
            self._pending.popleft()
