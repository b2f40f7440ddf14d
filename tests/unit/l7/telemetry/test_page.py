# SPDX-License-Identifier: Apache-2.0
"""The page that Prometheus scrapes from a gateway pod."""

from __future__ import annotations

from ztunnel.l7.telemetry.page import prometheus_page


def test_only_istio_metrics_lose_envoys_prefix() -> None:
    page = b'# TYPE envoy_istio_requests_total counter\nenvoy_istio_a{} 1\n\nenvoy_b{x=""} 2\n'
    expected = b'# TYPE istio_requests_total counter\nistio_a{} 1\n\nenvoy_b{x=""} 2\n'
    assert prometheus_page(page) == expected


def test_empty_labels_of_istio_metrics_become_unknown() -> None:
    page = b'envoy_istio_requests_total{source_app="",grpc_response_status="",x="a="} 1'
    expected = b'istio_requests_total{source_app="unknown",grpc_response_status="",x="a="} 1'
    assert prometheus_page(page) == expected


def test_quotes_inside_values_are_not_changed() -> None:
    page = b'envoy_istio_requests_total{x="=\\"\\""} 1'
    assert prometheus_page(page) == b'istio_requests_total{x="=\\"\\""} 1'
