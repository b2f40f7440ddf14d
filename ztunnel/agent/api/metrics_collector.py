# SPDX-License-Identifier: Apache-2.0
"""The node's metrics: asks the workers, looks at the kernel and at the agent itself.

    scrape --> workers tell what is new --> events of the kernel --> snapshot --> page (a thread)

A scrape that comes within moments of another gets the same page: whoever reaches the port can't
make the agent work.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Protocol

import structlog

from ztunnel.agent.workers.registry import SessionRegistry
from ztunnel.datapath.bpf import stats
from ztunnel.identity.certificate_store import BLOCKED
from ztunnel.kube.view.cluster_view import ClusterView
from ztunnel.telemetry.dns_counters import DnsCounters
from ztunnel.telemetry.exposition import Snapshot, render
from ztunnel.telemetry.labels import WorkloadLabels, workload_labels
from ztunnel.telemetry.node_counters import TrafficTotals
from ztunnel.telemetry.same_node_rtt import RttTable

FRESH = 0.25  # seconds a page may be old
ASK_TIMEOUT = 1.0  # seconds a worker may take; what it does not tell comes with the next page
EXPIRY_INTERVAL_S = 10.0
EXPIRY_BATCH = 250  # workloads between two yields to the event loop
_POD_STATES = ("captured", "waiting", "refused")

log = structlog.get_logger()


class Status(Protocol):
    """The agent's view of itself, see `ztunnel.agent.api.admin_views`."""

    def status(self) -> dict[str, Any]: ...
    def certificates(self) -> dict[str, Any]: ...


class Metrics:
    """One per agent."""

    def __init__(
        self,
        *,
        totals: TrafficTotals,
        paths: RttTable,
        dns: DnsCounters,
        status: Status,
        sessions: SessionRegistry,
        read_events: Callable[[], None],
        pin_dir: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._totals = totals
        self._paths = paths
        self._dns = dns
        self._status = status
        self._sessions = sessions
        self._read_events = read_events
        self._pin_dir = pin_dir
        self._clock = clock
        self._turn = asyncio.Lock()
        self._pages: dict[str, tuple[float, tuple[bytes, str]]] = {}

    async def page(self, accept: str = "") -> tuple[bytes, str]:
        """What Prometheus reads, and its content type."""
        kind = "openmetrics" if "openmetrics" in accept else "text"
        async with self._turn:
            known = self._pages.get(kind)
            if known is not None and self._clock() - known[0] < FRESH:
                return known[1]
            began = time.time()
            await self._sessions.query("stats", ASK_TIMEOUT)  # they tell their counts before
            self._read_events()
            snapshot = self._snapshot()
            snapshot.set("ztunnel_scrape_generated_timestamp_seconds", began)
            page = await asyncio.to_thread(self._rendered, snapshot, accept)
            self._pages[kind] = self._clock(), page
            return page

    def retire(self, living: Collection[WorkloadLabels], grace: float) -> None:
        """Forget series of workloads that are gone for so many seconds."""
        for each in (self._totals, self._paths):
            each.expire(living, self._clock(), grace)

    async def run_expiry(self, view: ClusterView, ttl_s: float) -> None:
        """Expire the series of workloads that are gone, until cancelled."""
        while True:
            live: set[WorkloadLabels] = set()
            for number, workload in enumerate(view.snapshot().workloads, 1):
                live.add(workload_labels(workload))
                if number % EXPIRY_BATCH == 0:  # 20,000 workloads would block the event loop
                    await asyncio.sleep(0)
            self.retire(live, ttl_s)
            await asyncio.sleep(EXPIRY_INTERVAL_S)

    def _rendered(self, snapshot: Snapshot, accept: str) -> tuple[bytes, str]:
        """In a thread: neither the kernel's maps nor thousands of lines may stop the agent."""
        try:
            self._look_at_programs(snapshot)
        except OSError as error:  # not loaded yet, or taken away
            log.warning("no statistics of BPF", error=str(error))
        return render(snapshot, accept)

    def _look_at_programs(self, snapshot: Snapshot) -> None:
        for program in stats.program_runs(self._pin_dir):
            if program.count:
                snapshot.set("ztunnel_bpf_program_runs", program.count, program.program)
                snapshot.set("ztunnel_bpf_program_run_seconds", program.seconds, program.program)
        for each in stats.map_occupancy(self._pin_dir):
            snapshot.set("ztunnel_bpf_map_entries", each.entries, each.name)
            snapshot.set("ztunnel_bpf_map_max_entries", each.room, each.name)

    def _snapshot(self) -> Snapshot:
        snapshot = Snapshot(
            self._totals.snapshot(), self._paths.snapshot(), dns=copy.deepcopy(self._dns)
        )
        for outcome, count in self._dns.outcomes.items():
            snapshot.set("ztunnel_dns_queries", count, outcome.value)
        snapshot.set("ztunnel_dns_forward_failures", self._dns.forward_failures)
        status = self._status.status()
        self._own(snapshot, status)
        self._kernel(snapshot, status)
        self._certificates(snapshot)
        for name, count in self._totals.series_count().items():
            snapshot.set("ztunnel_metrics_series", count, name)
        snapshot.set("ztunnel_metrics_series_overflow", self._totals.overflowed)
        snapshot.set("ztunnel_metrics_series_expired", self._totals.expired)
        for labels, path in snapshot.rtt:
            snapshot.set("ztunnel_same_node_retransmits", path.retransmits, *labels)
        return snapshot

    def _own(self, snapshot: Snapshot, status: dict[str, Any]) -> None:
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
        queued = sum(worker["queued_bytes"] for worker in workers)
        snapshot.set("ztunnel_workers_queued_bytes", queued)
        for state in _POD_STATES:
            snapshot.set("ztunnel_pods", status["pods"][state], state)

    def _kernel(self, snapshot: Snapshot, status: dict[str, Any]) -> None:
        snapshot.set("ztunnel_same_node_bypass_entries", status["same_node"]["bypass_entries"])
        snapshot.set("ztunnel_same_node_connections_terminated", status["same_node"]["terminated"])
        for reason, count in status["data_path"].get("udp", {}).get("dropped", {}).items():
            snapshot.set("ztunnel_udp_drops", count, reason)
        counters = status["data_path"].get("stats", {})
        for event, count in counters.items():
            if event != "flows":  # no counter: the occupancy of zt_flows tells it
                snapshot.set("ztunnel_bpf_events", count, event)

    def _certificates(self, snapshot: Snapshot) -> None:
        rows = self._status.certificates()["certificates"]
        for row in rows:
            if row.not_after:
                snapshot.set(
                    "ztunnel_certificate_expiry_timestamp_seconds", row.not_after, row.identity
                )
            snapshot.set("ztunnel_certificate_renewals", row.renewals, row.identity)
        withheld = sum(row.state == BLOCKED for row in rows)
        failing = sum(bool(row.last_error) for row in rows)
        snapshot.set("ztunnel_certificates_failing", failing - withheld)
        snapshot.set("ztunnel_certificates_blocked", withheld, "service_account_missing")
