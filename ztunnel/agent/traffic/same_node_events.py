# SPDX-License-Identifier: Apache-2.0
"""Reads the kernel's events of bypassed connections: access log, metrics, unexpected peers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from ztunnel.agent.datapath import DataPath
from ztunnel.agent.log_settings import LogSettings
from ztunnel.agent.pods.registry import CapturedPods
from ztunnel.agent.traffic.same_node import SameNodeBypass
from ztunnel.agent.traffic.same_node_metrics import SameNodeMetrics
from ztunnel.datapath.bpf.layout import CloseReason
from ztunnel.datapath.bpf.ring_buffer import ConnectionEvent
from ztunnel.mesh.model import SocketAddress
from ztunnel.telemetry.access_log_filter import is_wanted
from ztunnel.telemetry.logs import access_logger

READ_INTERVAL_S = 0.2
MAX_EVENTS = 8192  # per read
MAX_LOG_LINES = 100  # per read; the events in excess are summarized by pair

access_log = access_logger()

_ERRORS = {
    CloseReason.ORDERLY: "",
    CloseReason.RESET: "connection reset",
    CloseReason.REFUSED: "connection refused",
    CloseReason.UNEXPECTED_PEER: "the peer was not the destination pod; connection terminated",
    CloseReason.UDP_STRICT: "plaintext, but mTLS is required",
}


class SameNodeEvents:
    """One per agent; `read` is called periodically and before a scrape."""

    def __init__(
        self,
        datapath: DataPath,
        bypass: SameNodeBypass,
        pods: CapturedPods,
        *,
        logs: LogSettings,
        metrics: SameNodeMetrics | None = None,
        on_strict_drop: Callable[[SocketAddress, SocketAddress], None] = lambda *_: None,
    ) -> None:
        """`on_strict_drop` gets the source and the destination of UDP that the kernel dropped
        because the destination requires mTLS."""
        self._datapath = datapath
        self._bypass = bypass
        self._peers = bypass.peers
        self._stats = bypass.stats
        self._pods = pods
        self._logs = logs
        self._metrics = metrics
        self._on_strict_drop = on_strict_drop

    def read(self) -> None:
        """Process the events since the last read."""
        events = self._datapath.drain_events(MAX_EVENTS)
        if not events:
            return
        self._peers.refresh(self._pods)
        closed = []
        for event in events:
            if event.close_reason is CloseReason.UDP_STRICT:
                self._on_strict_drop(event.source, event.destination)
                continue
            closed.append(event)
            self._count(event)
        if self._metrics is not None:
            self._metrics.flush()
        self._log([event for event in closed if self._is_wanted(event)])

    def _count(self, event: ConnectionEvent) -> None:
        if event.close_reason is CloseReason.UNEXPECTED_PEER:
            self._bypass.quarantine(event)
            return
        stats = self._stats
        stats.closed += 1
        stats.failed += event.close_reason is not CloseReason.ORDERLY
        stats.sent += event.sent
        stats.received += event.received
        stats.retransmits += event.retransmits
        if self._metrics is not None:
            self._metrics.add(
                event,
                self._peers.get(event.netns_cookie),
                self._peers.get(event.destination_cookie),
                denied=self._bypass.pop_denied(event.owner),
            )

    def _is_wanted(self, event: ConnectionEvent) -> bool:
        namespace = self._peers.namespace(event.netns_cookie)
        return is_wanted(self._logs.current, namespace, failed=_has_failed(event))

    def _log(self, events: list[ConnectionEvent]) -> None:
        for event in events[:MAX_LOG_LINES]:
            if self._logs.admits(failed=_has_failed(event)):
                access_log.info("connection", **self._fields(event))
        self._log_summary(events[MAX_LOG_LINES:])

    def _log_summary(self, events: Iterable[ConnectionEvent]) -> None:
        """Write one line per pair and close reason: the log must not cost more than the traffic."""
        groups: dict[tuple[object, ...], list[ConnectionEvent]] = defaultdict(list)
        for event in events:
            group = (
                event.netns_cookie,
                event.destination_cookie,
                event.destination,
                event.close_reason,
            )
            groups[group].append(event)
        for group_events in groups.values():
            if not self._logs.admits(failed=_has_failed(group_events[0])):
                continue
            fields = self._fields(group_events[-1])
            fields["src.addr"] = group_events[-1].source.ip
            fields["connections"] = len(group_events)
            fields["bytes_sent"] = sum(event.sent for event in group_events)
            fields["bytes_recv"] = sum(event.received for event in group_events)
            fields["retransmits"] = sum(event.retransmits for event in group_events)
            access_log.info("connections", **fields)

    def _fields(self, event: ConnectionEvent) -> dict[str, Any]:
        source, destination = str(event.source), str(event.destination)
        fields: dict[str, Any] = {
            "direction": "outbound",
            **self._peers.log_fields("src", event.netns_cookie, source),
            **self._peers.log_fields("dst", event.destination_cookie, destination),
            "same_node": True,
            "bytes_sent": event.sent,
            "bytes_recv": event.received,
            "duration": f"{event.duration * 1000:.0f}ms",
            "rtt_us": event.srtt_us,
            "retransmits": event.retransmits,
        }
        if error := _ERRORS[event.close_reason]:
            fields["error"] = error
        return fields


def _has_failed(event: ConnectionEvent) -> bool:
    return event.close_reason is not CloseReason.ORDERLY
