# SPDX-License-Identifier: Apache-2.0
"""Tracks a worker's connections: live records, counters, spans, and access log lines."""

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
    """Creates spans (`ztunnel.telemetry.tracing`)."""

    def connection_closed(
        self, trace: str, *, outbound: bool, started: float, fields: Fields, error: str
    ) -> None:
        """Create the span of a connection that closed."""


_REPORTERS = {
    Direction.OUTBOUND: Reporter.SOURCE,
    Direction.INBOUND: Reporter.DESTINATION,
}


class _Live:
    """A live connection, and the bytes of it that are counted."""

    __slots__ = ("received", "record", "sent", "series")

    def __init__(self, record: Record, series: Series) -> None:
        self.record = record
        self.series = series
        self.sent = self.received = 0


def make_peer(address: SocketAddress, workload: Workload | None, identity: str = "") -> Peer:
    """A peer with its workload's names; `identity` must be proven."""
    if workload is None:
        return Peer(str(address), identity=identity)
    return Peer(str(address), workload.name, workload.namespace, identity)


def with_identity(peer: Peer, identity: str) -> Peer:
    """The same peer with its proven identity."""
    return msgspec.structs.replace(peer, identity=identity)


class ConnectionTracker:
    """All live connections of one worker."""

    def __init__(self, access: AccessLog) -> None:
        self.stats = Stats()
        self.counters = WorkerCounters()
        self.access = access
        self.tracer: Tracer | None = None
        self._live: dict[int, _Live] = {}
        self._ids = itertools.count(1)

    def connection_opened(
        self,
        direction: Direction,
        source: Peer,
        destination: Peer,
        *,
        hbone_addr: str = "",
        service: str = "",
        peers: ConnectionPeers = UNKNOWN_PEERS,
        protocol: str = "tcp",
    ) -> Record:
        """Track an admitted connection or UDP flow; `peers` selects the series it counts in."""
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
        series = self.counters.traffic.series(_REPORTERS[direction], peers, protocol)
        self.counters.traffic.count_opened(series)
        self._live[record.id] = _Live(record, series)
        self.stats.opened += 1
        return record

    def connection_closed(self, record: Record, error: str = "") -> None:
        """Count, trace and log a connection that closed; without `error`, in order. Idempotent."""
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
            self.tracer.connection_closed(
                record.trace,
                outbound=record.direction is Direction.OUTBOUND,
                started=record.started,
                fields=_access_fields(record, error),
                error=error,
            )
        if self._is_logged(record, failed=bool(error)):
            self.access.write("info", "connection", _access_fields(record, error))

    def connection_refused(
        self,
        direction: Direction,
        source: str,
        destination: str,
        reason: str,
        *,
        peers: ConnectionPeers = UNKNOWN_PEERS,
        protocol: str = "tcp",
        dns_name: str = "",
    ) -> None:
        """Count and log a connection that was rejected, other than by policy.

        `dns_name`: the name that the pod has recently resolved to the destination, as a hint.
        """
        self.stats.refused += 1
        series = self.counters.traffic.series(_REPORTERS[direction], peers, protocol)
        self.counters.traffic.count_refused(series, flag_of(reason, established=False))
        local = peers.source if direction is Direction.OUTBOUND else peers.destination
        if self.access.wants(local.namespace if local is not None else "", failed=True):
            fields = {"direction": direction.value, "src": source, "dst": destination}
            if protocol != "tcp":
                fields["protocol"] = protocol
            if dns_name:
                fields["dns_name"] = dns_name
            self.access.write("warning", "refused", {**fields, "error": reason})

    def connection_denied(
        self,
        direction: Direction,
        source: Peer,
        destination: Peer,
        decision: Decision,
        *,
        hbone_addr: str = "",
        service: str = "",
        peers: ConnectionPeers = UNKNOWN_PEERS,
        protocol: str = "tcp",
    ) -> None:
        """Count and log a new connection that policy denied."""
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
        series = self.counters.traffic.series(_REPORTERS[direction], peers, protocol)
        self.counters.traffic.count_refused(series, Flag.DENY)
        if self._is_logged(record, failed=True):
            self.access.write("warning", "denied", _access_fields(record, decision.reason))

    def mark_denied(self, record: Record, decision: Decision) -> None:
        """Note the policy that denies a connection, for its access log line."""
        self.stats.denied += 1
        record.flags = Flag.DENY.value
        record.policy = display_name(decision.policy)
        record.rule = f"rules[{decision.rule}]" if decision.rule >= 0 else ""

    def dns_query_ended(self, outcome: Outcome) -> None:
        """Count a DNS query."""
        self.stats.queries_answered += outcome is Outcome.MESH
        self.stats.queries_failed += outcome is Outcome.FAILED
        self.counters.dns.count_query(outcome)

    def udp_dropped(self, reason: UdpDropReason) -> None:
        """Count a dropped datagram or flow of redirected UDP."""
        self.counters.udp_drops.count(reason)
        if reason is UdpDropReason.FLOW_LIMIT:
            self.stats.udp_refused += 1
        else:
            self.stats.udp_dropped += 1

    def accept_paused(self) -> None:
        """Count that a listener paused because descriptors or memory ran out."""
        self.stats.accepts_paused += 1

    def handshake_failed(
        self,
        direction: Direction,
        source: str,
        destination: str,
        reason: str,
        peers: ConnectionPeers,
    ) -> None:
        """Count a failed handshake. It is logged at debug only: any host can cause it."""
        self.stats.handshakes_failed += 1
        series = self.counters.traffic.series(_REPORTERS[direction], peers)
        self.counters.traffic.count_refused(series, flag_of(reason, established=False))
        log.debug(
            "handshake failed", direction=direction.value, src=source, dst=destination, error=reason
        )

    def live(self) -> list[Record]:
        """The live connections."""
        return [live.record for live in self._live.values()]

    def count_bytes(self) -> None:
        """Count what live connections have transferred so far: call before a report."""
        for live in self._live.values():
            self._count_bytes(live)

    def _is_logged(self, record: Record, *, failed: bool) -> bool:
        """The namespace of this node's pod selects the access log rule."""
        local = record.source if record.direction is Direction.OUTBOUND else record.destination
        return self.access.wants(local.namespace, failed=failed)

    def _count_bytes(self, live: _Live) -> None:
        record = live.record
        sent, received = record.sent - live.sent, record.received - live.received
        if sent or received:
            live.sent, live.received = record.sent, record.received
            is_outbound = record.direction is Direction.OUTBOUND
            client, server = (sent, received) if is_outbound else (received, sent)
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
