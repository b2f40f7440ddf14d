# SPDX-License-Identifier: Apache-2.0
"""DNS counts: what a worker takes is what the agent adds, once, and shows."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from ztunnel.ipc.messages import DnsCounted
from ztunnel.telemetry.dns_counters import BUCKETS, Outcome, Queries
from ztunnel.telemetry.exposition import Snapshot, render
from ztunnel.telemetry.node_counters import Ledger, Totals


def _told() -> DnsCounted:
    worker = Queries()
    for outcome in (Outcome.MESH, Outcome.MESH, Outcome.FORWARDED, Outcome.FAILED):
        worker.count(outcome)
    worker.answered(0.004)
    worker.unanswered()
    told = worker.take()
    assert told is not None
    assert worker.take() is None
    return told


def test_told_twice_counts_once() -> None:
    ledger = Ledger(Totals(10))
    for _ in range(2):
        ledger.take(1, 1, (), _told())
    assert ledger.queries.outcomes == {
        Outcome.MESH: 2,
        Outcome.FORWARDED: 1,
        Outcome.FAILED: 1,
    }
    assert ledger.queries.forward_failures == 1


def test_a_worker_that_lies_takes_nothing_away() -> None:
    queries = Queries()
    queries.add(_told())
    before = (dict(queries.outcomes), list(queries.buckets), queries.seconds)
    queries.add(DnsCounted((-5, -5, -5, 7), -1, (-1,) * 100, -9.0))
    assert (queries.outcomes, queries.buckets, queries.seconds) == before


def test_the_histogram_on_the_page() -> None:
    snapshot = Snapshot()
    snapshot.queries.add(_told())
    page = render(snapshot, "")[0].decode()
    (family,) = (
        each
        for each in text_string_to_metric_families(page)
        if each.name == "ztunnel_dns_forward_seconds"
    )
    found = {(each.name, each.labels.get("le", "")): each.value for each in family.samples}
    assert found["ztunnel_dns_forward_seconds_bucket", str(BUCKETS[2])] == 0
    assert found["ztunnel_dns_forward_seconds_bucket", "0.005"] == 1
    assert found["ztunnel_dns_forward_seconds_count", ""] == 1
    assert found["ztunnel_dns_forward_seconds_sum", ""] == 0.004
