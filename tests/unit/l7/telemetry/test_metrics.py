# SPDX-License-Identifier: Apache-2.0
"""Istio's metrics, as a real Envoy counts them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.envoy_process import EnvoyProcess, require_envoy
from tests.support.http_backends import Backend, Client
from tests.support.ports import free_ports
from tests.unit.l7.telemetry import waypoint
from ztunnel.l7.inputs import Inputs
from ztunnel.l7.telemetry import metrics
from ztunnel.l7.telemetry.bootstrap import HISTOGRAM_BUCKETS

require_envoy()

Series = dict[str, str]
REQUEST_LABELS = {
    "reporter": "waypoint",
    "source_workload": "client",
    "source_canonical_service": "client-app",
    "source_canonical_revision": "v7",
    "source_workload_namespace": "shop",
    "source_principal": waypoint.IDENTITY,
    "source_app": "client-app",
    "source_version": "v7",
    "source_cluster": "Kubernetes",
    "destination_workload": "web-v2",
    "destination_workload_namespace": "shop",
    "destination_principal": "spiffe://cluster.local/ns/shop/sa/web",
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


class Running:
    def __init__(self, envoy: EnvoyProcess, backend: Backend, port: int) -> None:
        self.envoy, self.backend, self.port = envoy, backend, port

    def series(self, metric: str) -> list[tuple[Series, float]]:
        """The series of a metric, under the name that Prometheus sees."""
        time.sleep(0.6)  # histograms are current after the next flush
        page = self.envoy.admin("/stats/prometheus").replace("envoy_istio_", "istio_")
        return [
            (sample.labels, sample.value)
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name == metric
        ]


@contextmanager
def running(tmp_path: Path, given: Inputs, eviction_s: int = 1800) -> Iterator[Running]:
    (port,) = free_ports(1)
    with Backend("v2") as backend:
        bootstrap = waypoint.http_bootstrap(given, port, backend.port, eviction_s)
        with EnvoyProcess(bootstrap, tmp_path) as envoy:
            yield Running(envoy, backend, port)


def test_request_has_istio_labels_of_caller_and_backend(tmp_path: Path) -> None:
    with running(tmp_path, waypoint.inputs()) as run:
        client = Client(run.port, waypoint.TLVS)
        assert client.get("/a")[0] == client.get("/b")[0] == 200
        assert run.series("istio_requests_total") == [(REQUEST_LABELS, 2)]
        for histogram in ("duration_milliseconds", "bytes"):
            assert run.series(f"istio_request_{histogram}_count") == [(REQUEST_LABELS, 2)]
        assert run.series("istio_response_bytes_count") == [(REQUEST_LABELS, 2)]


def test_histograms_have_istio_buckets(tmp_path: Path) -> None:
    with running(tmp_path, waypoint.inputs()) as run:
        Client(run.port, waypoint.TLVS).get("/a")
        for metric in ("request_duration_milliseconds", "request_bytes", "response_bytes"):
            buckets = [labels["le"] for labels, _ in run.series(f"istio_{metric}_bucket")]
            assert [float(one) for one in buckets[:-1]] == list(HISTOGRAM_BUCKETS)


def test_request_without_backend_counts_for_the_service_of_the_chain(tmp_path: Path) -> None:
    with running(tmp_path, waypoint.inputs()) as run:
        assert Client(run.port, waypoint.TLVS).get("/denied")[0] == 403
        ((labels, value),) = run.series("istio_requests_total")
        assert (labels["response_code"], value) == ("403", 1)
        assert labels["destination_service"] == "web.shop.svc.cluster.local"
        assert labels["destination_workload"] == labels["destination_principal"] == "unknown"


def test_caller_outside_the_mesh_is_unknown(tmp_path: Path) -> None:
    with running(tmp_path, waypoint.inputs()) as run:
        Client(run.port).get("/")
        ((labels, _),) = run.series("istio_requests_total")
        assert labels["source_workload"] == labels["source_principal"] == "unknown"
        assert labels["connection_security_policy"] == "none"


def test_grpc_requests_have_protocol_and_status(tmp_path: Path) -> None:
    with running(tmp_path, waypoint.inputs()) as run:
        run.backend.headers = {"content-type": "application/grpc", "grpc-status": "5"}
        headers = {"content-type": "application/grpc"}
        Client(run.port, waypoint.TLVS).get("/s/M", headers, "POST")
        ((labels, _),) = run.series("istio_requests_total")
        assert (labels["request_protocol"], labels["grpc_response_status"]) == ("grpc", "5")


def test_client_cannot_create_series_without_bound(tmp_path: Path) -> None:
    """Codes, statuses, methods, paths and headers that the client chooses: bounded labels."""
    with running(tmp_path, waypoint.inputs()) as run:
        client = Client(run.port, waypoint.TLVS)
        for code in range(200, 600):
            if code not in (204, 205, 304):  # no body
                client.get(f"/status/{code}", {"user-agent": f"agent-{code}"}, "POST")
        for status in range(60):
            run.backend.headers = {"grpc-status": str(status)}
            client.get(f"/{status}", {"content-type": f"application/grpc+{status}"})
        series = run.series("istio_requests_total")
        codes = {labels["response_code"] for labels, _ in series}
        statuses = {labels["grpc_response_status"] for labels, _ in series}
        assert {"404", "418", "2xx", "4xx", "5xx"} <= codes
        assert "499" not in codes
        assert len(codes) < 70
        assert statuses == {"", "invalid", *map(str, range(17))}
        assert sum(value for _, value in series) == 397 + 60


def test_series_beyond_the_limit_are_counted_as_overflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "MAX_SERIES", 10)
    headers = {"caller": {"value": "request.headers['x-caller']"}}
    spec = {"metrics": [{"overrides": [{"tagOverrides": headers}]}]}
    given = waypoint.inputs(waypoint.telemetry(spec))
    with running(tmp_path, given) as run:
        client = Client(run.port, waypoint.TLVS)
        limit = 4 * metrics.MAX_SERIES
        for number in range(limit + 50):
            assert client.get("/", {"x-caller": str(number)})[0] == 200
        assert len(run.series("istio_requests_total")) == limit
        ((_, overflow),) = run.series("envoy_server_stats_overflow_counter_total")
        assert overflow == 50


def test_unused_series_are_evicted(tmp_path: Path) -> None:
    with running(tmp_path, waypoint.inputs(), eviction_s=1) as run:
        Client(run.port, waypoint.TLVS).get("/")
        assert len(run.series("istio_requests_total")) == 1
        deadline = time.monotonic() + 10
        while run.series("istio_requests_total") and time.monotonic() < deadline:
            time.sleep(0.2)
        assert run.series("istio_requests_total") == []


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
    given = waypoint.inputs(waypoint.telemetry({"metrics": [{"overrides": overrides}]}))
    with running(tmp_path, given) as run:
        Client(run.port, waypoint.TLVS).get("/", method="POST")
        ((labels, _),) = run.series("istio_requests_total")
        assert labels["method"] == "POST"
        assert "source_cluster" not in labels
        assert run.series("istio_request_duration_milliseconds_count") == []
        ((labels, _),) = run.series("istio_request_bytes_count")
        assert "method" not in labels


def test_tcp_connections_and_bytes_are_counted(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    given = waypoint.inputs()
    with (
        Backend("v2") as backend,
        EnvoyProcess(waypoint.tcp_bootstrap(given, port, backend.port), tmp_path) as envoy,
    ):
        run = Running(envoy, backend, port)
        client = Client(port, waypoint.TLVS)
        client.get("/")
        ((labels, opened),) = run.series("istio_tcp_connections_opened_total")
        assert opened == 1
        assert labels["source_principal"] == waypoint.IDENTITY
        assert labels["request_protocol"] == "tcp"
        assert run.series("istio_tcp_connections_closed_total") == []
        client.close()
        deadline = time.monotonic() + 5
        while not run.series("istio_tcp_connections_closed_total"):
            assert time.monotonic() < deadline
        ((labels, sent),) = run.series("istio_tcp_sent_bytes_total")
        assert sent > 100
        assert labels["destination_workload"] == "web-v2"
        ((_, received),) = run.series("istio_tcp_received_bytes_total")
        assert received > 50
