# SPDX-License-Identifier: Apache-2.0
"""Bypassed connections in Istio's metrics, and the metrics of the kernel."""

from __future__ import annotations

import msgspec
import pytest

from tests.unit.telemetry.builders import pod
from ztunnel.agent.traffic import same_node_metrics
from ztunnel.agent.traffic.same_node_metrics import SameNodeMetrics
from ztunnel.datapath.bpf.layout import CloseReason
from ztunnel.datapath.bpf.ring_buffer import ConnectionEvent
from ztunnel.mesh.model import SocketAddress
from ztunnel.telemetry.labels import LABELS
from ztunnel.telemetry.node_counters import METRICS, TrafficTotals
from ztunnel.telemetry.same_node_rtt import RttTable

WEB, DB = pod("web"), pod("db")
EVENT = ConnectionEvent(
    source=SocketAddress("10.0.0.1", 40000),
    destination=SocketAddress("10.0.0.2", 80),
    netns_cookie=1,
    destination_cookie=2,
    owner=3,
    duration=1.0,
    sent=100,
    received=2000,
    srtt_us=40,
    retransmits=1,
    close_reason=CloseReason.ORDERLY,
)


def counted(close_reason: CloseReason, *, denied: bool = False) -> dict[tuple[str, str, str], int]:
    """Values by metric, reporter and flag."""
    totals = TrafficTotals(10)
    counts = SameNodeMetrics(totals, RttTable(10))
    counts.add(msgspec.structs.replace(EVENT, close_reason=close_reason), WEB, DB, denied=denied)
    counts.flush()
    found = {}
    for name, series in totals.snapshot().items():
        for label_set, value in series:
            labels = dict(zip(LABELS, label_set, strict=True))
            assert labels["source_principal"] == WEB.identity
            assert labels["destination_principal"] == DB.identity
            assert labels["connection_security_policy"] == "unknown"
            field = METRICS[name][1]
            found[field, labels["reporter"], labels["response_flags"]] = value
    return found


@pytest.mark.parametrize("reporter", ["source", "destination"])
@pytest.mark.parametrize(
    ("close_reason", "denied", "flag", "failed"),
    [
        (CloseReason.ORDERLY, False, "-", 0),
        (CloseReason.RESET, False, "-", 0),
        (CloseReason.RESET, True, "DENY", 0),
        (CloseReason.REFUSED, False, "CONNECT", 1),
    ],
)
def test_connection_counts_for_both_reporters(
    reporter: str, close_reason: CloseReason, denied: bool, flag: str, failed: int
) -> None:
    found = counted(close_reason, denied=denied)
    assert found["opened", reporter, "-"] == found["closed", reporter, flag] == 1
    assert found.get(("failed", reporter, flag), 0) == failed
    assert found["sent", reporter, "-"] == 100
    assert found["received", reporter, "-"] == 2000
    assert {key[0] for key in found if key[2] not in ("-", flag)} == set()


def test_rtt_and_retransmits_are_recorded_per_pair() -> None:
    paths = RttTable(10)
    counts = SameNodeMetrics(TrafficTotals(10), paths)
    for _ in range(3):
        counts.add(EVENT, WEB, DB)
    ((labels, path),) = paths.snapshot()
    assert labels == ("web", "shop", "db", "shop")
    assert (sum(path.counts), path.retransmits) == (3, 3)
    assert path.total == pytest.approx(120e-6)


def test_unknown_workloads_have_unknown_labels() -> None:
    totals = TrafficTotals(10)
    counts = SameNodeMetrics(totals, RttTable(10))
    counts.add(EVENT, None, None)
    counts.flush()
    (label_set, value), _ = totals.snapshot()["istio_tcp_connections_opened"]
    assert (label_set[1], label_set[9], value) == ("unknown", "unknown", 1)


def test_each_pod_is_polled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even with more pairs than the cache holds."""
    monkeypatch.setattr(same_node_metrics, "MAX_PAIRS", 2)
    totals = TrafficTotals(20)
    counts = SameNodeMetrics(totals, RttTable(10))
    pods = [pod(f"pod{number}") for number in range(3)]
    for _ in range(2):
        for one in pods:
            for close_reason in (CloseReason.ORDERLY, CloseReason.REFUSED):
                counts.add(msgspec.structs.replace(EVENT, close_reason=close_reason), one, DB)
        counts.flush()
    for name, value in (("opened", 4), ("closed", 2)):
        series = totals.snapshot()[f"istio_tcp_connections_{name}"]
        assert {found for _, found in series} == {value}
    failed = totals.snapshot()["istio_tcp_connections_failed"]
    assert sum(found for _, found in failed) == 12
