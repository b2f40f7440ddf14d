# SPDX-License-Identifier: Apache-2.0
"""A worker's counters: Istio's labels, each count flushed once, limits while no agent reads."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.telemetry.builders import pod
from ztunnel.ipc.messages import SeriesCounts
from ztunnel.mesh.model import Service
from ztunnel.telemetry import labels
from ztunnel.telemetry import worker_counters as counts_module
from ztunnel.telemetry.labels import LABELS, Reporter
from ztunnel.telemetry.response_flags import Flag, Reason, flag_of, with_prefix
from ztunnel.telemetry.worker_counters import ConnectionPeers, TrafficCounters

WEB = pod("web-5f-x", "web", app="web", version="v2")
DB = pod("db-0", "db", **{"service.istio.io/canonical-name": "data"})
SERVICE = Service(namespace="shop", name="db", hostname="db.shop.svc.cluster.local")


def test_labels_match_istio() -> None:
    both = ConnectionPeers(WEB, DB, SERVICE, (WEB.identity, DB.identity))
    counts = TrafficCounters()
    counts.count_opened(counts.series(Reporter.SOURCE, both))
    (row,) = counts.flush()
    assert dict(zip(LABELS, row.labels, strict=True)) == {
        "reporter": "source",
        "source_workload": "web",
        "source_workload_namespace": "shop",
        "source_canonical_service": "web",
        "source_canonical_revision": "v2",
        "source_app": "web",
        "source_version": "v2",
        "source_cluster": "Kubernetes",
        "source_principal": "spiffe://cluster.local/ns/shop/sa/web",
        "destination_workload": "db",
        "destination_workload_namespace": "shop",
        "destination_canonical_service": "data",
        "destination_canonical_revision": "latest",
        "destination_app": "data",
        "destination_version": "latest",
        "destination_cluster": "Kubernetes",
        "destination_principal": "spiffe://cluster.local/ns/shop/sa/db",
        "destination_service": "db.shop.svc.cluster.local",
        "destination_service_name": "db",
        "destination_service_namespace": "shop",
        "request_protocol": "tcp",
        "connection_security_policy": "mutual_tls",
        "response_flags": "-",
    }


def test_missing_values_are_unknown() -> None:
    counts = TrafficCounters()
    counts.count_opened(counts.series(Reporter.DESTINATION, ConnectionPeers()))
    (row,) = counts.flush()
    found = dict(zip(LABELS, row.labels, strict=True))
    assert {found.pop("reporter"), found.pop("request_protocol"), found.pop("response_flags")} == {
        "destination",
        "tcp",
        "-",
    }
    assert set(found.values()) == {"unknown"}


def test_replicas_of_one_owner_share_a_series() -> None:
    counts = TrafficCounters()
    first = counts.series(Reporter.SOURCE, ConnectionPeers(WEB, DB))
    other = msgspec.structs.replace(WEB, name="web-5f-y", uid="other", pod_uid="other")
    assert counts.series(Reporter.SOURCE, ConnectionPeers(other, DB)) is first
    assert counts.series(Reporter.DESTINATION, ConnectionPeers(other, DB)) is not first


def test_changed_workload_counts_with_new_labels() -> None:
    counts = TrafficCounters()
    counts.count_opened(counts.series(Reporter.SOURCE, ConnectionPeers(WEB, DB)))
    newer = msgspec.structs.replace(WEB, labels={"app": "web", "version": "v3"})
    counts.count_opened(counts.series(Reporter.SOURCE, ConnectionPeers(newer, DB)))
    versions = {row.labels[LABELS.index("source_version")] for row in counts.flush()}
    assert versions == {"v2", "v3"}


def test_only_failures_have_response_flag() -> None:
    counts = TrafficCounters()
    series = counts.series(Reporter.SOURCE, ConnectionPeers(WEB, DB))
    counts.count_opened(series)
    counts.count_closed(series, Flag.TLS_FAILURE, failed=True)
    counts.count_refused(series, Flag.DENY)
    rows = {row.labels[-1]: row for row in counts.flush()}
    assert rows["-"] == SeriesCounts(series.labels, opened=1)
    assert (rows["TLS_FAILURE"].closed, rows["TLS_FAILURE"].failed) == (1, 1)
    assert (rows["DENY"].closed, rows["DENY"].failed) == (0, 1)


Steps = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["open", "close", "move", "take"])))


@given(Steps)
def test_flushed_counts_add_up(steps: list[tuple[int, str]]) -> None:
    counts, told_rows = TrafficCounters(), []
    series = [counts.series(Reporter.SOURCE, ConnectionPeers(pod(f"p{n}"), DB)) for n in range(4)]
    for number, what in steps:
        match what:
            case "open":
                counts.count_opened(series[number])
            case "close":
                counts.count_closed(series[number], Flag.NONE, failed=False)
            case "move":
                counts.count_bytes(series[number], 10, 3)
            case "take":
                told_rows += counts.flush()
    told_rows += counts.flush()
    assert counts.flush() == []
    for number, one in enumerate(series):
        mine = [row for row in told_rows if row.labels == one.labels]
        done = [what for which, what in steps if which == number]
        assert sum(row.opened for row in mine) == done.count("open")
        assert sum(row.closed for row in mine) == done.count("close")
        assert sum(row.sent for row in mine) == 10 * done.count("move")
        assert sum(row.received for row in mine) == 3 * done.count("move")


def test_unreported_series_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts_module, "MAX_SERIES", 50)
    monkeypatch.setattr(counts_module, "MAX_CACHED_PEERS", 20)
    counts = TrafficCounters()
    for number in range(500):
        counts.count_opened(counts.series(Reporter.SOURCE, ConnectionPeers(pod(f"p{number}"), DB)))
    rows = counts.flush()
    assert len(rows) == 51
    assert sum(row.opened for row in rows) == 500
    overflow = next(row for row in rows if row.labels[1] == labels.OVERFLOW)
    assert overflow.opened == 450


@pytest.mark.parametrize(
    ("reason", "established", "flag"),
    [
        ("", True, Flag.NONE),
        ("application: connection reset", True, Flag.NONE),
        ("connect to 10.0.0.1:80: connection refused", False, Flag.CONNECT),
        (Reason("certificate: expired", Flag.TLS_FAILURE), False, Flag.TLS_FAILURE),
        (Reason("policy", Flag.DENY), True, Flag.DENY),
        (with_prefix(Reason("policy", Flag.DENY), "401: "), False, Flag.DENY),
        (with_prefix("no such port", "503: "), False, Flag.CONNECT),
    ],
)
def test_reason_determines_response_flag(reason: str, established: bool, flag: Flag) -> None:
    assert flag_of(reason, established=established) is flag
