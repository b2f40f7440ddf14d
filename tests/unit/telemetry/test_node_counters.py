# SPDX-License-Identifier: Apache-2.0
"""The node's totals: no double counting, never decreasing, limited, expiring."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.telemetry.builders import between, pod
from ztunnel.ipc.messages import CounterReport, SeriesCounts
from ztunnel.telemetry import labels
from ztunnel.telemetry.labels import LABELS, Labels
from ztunnel.telemetry.node_counters import METRICS, NodeCounters, TrafficTotals

OPENED, CLOSED = "istio_tcp_connections_opened", "istio_tcp_connections_closed"
A, B = between("a", "db"), between("b", "db")


def value(totals: TrafficTotals, metric: str, key: Labels | None = None) -> int:
    return sum(v for k, v in totals.snapshot()[metric] if key in (None, k))


def report(instance: int, seq: int, *series: SeriesCounts) -> CounterReport:
    return CounterReport(instance=instance, seq=seq, series=series)


def test_fields_map_to_istio_metrics() -> None:
    totals = TrafficTotals(10)
    totals.add(SeriesCounts(A, opened=5, closed=4, failed=3, sent=200, received=100))
    assert {name: value(totals, name) for name in METRICS} == {
        OPENED: 5,
        CLOSED: 4,
        "istio_tcp_connections_failed": 3,
        "istio_tcp_received_bytes": 200,  # what the client sent
        "istio_tcp_sent_bytes": 100,
    }


def test_repeated_sequence_number_is_ignored() -> None:
    totals = TrafficTotals(10)
    ledger = NodeCounters(totals)
    for number in (1, 1, 2, 1, 2):
        ledger.apply(report(7, number, SeriesCounts(A, opened=1)))
    ledger.apply(report(8, 1, SeriesCounts(A, opened=1)))  # another worker's first
    assert value(totals, OPENED) == 3


def test_open_connections_of_exited_worker_are_closed() -> None:
    totals = TrafficTotals(10)
    ledger = NodeCounters(totals)
    denied = labels.with_flag(A, "DENY")
    ledger.apply(
        report(
            7,
            1,
            SeriesCounts(A, opened=5, closed=1),
            SeriesCounts(denied, closed=1),
            SeriesCounts(B, opened=2),
        )
    )
    ledger.apply(report(8, 1, SeriesCounts(A, opened=10)))
    ledger.worker_exited(7)
    ledger.worker_exited(7)
    assert value(totals, CLOSED, A) == 4
    assert value(totals, CLOSED, denied) == 1
    assert value(totals, CLOSED, B) == 2
    assert value(totals, OPENED) - value(totals, CLOSED) == 10
    assert ledger.instances == {8}


Event = st.tuples(
    st.integers(0, 2),  # worker
    st.sampled_from([A, B]),
    st.integers(0, 5),  # opened
    st.integers(0, 5),  # of the open ones: closed
    st.booleans(),  # sent twice
    st.booleans(),  # then killed
)


@given(st.lists(Event))
def test_totals_match_any_history_of_workers(
    history: list[tuple[int, Labels, int, int, bool, bool]],
) -> None:
    totals = TrafficTotals(10)
    ledger = NodeCounters(totals)
    instance = {worker: worker for worker in range(3)}
    number = Counter[int]()
    is_open = Counter[tuple[int, Labels]]()
    opened, before = 0, dict.fromkeys(METRICS, 0)
    for worker, key, more, fewer, twice, killed in history:
        me = instance[worker]
        number[me] += 1
        closed = min(fewer, is_open[me, key] + more)
        is_open[me, key] += more - closed
        opened += more
        for _ in range(1 + twice):
            ledger.apply(report(me, number[me], SeriesCounts(key, opened=more, closed=closed)))
        if killed:
            ledger.worker_exited(me)
            for label_set in (A, B):
                is_open.pop((me, label_set), None)
            instance[worker] += 3
        now = {name: value(totals, name) for name in METRICS}
        assert all(now[name] >= before[name] for name in METRICS)
        before = now
        assert now[OPENED] == opened
        assert now[OPENED] - now[CLOSED] == is_open.total()


def test_series_limit_preserves_totals() -> None:
    totals = TrafficTotals(3)
    for number in range(10):
        totals.add(SeriesCounts(between(f"p{number}", "db"), opened=1, sent=5))
    snapshot = totals.snapshot()
    assert len(snapshot[OPENED]) == 4
    assert value(totals, OPENED) == 10
    assert value(totals, "istio_tcp_received_bytes") == 50
    overflow = dict(snapshot[OPENED])[("source", *("overflow",) * (len(LABELS) - 1))]
    assert overflow == 7
    assert totals.overflowed == 14


def test_existing_series_counts_at_the_limit() -> None:
    totals = TrafficTotals(1)
    for key in (A, B, A):
        totals.add(SeriesCounts(key, opened=1))
    assert value(totals, OPENED, A) == 2


def test_malformed_label_sets_count_as_overflow() -> None:
    totals = TrafficTotals(10)
    totals.add(SeriesCounts(("source",), opened=1))
    totals.add(SeriesCounts((*A[:-1], "x" * 1000), opened=1))
    totals.add(SeriesCounts(A, opened=-5))
    assert value(totals, OPENED) == 2
    assert value(totals, OPENED, A) == 0


def test_series_of_deleted_workload_expire_after_ttl() -> None:
    totals = TrafficTotals(10)
    totals.add(SeriesCounts(A, opened=1, closed=1))
    totals.add(SeriesCounts(B, opened=1, closed=1))
    existing = {labels.workload_labels(pod(name)) for name in ("a", "b", "db")}
    without_a = existing - {labels.workload_labels(pod("a"))}
    totals.expire(existing, 0, 60)
    totals.expire(without_a, 10, 60)
    assert value(totals, OPENED) == 2
    totals.expire(existing, 50, 60)  # it came back
    totals.expire(without_a, 60, 60)
    totals.expire(without_a, 119, 60)
    assert value(totals, OPENED, A) == 1
    totals.expire(without_a, 120, 60)
    assert value(totals, OPENED, A) == 0
    assert value(totals, OPENED, B) == 1
    assert totals.expired == 2


def test_series_with_open_connections_do_not_expire() -> None:
    totals = TrafficTotals(10)
    totals.add(SeriesCounts(A, opened=1))
    totals.expire(set(), 0, 0)
    assert value(totals, OPENED, A) == 1
    totals.add(SeriesCounts(labels.with_flag(A, "DENY"), closed=1))
    totals.expire(set(), 1, 0)
    assert totals.snapshot()[OPENED] == []


def test_expired_series_free_their_slot() -> None:
    totals = TrafficTotals(1)
    totals.add(SeriesCounts(A, opened=1, closed=1))
    totals.expire(set(), 0, 0)
    totals.add(SeriesCounts(B, opened=1))
    assert value(totals, OPENED, B) == 1


def test_unknown_and_overflow_series_never_expire() -> None:
    totals = TrafficTotals(1)
    unknown = labels.connection_labels(labels.Reporter.DESTINATION, None, None)
    for key in (unknown, A):
        totals.add(SeriesCounts(key, opened=1, closed=1))
    totals.expire(set(), 0, 0)
    assert value(totals, OPENED) == 2
