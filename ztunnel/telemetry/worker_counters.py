# SPDX-License-Identifier: Apache-2.0
"""A worker's counters since its last report to the agent.

A connection looks up its series once, when it begins; after that, counting is an addition. Flushing
resets every counter, so memory does not grow with a worker's uptime.
"""

from __future__ import annotations

from typing import NamedTuple

from ztunnel.ipc.messages import SeriesCounts
from ztunnel.mesh.model import Service, Workload
from ztunnel.telemetry import labels
from ztunnel.telemetry.dns_counters import DnsCounters
from ztunnel.telemetry.labels import Labels, Reporter, Security
from ztunnel.telemetry.log_drop_counters import log_drops
from ztunnel.telemetry.response_flags import Flag
from ztunnel.telemetry.udp_drop_counters import UdpDropCounters

MAX_CACHED_PEERS = 2048  # pairs of peers whose series is cached
MAX_SERIES = 8192  # series that wait for a report, for example while the agent is unreachable


class ConnectionPeers(NamedTuple):
    """The peers of a connection as far as the mesh knows them; `principals` are proven."""

    source: Workload | None = None
    destination: Workload | None = None
    service: Service | None = None
    principals: tuple[str, str] = ("", "")


UNKNOWN_PEERS = ConnectionPeers()


class Series:
    """The counters of one label set since the last report."""

    __slots__ = (
        "closed",
        "failed",
        "flagged",
        "is_changed",
        "labels",
        "opened",
        "received",
        "sent",
    )

    def __init__(self, label_set: Labels) -> None:
        self.labels = label_set
        self.flagged: dict[Flag, list[int]] = {}  # [closed, failed] by response flag
        self.is_changed = False
        self.reset()

    def reset(self) -> None:
        """Set every counter to zero."""
        self.opened = self.closed = self.failed = self.sent = self.received = 0
        self.flagged.clear()
        self.is_changed = False

    def counts(self) -> list[SeriesCounts]:
        """The counts to report: one entry per response flag."""
        counts = [
            SeriesCounts(labels.with_flag(self.labels, flag), 0, closed, failed)
            for flag, (closed, failed) in self.flagged.items()
        ]
        unflagged = (self.opened, self.closed, self.failed, self.sent, self.received)
        if any(unflagged):
            counts.append(SeriesCounts(self.labels, *unflagged))
        return counts


class TrafficCounters:
    """The traffic series of one worker."""

    def __init__(self) -> None:
        self._by_peers: dict[tuple[object, ...], tuple[ConnectionPeers, Series]] = {}
        self._by_labels: dict[Labels, Series] = {}
        self._changed: list[Series] = []

    def series(self, reporter: Reporter, peers: ConnectionPeers, protocol: str = "tcp") -> Series:
        """The series of a connection or UDP flow.

        The cache key is the identity of the mesh's objects, because an update replaces an object.
        The cache entry references them, so that no other object can get the same `id`.
        """
        source, destination, service, principals = peers
        key = (reporter, id(source), id(destination), id(service), principals, protocol)
        cached = self._by_peers.get(key)
        if cached is not None:
            return cached[1]
        if len(self._by_peers) >= MAX_CACHED_PEERS:
            self._by_peers.clear()
        series = self._find_or_create(
            labels.connection_labels(
                reporter,
                source,
                destination,
                service=service,
                principals=principals,
                security=Security.MUTUAL_TLS if all(principals) else Security.UNKNOWN,
                protocol=protocol,
            )
        )
        self._by_peers[key] = peers, series
        return series

    def count_opened(self, series: Series) -> None:
        """Count a connection that was admitted."""
        series.opened += 1
        self._mark_changed(series)

    def count_closed(self, series: Series, flag: Flag, *, failed: bool) -> None:
        """Count an admitted connection that ended; `failed` if it was never established."""
        if flag is Flag.NONE:
            series.closed += 1
            series.failed += failed
        else:
            counts = series.flagged.setdefault(flag, [0, 0])
            counts[0] += 1
            counts[1] += failed
        self._mark_changed(series)

    def count_refused(self, series: Series, flag: Flag) -> None:
        """Count a connection that was rejected before it was opened."""
        series.flagged.setdefault(flag, [0, 0])[1] += 1
        self._mark_changed(series)

    def count_bytes(self, series: Series, sent: int, received: int) -> None:
        """Count bytes from the client (`sent`) and from the server (`received`)."""
        series.sent += sent
        series.received += received
        self._mark_changed(series)

    def flush(self) -> list[SeriesCounts]:
        """Return the counts since the last flush and reset them."""
        changed, self._changed = self._changed, []
        counts = []
        for series in changed:
            counts += series.counts()
            series.reset()
        if len(self._by_labels) > MAX_CACHED_PEERS:  # live connections reference their series
            self._by_labels.clear()
            self._by_peers.clear()
        return counts

    def _find_or_create(self, label_set: Labels) -> Series:
        if label_set not in self._by_labels and len(self._by_labels) >= MAX_SERIES:
            label_set = labels.overflow_labels(label_set)
        return self._by_labels.setdefault(label_set, Series(label_set))

    def _mark_changed(self, series: Series) -> None:
        if not series.is_changed:
            series.is_changed = True
            self._changed.append(series)


class WorkerCounters:
    """All counters that a worker reports to the agent."""

    def __init__(self) -> None:
        self.traffic = TrafficCounters()
        self.dns = DnsCounters()
        self.udp_drops = UdpDropCounters()
        self.log_drops = log_drops
