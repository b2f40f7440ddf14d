# SPDX-License-Identifier: Apache-2.0
"""DNS counters: each count is reported once, added once and exposed."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from ztunnel.ipc.messages import CounterReport, DnsCounts
from ztunnel.telemetry.dns_counters import BUCKETS_S, DnsCounters, Outcome
from ztunnel.telemetry.exposition import Snapshot, render
from ztunnel.telemetry.node_counters import NodeCounters, TrafficTotals


def _flushed() -> DnsCounts:
    worker = DnsCounters()
    for outcome in (Outcome.MESH, Outcome.MESH, Outcome.FORWARDED, Outcome.FAILED):
        worker.count_query(outcome)
    worker.observe_forward(0.004)
    worker.count_forward_failure()
    counts = worker.flush()
    assert counts is not None
    assert worker.flush() is None
    return counts


def test_repeated_report_counts_once() -> None:
    ledger = NodeCounters(TrafficTotals(10))
    for _ in range(2):
        ledger.apply(CounterReport(instance=1, seq=1, series=(), dns=_flushed()))
    assert ledger.dns.outcomes == {
        Outcome.MESH: 2,
        Outcome.FORWARDED: 1,
        Outcome.FAILED: 1,
    }
    assert ledger.dns.forward_failures == 1


def test_malformed_report_never_decreases_totals() -> None:
    queries = DnsCounters()
    queries.add(_flushed())
    before = (dict(queries.outcomes), list(queries.buckets), queries.seconds)
    queries.add(DnsCounts((-5, -5, -5, 7), -1, (-1,) * 100, -9.0))
    assert (queries.outcomes, queries.buckets, queries.seconds) == before


def test_forward_latency_is_exposed_as_histogram() -> None:
    snapshot = Snapshot()
    snapshot.dns.add(_flushed())
    page = render(snapshot, "")[0].decode()
    (family,) = (
        each
        for each in text_string_to_metric_families(page)
        if each.name == "ztunnel_dns_forward_seconds"
    )
    found = {(each.name, each.labels.get("le", "")): each.value for each in family.samples}
    assert found["ztunnel_dns_forward_seconds_bucket", str(BUCKETS_S[2])] == 0
    assert found["ztunnel_dns_forward_seconds_bucket", "0.005"] == 1
    assert found["ztunnel_dns_forward_seconds_count", ""] == 1
    assert found["ztunnel_dns_forward_seconds_sum", ""] == 0.004
