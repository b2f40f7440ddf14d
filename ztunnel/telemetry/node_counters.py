# SPDX-License-Identifier: Apache-2.0
"""The node's counters of Istio's TCP metrics: what all workers and the kernel told, summed.

Each metric has room for so many series; what finds none counts in the metric's `overflow` series,
so sums stay right. Series of workloads that are gone are forgotten after a while, and not before
their last connection is over. No clock of its own.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable

from ztunnel.ipc.messages import Count, DnsCounted
from ztunnel.telemetry import labels
from ztunnel.telemetry.dns_counters import Queries
from ztunnel.telemetry.labels import LABELS, End, Labels
from ztunnel.telemetry.response_flags import Flag

# Metric without `_total` → its help and the field of Count. Istio counts as received what the
# client asks with, and as sent what the server answers, whoever reports.
METRICS = {
    "istio_tcp_connections_opened": ("Connections let in.", "opened"),
    "istio_tcp_connections_closed": ("Connections that are over.", "closed"),
    "istio_tcp_connections_failed": ("Connections that never came to be.", "failed"),
    "istio_tcp_received_bytes": ("Bytes from clients to servers.", "sent"),
    "istio_tcp_sent_bytes": ("Bytes from servers to clients.", "received"),
}
LONGEST_LABEL = 512  # characters; a worker that says more is not believed


class Totals:
    """All series. `most` is the room of each metric, beside its overflow series."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._metrics: dict[str, dict[Labels, int]] = {name: {} for name in METRICS}
        self._open: Counter[Labels] = Counter()
        self._missed: dict[Labels, float] = {}  # since when an end of it is gone
        self.overflowed = 0  # additions that found no room
        self.retired = 0  # series forgotten

    def add(self, row: Count) -> None:
        """Count a row. Rows that are no label set count as overflow."""
        row_labels = row.labels
        if len(row_labels) != len(LABELS) or max(map(len, row_labels)) > LONGEST_LABEL:
            row_labels = labels.overflow(("unknown",))
        for name, (_, field) in METRICS.items():
            amount = getattr(row, field)
            if amount > 0:  # counters never go back, whatever a worker says
                self._add(name, row_labels, amount)
        moved = row.opened - row.closed
        if moved:
            plain = labels.with_flag(row_labels, Flag.NONE)
            if plain in self._metrics["istio_tcp_connections_opened"]:
                self._open[plain] += moved

    def retire(self, living: Collection[End], now: float, grace: float) -> None:
        """Forget series that name a workload which is not among the living for `grace` seconds."""
        named = {key for series in self._metrics.values() for key in series}
        missed = {key for key in named if self._is_gone(key, living)}
        self._missed = {key: self._missed.get(key, now) for key in missed}
        for key, since in list(self._missed.items()):
            if now - since >= grace:
                self._forget(key)

    def snapshot(self) -> dict[str, list[tuple[Labels, int]]]:
        """By metric, its series; a copy."""
        return {name: list(series.items()) for name, series in self._metrics.items()}

    def series(self) -> dict[str, int]:
        """How many each metric has."""
        return {name: len(series) for name, series in self._metrics.items()}

    def _add(self, name: str, key: Labels, amount: int) -> None:
        series = self._metrics[name]
        if key not in series and len(series) >= self._most:
            key = labels.overflow(key)
            self.overflowed += 1
        series[key] = series.get(key, 0) + amount

    def _is_gone(self, key: Labels, living: Collection[End]) -> bool:
        if labels.OVERFLOW in key[1:2] or self._open[labels.with_flag(key, Flag.NONE)] > 0:
            return False
        return any(labels.is_somebody(end) and end not in living for end in labels.ends(key))

    def _forget(self, key: Labels) -> None:
        for series in self._metrics.values():
            self.retired += series.pop(key, None) is not None
        self._missed.pop(key, None)
        self._open.pop(key, None)


class Ledger:
    """What each worker told, so that nothing counts twice and nothing stays open for ever."""

    def __init__(self, totals: Totals) -> None:
        self._totals = totals
        self.queries = Queries()
        self._number: dict[int, int] = {}  # instance → what it told last
        self._open: defaultdict[int, Counter[Labels]] = defaultdict(Counter)

    @property
    def instances(self) -> set[int]:
        """Workers that are not gone."""
        return set(self._number)

    def told(self, instance: int) -> int:
        """The number of what a worker told last; 0 before the first time."""
        return self._number.get(instance, 0)

    def take(
        self, instance: int, number: int, rows: Iterable[Count], dns: DnsCounted | None = None
    ) -> None:
        """Count what a worker tells, unless it did before."""
        if number <= self._number.get(instance, 0):
            return
        if dns is not None:
            self.queries.add(dns)
        self._number[instance] = number
        still_open = self._open[instance]
        for row in rows:
            self._totals.add(row)
            if row.opened != row.closed and row.labels:
                still_open[labels.with_flag(row.labels, Flag.NONE)] += row.opened - row.closed

    def gone(self, instance: int) -> None:
        """The worker is dead: what it had open was reset by the kernel."""
        self._number.pop(instance, None)
        for key, count in self._open.pop(instance, Counter()).items():
            if count > 0:
                self._totals.add(Count(key, closed=count))
