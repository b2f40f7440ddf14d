# SPDX-License-Identifier: Apache-2.0
"""Collects the node's metrics from the workers, the kernel and the agent for each scrape.

    scrape --> workers report --> kernel events --> snapshot --> exposition text (in a thread)

Scrapes within `MAX_PAGE_AGE_S` get the same page, so clients of the port can't load the agent.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Protocol

import structlog

from ztunnel.agent.traffic.udp_route_share import MAX_ROUTES_PER_NAMESPACE
from ztunnel.agent.workers.registry import SessionRegistry
from ztunnel.datapath.bpf import stats
from ztunnel.identity.certificate_store import BLOCKED
from ztunnel.ipc.introspection import View
from ztunnel.kube.view.cluster_view import ClusterView
from ztunnel.telemetry.dns_counters import DnsCounters
from ztunnel.telemetry.exposition import Snapshot, render
from ztunnel.telemetry.labels import WorkloadLabels, workload_labels
from ztunnel.telemetry.log_drop_counters import LogDropCounters
from ztunnel.telemetry.node_counters import TrafficTotals
from ztunnel.telemetry.same_node_rtt import RttTable

MAX_PAGE_AGE_S = 0.25
REPORT_TIMEOUT_S = 1.0  # for a worker; a later report is in the next page
EXPIRY_INTERVAL_S = 10.0
EXPIRY_BATCH = 250  # workloads between two yields to the event loop
_POD_STATES = ("captured", "waiting", "refused")

log = structlog.get_logger()


class Status(Protocol):
    """The agent's status; see `ztunnel.agent.api.admin_views`."""

    def status(self) -> dict[str, Any]: ...
    def certificates(self) -> dict[str, Any]: ...


class MetricsCollector:
    """One per agent."""

    def __init__(
        self,
        *,
        totals: TrafficTotals,
        rtt: RttTable,
        dns: DnsCounters,
        log_drops: LogDropCounters,
        status: Status,
        sessions: SessionRegistry,
        read_events: Callable[[], None],
        pin_dir: Path,
        add_gateways: Callable[[Snapshot], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._totals = totals
        self._rtt = rtt
        self._dns = dns
        self._log_drops = log_drops
        self._status = status
        self._sessions = sessions
        self._read_events = read_events
        self._pin_dir = pin_dir
        self._add_gateways = add_gateways
        self._clock = clock
        self._lock = asyncio.Lock()
        self._pages: dict[str, tuple[float, tuple[bytes, str]]] = {}

    async def page(self, accept: str = "") -> tuple[bytes, str]:
        """The metrics in the format that the Accept header requests, and the content type."""
        kind = "openmetrics" if "openmetrics" in accept else "text"
        async with self._lock:
            cached = self._pages.get(kind)
            if cached is not None and self._clock() - cached[0] < MAX_PAGE_AGE_S:
                return cached[1]
            started_at = time.time()
            # Each worker reports its counters before it replies.
            workers = await self._sessions.query(View.STATS, REPORT_TIMEOUT_S)
            self._read_events()
            snapshot = self._snapshot()
            for name in ("buffered_bytes", "buffer_limit_bytes"):
                total = sum((each.body or {}).get(name, 0) for each in workers)
                snapshot.set(f"ztunnel_proxy_{name}", total)
            snapshot.set("ztunnel_scrape_generated_timestamp_seconds", started_at)
            page = await asyncio.to_thread(self._render, snapshot, accept)
            self._pages[kind] = self._clock(), page
            return page

    def expire(self, live: Collection[WorkloadLabels], ttl_s: float) -> None:
        """Remove the series of workloads that have not been live for this time."""
        for table in (self._totals, self._rtt):
            table.expire(live, self._clock(), ttl_s)

    async def run_expiry(self, view: ClusterView, ttl_s: float) -> None:
        """Expire the series of deleted workloads, until cancelled."""
        while True:
            live: set[WorkloadLabels] = set()
            for number, workload in enumerate(view.snapshot().workloads, 1):
                live.add(workload_labels(workload))
                if number % EXPIRY_BATCH == 0:  # 20,000 workloads would block the event loop
                    await asyncio.sleep(0)
            self.expire(live, ttl_s)
            await asyncio.sleep(EXPIRY_INTERVAL_S)

    def _render(self, snapshot: Snapshot, accept: str) -> tuple[bytes, str]:
        """Runs in a thread: map iteration and rendering would block the event loop."""
        try:
            self._read_bpf_stats(snapshot)
        except OSError as error:  # the data path is not loaded, or uninstalled
            log.warning("BPF statistics unavailable", error=str(error))
        return render(snapshot, accept)

    def _read_bpf_stats(self, snapshot: Snapshot) -> None:
        for program in stats.program_runs(self._pin_dir):
            if program.count:
                snapshot.set("ztunnel_bpf_program_runs", program.count, program.program)
                snapshot.set("ztunnel_bpf_program_run_seconds", program.seconds, program.program)
        for each in stats.map_occupancy(self._pin_dir):
            snapshot.set("ztunnel_bpf_map_entries", each.entries, each.name)
            snapshot.set("ztunnel_bpf_map_max_entries", each.room, each.name)

    def _snapshot(self) -> Snapshot:
        snapshot = Snapshot(
            self._totals.snapshot(), self._rtt.snapshot(), dns=copy.deepcopy(self._dns)
        )
        for outcome, count in self._dns.outcomes.items():
            snapshot.set("ztunnel_dns_queries", count, outcome.value)
        for reason, lines in self._log_drops.by_reason.items():
            snapshot.set("ztunnel_log_lines_dropped", lines, reason.value)
        snapshot.set("ztunnel_dns_forward_failures", self._dns.forward_failures)
        snapshot.set("ztunnel_dns_dropped_addresses", self._dns.dropped_addresses)
        snapshot.set("ztunnel_dns_evicted_answers", self._dns.evicted_answers)
        status = self._status.status()
        self._set_agent(snapshot, status)
        self._set_data_path(snapshot, status)
        self._set_certificates(snapshot)
        self._add_gateways(snapshot)
        for name, count in self._totals.series_count().items():
            snapshot.set("ztunnel_metrics_series", count, name)
        snapshot.set("ztunnel_metrics_series_overflow", self._totals.overflowed)
        snapshot.set("ztunnel_metrics_series_expired", self._totals.expired)
        for labels, path in snapshot.rtt:
            snapshot.set("ztunnel_same_node_retransmits", path.retransmits, *labels)
        return snapshot

    def _set_agent(self, snapshot: Snapshot, status: dict[str, Any]) -> None:
        source, workers = status["source"], status["workers"]
        snapshot.set("ztunnel_build_info", 1, status["version"])
        snapshot.set("ztunnel_ready", status["ready"])
        snapshot.set("ztunnel_config_source_synced", source["synced"])
        snapshot.set("ztunnel_config_source_connected", source.get("present", False))
        if source.get("age_seconds") is not None:
            snapshot.set("ztunnel_config_source_last_event_age_seconds", source["age_seconds"])
        snapshot.set("ztunnel_config_source_revision", source.get("revision", 0))
        snapshot.set("ztunnel_config_source_errors", len(source.get("errors", ())))
        snapshot.set("ztunnel_workers", len(workers))
        snapshot.set("ztunnel_worker_messages_rejected", self._sessions.rejected_messages)
        queued = sum(worker["queued_bytes"] for worker in workers)
        snapshot.set("ztunnel_workers_queued_bytes", queued)
        for state in _POD_STATES:
            snapshot.set("ztunnel_pods", status["pods"][state], state)

    def _set_data_path(self, snapshot: Snapshot, status: dict[str, Any]) -> None:
        snapshot.set("ztunnel_same_node_bypass_entries", status["same_node"]["bypass_entries"])
        snapshot.set("ztunnel_same_node_connections_terminated", status["same_node"]["terminated"])
        pins = status["data_path"].get("pins", {"restored": 0, "errors": ()})
        snapshot.set("ztunnel_bpf_pins_restored", pins["restored"])
        snapshot.set("ztunnel_bpf_pin_errors", len(pins["errors"]))
        self._set_udp(snapshot, status["data_path"].get("udp", {}))
        counters = status["data_path"].get("stats", {})
        for event, count in counters.items():
            if event != "flows":  # a gauge, exported as the occupancy of the map zt_flows
                snapshot.set("ztunnel_bpf_events", count, event)

    def _set_udp(self, snapshot: Snapshot, udp: dict[str, Any]) -> None:
        for reason, count in udp.get("dropped", {}).items():
            snapshot.set("ztunnel_udp_drops", count, reason)
        snapshot.set("ztunnel_udp_routes_missing", udp.get("missing_routes", 0))
        for namespace, count in udp.get("routes_by_namespace", {}).items():
            if count >= MAX_ROUTES_PER_NAMESPACE // 10:
                snapshot.set("ztunnel_udp_namespace_routes", count, namespace)
        for namespace, count in udp.get("refused_objects_by_namespace", {}).items():
            snapshot.set("ztunnel_udp_refused_objects", count, namespace)

    def _set_certificates(self, snapshot: Snapshot) -> None:
        rows = self._status.certificates()["certificates"]
        for row in rows:
            if row.not_after:
                snapshot.set(
                    "ztunnel_certificate_expiry_timestamp_seconds", row.not_after, row.identity
                )
            snapshot.set("ztunnel_certificate_renewals", row.renewals, row.identity)
        blocked = sum(row.state == BLOCKED for row in rows)
        failing = sum(bool(row.last_error) for row in rows)
        snapshot.set("ztunnel_certificates_failing", failing - blocked)
        snapshot.set("ztunnel_certificates_blocked", blocked, "service_account_missing")
