# SPDX-License-Identifier: Apache-2.0
"""What a worker tells of its connections: the live ones, counters, one log line at each end."""

from __future__ import annotations

import itertools
import time
from typing import Protocol

import msgspec
import structlog

from ztunnel.mesh.model import SocketAddress, Workload
from ztunnel.mesh.policy.engine import Decision, display_name
from ztunnel.proxy.conntrack.record import Direction, Peer, Record, Stats
from ztunnel.telemetry.access_log import AccessLog, Fields
from ztunnel.telemetry.dns_counters import Outcome
from ztunnel.telemetry.labels import Reporter
from ztunnel.telemetry.response_flags import Flag, flag_of
from ztunnel.telemetry.udp_drop_counters import UdpDropReason
from ztunnel.telemetry.worker_counters import (
    UNKNOWN_PEERS,
    ConnectionPeers,
    Series,
    WorkerCounters,
)

log = structlog.get_logger()


class Tracer(Protocol):
    """Makes spans, see `ztunnel.telemetry.tracing`."""

    def ended(
        self, trace: str, *, outbound: bool, started: float, fields: Fields, error: str
    ) -> None:
        """A connection is over."""


_REPORTERS = {
    Direction.OUTBOUND: Reporter.SOURCE,
    Direction.INBOUND: Reporter.DESTINATION,
}


class _Live:
    """A live connection with what was counted of it."""

    __slots__ = ("received", "record", "sent", "series")

    def __init__(self, record: Record, series: Series) -> None:
        self.record = record
        self.series = series
        self.sent = self.received = 0


def make_peer(address: SocketAddress, workload: Workload | None, identity: str = "") -> Peer:
    """A party from what the mesh says of it; `identity` only when it was proven."""
    if workload is None:
        return Peer(str(address), identity=identity)
    return Peer(str(address), workload.name, workload.namespace, identity)


def with_identity(one: Peer, identity: str) -> Peer:
    """The same party, now that it has proven who it is."""
    return msgspec.structs.replace(one, identity=identity)


class ConnectionTracker:
    """All live connections of one worker."""

    def __init__(self, access: AccessLog) -> None:
        self.stats = Stats()
        self.counters = WorkerCounters()
        self.access = access
        self.tracer: Tracer | None = None
        self._live: dict[int, _Live] = {}
        self._ids = itertools.count(1)

    def begin(
        self,
        direction: Direction,
        source: Peer,
        destination: Peer,
        *,
        hbone_addr: str = "",
        service: str = "",
        ends: ConnectionPeers = UNKNOWN_PEERS,
        protocol: str = "tcp",
    ) -> Record:
        """A connection was let in, or a flow of UDP; `ends` says between whom it counts."""
        record = Record(
            id=next(self._ids),
            direction=direction,
            source=source,
            destination=destination,
            started=time.time(),
            hbone_addr=hbone_addr,
            service=service,
            protocol=protocol,
        )
        series = self.counters.traffic.series(_REPORTERS[direction], ends, protocol)
        self.counters.traffic.count_opened(series)
        self._live[record.id] = _Live(record, series)
        self.stats.opened += 1
        return record

    def end(self, record: Record, error: str = "") -> None:
        """The connection is over; `error` is empty when both sides ended in order."""
        live = self._live.pop(record.id, None)
        if live is None:
            return
        self._count_bytes(live)
        flag = Flag.NONE
        if record.flags:
            flag = Flag(record.flags)
        elif error or not record.established:
            flag = flag_of(error, established=record.established)
        self.counters.traffic.count_closed(live.series, flag, failed=not record.established)
        stats = self.stats
        stats.closed += 1
        stats.failed += bool(error)
        stats.sent += record.sent
        stats.received += record.received
        if self.tracer is not None and record.trace:
            self.tracer.ended(
                record.trace,
                outbound=record.direction is Direction.OUTBOUND,
                started=record.started,
                fields=_access_fields(record, error),
                error=error,
            )
        if self._is_wanted(record, failed=bool(error)):
            self.access.write("info", "connection", _access_fields(record, error))

    def refused(
        self,
        direction: Direction,
        source: str,
        destination: str,
        reason: str,
        *,
        ends: ConnectionPeers = UNKNOWN_PEERS,
        protocol: str = "tcp",
    ) -> None:
        """A connection was turned away before it became one."""
        self.stats.refused += 1
        series = self.counters.traffic.series(_REPORTERS[direction], ends, protocol)
        self.counters.traffic.count_refused(series, flag_of(reason, established=False))
        ours = ends.source if direction is Direction.OUTBOUND else ends.destination
        if self.access.wants(ours.namespace if ours is not None else "", failed=True):
            fields = {"direction": direction.value, "src": source, "dst": destination}
            if protocol != "tcp":
                fields["protocol"] = protocol
            self.access.write("warning", "refused", {**fields, "error": reason})

    def denied(
        self,
        direction: Direction,
        source: Peer,
        destination: Peer,
        decision: Decision,
        *,
        hbone_addr: str = "",
        service: str = "",
        ends: ConnectionPeers = UNKNOWN_PEERS,
        protocol: str = "tcp",
    ) -> None:
        """Policy did not let a connection in; both parties are as far as they are known."""
        record = Record(
            id=0,
            direction=direction,
            source=source,
            destination=destination,
            started=time.time(),
            hbone_addr=hbone_addr,
            service=service,
            protocol=protocol,
        )
        self.mark_denied(record, decision)
        series = self.counters.traffic.series(_REPORTERS[direction], ends, protocol)
        self.counters.traffic.count_refused(series, Flag.DENY)
        if self._is_wanted(record, failed=True):
            self.access.write("warning", "denied", _access_fields(record, decision.reason))

    def mark_denied(self, record: Record, decision: Decision) -> None:
        """Policy is against a connection; its line says which."""
        self.stats.denied += 1
        record.flags = Flag.DENY.value
        record.policy = display_name(decision.policy)
        record.rule = f"rules[{decision.rule}]" if decision.rule >= 0 else ""

    def query_ended(self, outcome: Outcome) -> None:
        """A DNS query got an answer, or none."""
        self.stats.queries_answered += outcome is Outcome.MESH
        self.stats.queries_failed += outcome is Outcome.FAILED
        self.counters.dns.count_query(outcome)

    def accept_paused(self) -> None:
        """Descriptors or memory ran out for a moment."""
        self.stats.accepts_paused += 1

    def handshake_failed(
        self, direction: Direction, source: str, destination: str, why: str, ends: ConnectionPeers
    ) -> None:
        """Quiet, because anybody who reaches the port can cause it."""
        self.stats.handshakes_failed += 1
        series = self.counters.traffic.series(_REPORTERS[direction], ends)
        self.counters.traffic.count_refused(series, flag_of(why, established=False))
        log.debug(
            "handshake failed", direction=direction.value, src=source, dst=destination, error=why
        )

    def live(self) -> list[Record]:
        """The connections there are now."""
        return [live.record for live in self._live.values()]

    def count_bytes(self) -> None:
        """Count what live connections have transferred so far: call before a report."""
        for live in self._live.values():
            self._count_bytes(live)

    def udp_dropped(self, reason: UdpDropReason) -> None:
        """Count a datagram or a flow of redirected UDP that was dropped."""
        self.counters.udp_drops.count(reason)
        if reason is UdpDropReason.FLOW_LIMIT:
            self.stats.udp_refused += 1
        else:
            self.stats.udp_dropped += 1

    def _is_wanted(self, record: Record, *, failed: bool) -> bool:
        """By the namespace of this node's pod."""
        ours = record.source if record.direction is Direction.OUTBOUND else record.destination
        return self.access.wants(ours.namespace, failed=failed)

    def _count_bytes(self, live: _Live) -> None:
        record = live.record
        sent, received = record.sent - live.sent, record.received - live.received
        if sent or received:
            live.sent, live.received = record.sent, record.received
            is_ours = record.direction is Direction.OUTBOUND
            client, server = (sent, received) if is_ours else (received, sent)
            self.counters.traffic.count_bytes(live.series, client, server)


def _access_fields(record: Record, error: str) -> dict[str, object]:
    source, destination = record.source, record.destination
    fields: dict[str, object] = {
        "direction": record.direction.value,
        "src.addr": source.address,
        "src.workload": source.workload,
        "src.namespace": source.namespace,
        "src.identity": source.identity,
        "dst.addr": destination.address,
        "dst.workload": destination.workload,
        "dst.namespace": destination.namespace,
        "dst.identity": destination.identity,
        "dst.hbone_addr": record.hbone_addr,
        "dst.service": record.service,
        "bytes_sent": record.sent,
        "bytes_recv": record.received,
        "duration": f"{round((time.time() - record.started) * 1000)}ms",
        "response_flags": record.flags,
        "policy": record.policy,
        "rule": record.rule,
        "dry_run": record.dry_run,
        "error": error,
    }
    if record.protocol == "udp":
        fields |= {"protocol": "udp", "dropped": record.dropped}
    return fields
