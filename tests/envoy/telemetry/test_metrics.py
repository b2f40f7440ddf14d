# SPDX-License-Identifier: Apache-2.0
"""Istio's metrics, as a real Envoy counts them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.envoy.telemetry.running import IDENTITY, running, telemetry
from ztunnel.l7.telemetry import metrics
from ztunnel.l7.telemetry.bootstrap import HISTOGRAM_BUCKETS

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
REQUEST_LABELS = {
    "reporter": "waypoint",
    "source_workload": "client",
    "source_canonical_service": "client-app",
    "source_canonical_revision": "v7",
    "source_workload_namespace": "shop",
    "source_principal": IDENTITY,
    "source_app": "client-app",
    "source_version": "v7",
    "source_cluster": "Kubernetes",
    "destination_workload": "web-v2",
    "destination_workload_namespace": "shop",
    "destination_principal": "spiffe://cluster.local/ns/shop/sa/default",
    "destination_app": "web",
    "destination_version": "v2",
    "destination_service": "web.shop.svc.cluster.local",
    "destination_canonical_service": "web",
    "destination_canonical_revision": "v2",
    "destination_service_name": "web",
    "destination_service_namespace": "shop",
    "destination_cluster": "Kubernetes",
    "request_protocol": "http",
    "response_code": "200",
    "grpc_response_status": "",
    "response_flags": "-",
    "connection_security_policy": "mutual_tls",
}


def test_request_has_istio_labels_of_caller_and_backend(tmp_path: Path) -> None:
    with running(tmp_path) as waypoint:
        assert waypoint.get("/a").status == waypoint.get("/b").status == 200
        assert waypoint.series("istio_requests_total") == [(REQUEST_LABELS, 2)]
        for name in ("request_duration_milliseconds", "request_bytes", "response_bytes"):
            assert waypoint.series(f"istio_{name}_count") == [(REQUEST_LABELS, 2)]


def test_histograms_have_istio_buckets(tmp_path: Path) -> None:
    with running(tmp_path) as waypoint:
        waypoint.get()
        for metric in ("request_duration_milliseconds", "request_bytes", "response_bytes"):
            series = waypoint.series(f"istio_{metric}_bucket")
            assert [float(labels["le"]) for labels, _ in series[:-1]] == list(HISTOGRAM_BUCKETS)


def test_request_without_backend_counts_for_the_service_of_the_chain(tmp_path: Path) -> None:
    with running(tmp_path, ready=False) as waypoint:
        assert waypoint.get().status == 503
        ((labels, value),) = waypoint.series("istio_requests_total")
        assert (labels["response_code"], labels["response_flags"], value) == ("503", "UH", 1)
        assert labels["destination_service"] == "web.shop.svc.cluster.local"
        assert labels["destination_workload"] == labels["destination_principal"] == "unknown"


def test_caller_outside_the_mesh_is_unknown(tmp_path: Path) -> None:
    with running(tmp_path) as waypoint:
        waypoint.get(peer={})
        ((labels, _),) = waypoint.series("istio_requests_total")
        assert labels["source_workload"] == labels["source_principal"] == "unknown"
        assert labels["connection_security_policy"] == "none"


def test_grpc_requests_have_protocol_and_status(tmp_path: Path) -> None:
    headers = {"content-type": "application/grpc", "grpc-status": "5"}
    with running(tmp_path, respond=lambda _: (200, headers)) as waypoint:
        waypoint.get("/s/M", headers={"content-type": "application/grpc"}, method="POST")
        ((labels, _),) = waypoint.series("istio_requests_total")
        assert (labels["request_protocol"], labels["grpc_response_status"]) == ("grpc", "5")


def _respond_as_asked(asked: dict[str, Any]) -> tuple[int, dict[str, str]]:
    headers = asked["headers"]
    status = {"grpc-status": headers["x-grpc"]} if "x-grpc" in headers else {}
    return int(headers.get("x-code", 200)), status


def test_client_cannot_create_series_without_bound(tmp_path: Path) -> None:
    """Codes, statuses, methods, paths and headers that the client chooses: bounded labels."""
    with running(tmp_path, respond=_respond_as_asked) as waypoint:
        session, count = waypoint.session(), 0
        codes = [{"x-code": str(code)} for code in range(200, 600) if code not in (204, 205, 304)]
        statuses = [{"x-grpc": str(status)} for status in range(60)]
        for headers in (*codes, *statuses):
            count += 1
            agent = {"user-agent": f"agent-{count}", "content-type": f"application/grpc+{count}"}
            session.request(METHODS[count % 5], f"/{count}", headers=headers | agent)
            session.getresponse().read()
        series = waypoint.series("istio_requests_total")
        seen = {labels["response_code"] for labels, _ in series}
        assert {"404", "418", "429", "503", "other"} <= seen
        assert "499" not in seen
        assert len(seen) < 100
        grpc = {labels["grpc_response_status"] for labels, _ in series}
        assert {"invalid", *map(str, range(17))} <= grpc | {"", "2"}
        assert len(grpc) <= 19
        assert sum(value for _, value in series) == count


def test_series_beyond_the_limit_are_counted_as_overflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "MAX_SERIES", 10)
    headers = {"caller": {"value": "request.headers['x-caller']"}}
    spec = {"metrics": [{"overrides": [{"tagOverrides": headers}]}]}
    with running(tmp_path, telemetry(spec)) as waypoint:
        session, limit = waypoint.session(), 4 * metrics.MAX_SERIES
        for number in range(limit + 50):
            session.request("GET", "/", headers={"x-caller": str(number)})
            session.getresponse().read()
        assert len(waypoint.series("istio_requests_total")) == limit
        ((_, overflow),) = waypoint.series("envoy_server_stats_overflow_counter_total")
        assert overflow == 50


def test_unused_series_are_evicted(tmp_path: Path) -> None:
    with running(tmp_path, eviction_s=1) as waypoint:
        waypoint.get()
        assert len(waypoint.series("istio_requests_total")) == 1
        deadline = time.monotonic() + 10
        while waypoint.series("istio_requests_total"):
            assert time.monotonic() < deadline


def test_telemetry_disables_a_metric_and_changes_tags(tmp_path: Path) -> None:
    overrides = [
        {"match": {"metric": "REQUEST_DURATION"}, "disabled": True},
        {
            "match": {"metric": "REQUEST_COUNT", "mode": "SERVER"},
            "tagOverrides": {
                "method": {"value": "request.method"},
                "source_cluster": {"operation": "REMOVE"},
            },
        },
    ]
    spec = {"metrics": [{"overrides": overrides}]}
    with running(tmp_path, telemetry(spec)) as waypoint:
        waypoint.get(method="POST")
        ((labels, _),) = waypoint.series("istio_requests_total")
        assert labels["method"] == "POST"
        assert "source_cluster" not in labels
        assert waypoint.series("istio_request_duration_milliseconds_count") == []
        ((labels, _),) = waypoint.series("istio_request_bytes_count")
        assert "method" not in labels


def test_tcp_connections_and_bytes_are_counted(tmp_path: Path) -> None:
    with running(tmp_path, protocol="tcp") as waypoint:
        session = waypoint.session()
        session.request("GET", "/")
        session.getresponse().read()
        ((labels, opened),) = waypoint.series("istio_tcp_connections_opened_total")
        assert opened == 1
        assert labels["source_principal"] == IDENTITY
        assert labels["request_protocol"] == "tcp"
        assert waypoint.series("istio_tcp_connections_closed_total") == []
        session.close()
        deadline = time.monotonic() + 5
        while not waypoint.series("istio_tcp_connections_closed_total"):
            assert time.monotonic() < deadline
        ((labels, sent),) = waypoint.series("istio_tcp_sent_bytes_total")
        assert sent > 100
        assert labels["destination_workload"] == "web-v2"
        ((_, received),) = waypoint.series("istio_tcp_received_bytes_total")
        assert received > 30
