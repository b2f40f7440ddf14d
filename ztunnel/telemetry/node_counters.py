# SPDX-License-Identifier: Apache-2.0
"""The node's totals: what all workers reported and the kernel counted.

Each metric has a limit on its series. Excess series are aggregated into the metric's `overflow`
series, so totals remain correct. Series of deleted workloads expire, but not before their last
connection ends. The caller provides the time.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable

from ztunnel.ipc.messages import CounterReport, SeriesCounts
from ztunnel.telemetry import labels
from ztunnel.telemetry.dns_counters import DnsCounters
from ztunnel.telemetry.labels import LABELS, Labels, WorkloadLabels
from ztunnel.telemetry.log_drop_counters import LogDropCounters, log_drops
from ztunnel.telemetry.response_flags import Flag
from ztunnel.telemetry.udp_drop_counters import UdpDropCounters

# Metric without `_total` → its help and the field of SeriesCounts. In Istio's metrics, `received`
# and `sent` are from the server's perspective, whichever side reports.
METRICS = {
    "istio_tcp_connections_opened": ("TCP connections that were opened.", "opened"),
    "istio_tcp_connections_closed": ("TCP connections that were closed.", "closed"),
    "istio_tcp_connections_failed": (
        "TCP connections that could not be established.",
        "failed",
    ),
    "istio_tcp_received_bytes": ("Bytes sent by clients to servers.", "sent"),
    "istio_tcp_sent_bytes": ("Bytes sent by servers to clients.", "received"),
}
MAX_LABEL_CHARS = 512  # a longer label in a worker's report counts as overflow
MAX_OPEN_SERIES = 32768  # of one worker; connections of further ones are not closed at its exit


class TrafficTotals:
    """Istio's TCP metrics. `max_series` limits each metric, without its overflow series."""

    def __init__(self, max_series: int) -> None:
        self._max_series = max_series
        self._metrics: dict[str, dict[Labels, int]] = {name: {} for name in METRICS}
        self._open: Counter[Labels] = Counter()
        self._missing_since: dict[Labels, float] = {}  # when a peer's workload was deleted
        self.overflowed = 0  # additions to an overflow series
        self.expired = 0  # series removed

    def add(self, counts: SeriesCounts) -> None:
        """Add the counts of one series. Malformed label sets count as overflow."""
        key = _valid_labels(counts.labels)
        for name, (_, field) in METRICS.items():
            amount = getattr(counts, field)
            if amount > 0:  # a counter never decreases, whatever a worker reports
                self._add(name, key, amount)
        opened = counts.opened - counts.closed
        if opened:
            unflagged = labels.with_flag(key, Flag.NONE)
            if unflagged in self._metrics["istio_tcp_connections_opened"]:
                self._open[unflagged] += opened

    def expire(self, existing: Collection[WorkloadLabels], now: float, ttl: float) -> None:
        """Remove series whose workload has not been among `existing` for `ttl` seconds."""
        keys = {key for series in self._metrics.values() for key in series}
        missing = {key for key in keys if self._is_missing(key, existing)}
        self._missing_since = {key: self._missing_since.get(key, now) for key in missing}
        for key, since in list(self._missing_since.items()):
            if now - since >= ttl:
                self._remove(key)

    def snapshot(self) -> dict[str, list[tuple[Labels, int]]]:
        """A copy of all series by metric."""
        return {name: list(series.items()) for name, series in self._metrics.items()}

    def series_count(self) -> dict[str, int]:
        """The number of series by metric."""
        return {name: len(series) for name, series in self._metrics.items()}

    def _add(self, name: str, key: Labels, amount: int) -> None:
        series = self._metrics[name]
        if key not in series and len(series) >= self._max_series:
            key = labels.overflow_labels(key)
            self.overflowed += 1
        series[key] = series.get(key, 0) + amount

    def _is_missing(self, key: Labels, existing: Collection[WorkloadLabels]) -> bool:
        if labels.OVERFLOW in key[1:2] or self._open[labels.with_flag(key, Flag.NONE)] > 0:
            return False
        return any(
            labels.is_known_workload(peer) and peer not in existing
            for peer in labels.peer_labels(key)
        )

    def _remove(self, key: Labels) -> None:
        for series in self._metrics.values():
            self.expired += series.pop(key, None) is not None
        self._missing_since.pop(key, None)
        self._open.pop(key, None)


class NodeCounters:
    """The node's totals, and per worker what is needed to count each report exactly once."""

    def __init__(self, traffic: TrafficTotals, log_drops: LogDropCounters = log_drops) -> None:
        """`log_drops` has the agent's own lines, to which those of the workers are added."""
        self.traffic = traffic
        self.dns = DnsCounters()
        self.udp_drops = UdpDropCounters()
        self.log_drops = log_drops
        self._last_seq: dict[int, int] = {}  # by instance
        self._open: defaultdict[int, Counter[Labels]] = defaultdict(Counter)  # by instance

    @property
    def instances(self) -> set[int]:
        """The workers that have reported and not exited."""
        return set(self._last_seq)

    def apply(self, report: CounterReport) -> None:
        """Add a worker's report, unless its sequence number shows that it was added before."""
        if report.seq <= self._last_seq.get(report.instance, 0):
            return
        self._last_seq[report.instance] = report.seq
        self._add_traffic(report.instance, report.series)
        if report.dns is not None:
            self.dns.add(report.dns)
        if report.udp_drops is not None:
            self.udp_drops.add(report.udp_drops)
        if report.log_drops is not None:
            self.log_drops.add(report.log_drops)

    def worker_exited(self, instance: int) -> None:
        """Close what the worker had open: the kernel has reset its connections. Idempotent."""
        self._last_seq.pop(instance, None)
        for key, count in self._open.pop(instance, Counter()).items():
            if count > 0:
                self.traffic.add(SeriesCounts(key, closed=count))

    def _add_traffic(self, instance: int, series: Iterable[SeriesCounts]) -> None:
        open_connections = self._open[instance]
        for counts in series:
            self.traffic.add(counts)
            if counts.opened == counts.closed:
                continue
            unflagged = labels.with_flag(_valid_labels(counts.labels), Flag.NONE)
            if unflagged in open_connections or len(open_connections) < MAX_OPEN_SERIES:
                open_connections[unflagged] += counts.opened - counts.closed
            if not open_connections[unflagged]:
                del open_connections[unflagged]


def _valid_labels(key: Labels) -> Labels:
    """The labels; those of an overflow series if a worker's report has malformed ones."""
    if len(key) != len(LABELS) or max(map(len, key)) > MAX_LABEL_CHARS:
        return labels.overflow_labels(("unknown",))
    return key
