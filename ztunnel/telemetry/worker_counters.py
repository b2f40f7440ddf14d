# SPDX-License-Identifier: Apache-2.0
"""What a worker counts of its connections, until it tells the agent.

A connection finds its series once, when it begins; then counting is an addition. Series hold only
what was not told yet: nothing here grows with the time a worker runs, and nothing is told twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ztunnel.ipc.messages import Count
from ztunnel.mesh.model import Service, Workload
from ztunnel.telemetry import labels
from ztunnel.telemetry.labels import Labels, Reporter, Security
from ztunnel.telemetry.response_flags import Flag

MOST_KNOWN = 2048  # pairs whose labels are remembered
MOST_SERIES = 8192  # of what was not told yet, while the agent is away


class ConnectionPeers(NamedTuple):
    """Who speaks to whom, as far as the mesh knows; `principals` are proven."""

    source: Workload | None = None
    destination: Workload | None = None
    service: Service | None = None
    principals: tuple[str, str] = ("", "")


NOBODY = ConnectionPeers()


class Series:
    """The counters of one label set since they were last told."""

    __slots__ = (
        *("closed", "failed", "flagged", "is_changed", "is_due", "labels"),
        *("opened", "received", "sent"),
    )

    def __init__(self, label_set: Labels) -> None:
        self.labels = label_set
        self.flagged: dict[Flag, list[int]] = {}  # closed and failed, of those with a flag
        self.is_due = self.is_changed = False
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.opened = self.closed = self.failed = self.sent = self.received = 0
        self.flagged.clear()
        self.is_due = False

    def rows(self) -> list[Count]:
        """What there is to tell."""
        rows = [
            Count(labels.with_flag(self.labels, flag), 0, closed, failed)
            for flag, (closed, failed) in self.flagged.items()
        ]
        plain = (self.opened, self.closed, self.failed, self.sent, self.received)
        if any(plain):
            rows.append(Count(self.labels, *plain))
        return rows


class Counts:
    """All series of one worker."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], tuple[ConnectionPeers, Series]] = {}
        self._series: dict[Labels, Series] = {}
        self._due: list[Series] = []
        self._changed: list[Series] = []
        self.on_change: Callable[[], None] = lambda: None

    def series(self, reporter: Reporter, ends: ConnectionPeers, protocol: str = "tcp") -> Series:
        """Where a connection counts, or a flow of UDP.

        Remembered by the very objects: a workload that changed is another object, and those that
        are remembered stay alive, so that no other gets their place in memory.
        """
        source, destination, service, principals = ends
        key = (reporter, id(source), id(destination), id(service), principals, protocol)
        known = self._known.get(key)
        if known is not None:
            return known[1]
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        made = self._of(
            labels.traffic(
                reporter,
                source,
                destination,
                service=service,
                principals=principals,
                security=Security.MUTUAL_TLS if all(principals) else Security.UNKNOWN,
                protocol=protocol,
            )
        )
        self._known[key] = ends, made
        return made

    def opened(self, series: Series) -> None:
        """A connection was let in."""
        series.opened += 1
        self._note(series)

    def closed(self, series: Series, flag: Flag, *, failed: bool) -> None:
        """It is over; `failed` when it never came to carry bytes."""
        if flag is Flag.NONE:
            series.closed += 1
            series.failed += failed
        else:
            counts = series.flagged.setdefault(flag, [0, 0])
            counts[0] += 1
            counts[1] += failed
        self._note(series)

    def refused(self, series: Series, flag: Flag) -> None:
        """A connection was turned away before it was one."""
        series.flagged.setdefault(flag, [0, 0])[1] += 1
        self._note(series)

    def moved(self, series: Series, sent: int, received: int) -> None:
        """So many bytes more, from the client and from the server."""
        series.sent += sent
        series.received += received
        self._note(series)

    def take(self) -> list[Count]:
        """All that was not told yet; from now on it is."""
        due, self._due = self._due, []
        rows = []
        for series in due:
            rows += series.rows()
            series.clear()
        if len(self._series) > MOST_KNOWN:  # who still counts keeps its own
            self._series.clear()
            self._known.clear()
        return rows

    def changed(self) -> list[Count]:
        """The rows of what changed since this was last asked, as `take` would give them."""
        changed, self._changed = self._changed, []
        rows = []
        for series in changed:
            series.is_changed = False
            rows += series.rows()
        return rows

    def _of(self, label_set: Labels) -> Series:
        if label_set not in self._series and len(self._series) >= MOST_SERIES:
            label_set = labels.overflow(label_set)
        return self._series.setdefault(label_set, Series(label_set))

    def _note(self, series: Series) -> None:
        if not series.is_due:
            series.is_due = True
            self._due.append(series)
        if not series.is_changed:
            series.is_changed = True
            self._changed.append(series)
            self.on_change()
