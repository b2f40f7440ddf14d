# SPDX-License-Identifier: Apache-2.0
"""The exposition, parsed by prometheus_client's own parsers."""

from __future__ import annotations

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_text
from prometheus_client.parser import text_string_to_metric_families as classic_text

from tests.unit.telemetry.builders import between, pod
from ztunnel.ipc.messages import SeriesCounts
from ztunnel.telemetry import labels
from ztunnel.telemetry.exposition import OWN_METRICS, Snapshot, render
from ztunnel.telemetry.node_counters import METRICS, TrafficTotals
from ztunnel.telemetry.same_node_rtt import BUCKETS_S, RttTable

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parsed(snapshot: Snapshot, accept: str = "") -> Samples:
    body, content_type = render(snapshot, accept)
    parse = openmetrics_text if "openmetrics" in content_type else classic_text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse(body.decode())
        for sample in family.samples
    }


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
def test_both_formats_have_the_same_samples(accept: str) -> None:
    totals = TrafficTotals(10)
    label_set = between('we"ird\\name\n', "db")
    totals.add(SeriesCounts(label_set, opened=3, sent=1 << 50))
    snapshot = Snapshot(totals.snapshot())
    snapshot.set("ztunnel_pods", 4, "captured")
    found = parsed(snapshot, accept)
    mine = tuple(sorted(zip(labels.LABELS, label_set, strict=True)))
    assert found["istio_tcp_connections_opened_total", mine] == 3
    assert found["istio_tcp_received_bytes_total", mine] == 1 << 50
    assert ("istio_tcp_sent_bytes_total", mine) not in found
    assert found["ztunnel_pods", (("state", "captured"),)] == 4


def test_metric_names_do_not_end_in_total() -> None:
    assert not [name for name in (*METRICS, *OWN_METRICS) if name.endswith("_total")]


def test_round_trip_times_are_exposed_as_histogram() -> None:
    paths = RttTable(10)
    pair = labels.workload_labels(pod("a")), labels.workload_labels(pod("db"))
    for rtt in (20e-6, 30e-6, 30e-6, 7.0, 0):
        paths.add(pair, rtt, 2)
    found = parsed(Snapshot({}, paths.snapshot()))
    name = "ztunnel_same_node_rtt_seconds"
    ends = {
        "source_workload": "a",
        "source_workload_namespace": "shop",
        "destination_workload": "db",
        "destination_workload_namespace": "shop",
    }

    def at(suffix: str, **more: str) -> float:
        return found[name + suffix, tuple(sorted({**ends, **more}.items()))]

    assert at("_bucket", le=str(BUCKETS_S[0])) == 1
    assert at("_bucket", le=str(BUCKETS_S[1])) == 3
    assert at("_bucket", le=str(BUCKETS_S[-1])) == 3
    assert at("_bucket", le="+Inf") == at("_count") == 4
    assert at("_sum") == pytest.approx(7 + 80e-6)
    assert paths.snapshot()[0][1].retransmits == 10


def test_pairs_are_limited_and_expire() -> None:
    paths = RttTable(2)
    for name in ("a", "b", "c"):
        paths.add((labels.workload_labels(pod(name)), labels.workload_labels(pod("db"))), 1e-3, 1)
    assert len(paths.snapshot()) == 3
    assert sum(path.retransmits for _, path in paths.snapshot()) == 3
    paths.expire({labels.workload_labels(pod("a")), labels.workload_labels(pod("db"))}, 0, 0)
    assert {key[0] for key, _ in paths.snapshot()} == {"a", "overflow"}


def test_sample_with_wrong_labels_is_rejected() -> None:
    with pytest.raises(ValueError, match="has the labels"):
        Snapshot().set("ztunnel_pods", 1)
