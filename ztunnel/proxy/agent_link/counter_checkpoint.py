# SPDX-License-Identifier: Apache-2.0
"""Writes what was counted and not told where it outlives the worker, at the end of each turn.

Bytes of live connections are read off their records, so they are looked at now and then, while
there are any.
"""

from __future__ import annotations

from ztunnel.proxy.conntrack.tracker import ConnectionTracker
from ztunnel.proxy.io.event_loop import Loop, Timer
from ztunnel.telemetry.counter_memory import Writer

LOOK = 0.1  # seconds between looks at live connections' bytes
MOST = 1000  # live connections that are looked at so often; of more, when it is time to tell


class CounterCheckpointer:
    """One per worker."""

    def __init__(self, loop: Loop, report: ConnectionTracker, remains: Writer) -> None:
        self._loop = loop
        self._report = report
        self._remains = remains
        self._timer: Timer | None = None
        self._due = False
        report.on_count(self._counted)

    def _counted(self) -> None:
        if not self._due:
            self._due = True
            self._loop.at_end_of_turn(self._save)
        if self._timer is None:
            self._timer = self._loop.call_later(LOOK, self._look)

    def _save(self) -> None:
        self._due = False
        for row in self._report.changed_counts():
            self._remains.put(row)

    def _look(self) -> None:
        self._timer = None
        live = self._report.live_count
        if live <= MOST:
            self._report.count_bytes()
        if live and self._timer is None:
            self._timer = self._loop.call_later(LOOK, self._look)
