# SPDX-License-Identifier: Apache-2.0
"""Istio's metrics of an ingress gateway, with a real Envoy."""

from __future__ import annotations

import time
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.support.ingress.client import fetch
from tests.support.ingress.envoy import running_gateway
from tests.support.waypoint.backend import Backend
from tests.support.waypoint.world import World
from ztunnel.l7.names import TypeUrl
from ztunnel.l7.telemetry import bootstrap
from ztunnel.l7.telemetry.page import prometheus_page

OBJECTS = """
kind: Gateway
metadata: {name: edge, namespace: default}
spec:
  gatewayClassName: ztunnel
  listeners: [{name: http, port: 80, protocol: HTTP}]
---
kind: HTTPRoute
metadata: {name: web, namespace: default}
spec:
  parentRefs: [{name: edge}]
  hostnames: [web.example.com]
  rules: [{backendRefs: [{name: web, port: 80}]}]
"""


def test_telemetry_selects_the_gateways_pods(tmp_path: Path) -> None:
    world = World().apply(OBJECTS)
    for name, label in (("mine", "edge"), ("others", "none")):
        labels = {"gateway.networking.k8s.io/gateway-name": label}
        provider = [{"name": "envoy"}]
        spec = {
            "selector": {"matchLabels": labels},
            "accessLogging": [{"providers": provider, "filter": {"expression": f"'{name}' == ''"}}],
        }
        metadata = {"name": name, "namespace": "default"}
        world.add({"kind": "Telemetry", "metadata": metadata, "spec": spec})
    text = str(world.compile("default/edge").resources[TypeUrl.LISTENER])
    assert "mine" in text
    assert "others" not in text


def test_gateway_reports_as_source_with_the_labels_of_the_backend(tmp_path: Path) -> None:
    world = World()
    extra = {**bootstrap.fields(1800), "stats_flush_interval": "0.2s"}
    with Backend("web") as backend:
        world.service("web", backends=[backend.port], waypoint="", labels={"app": "shop"})
        config = world.apply(OBJECTS).compile("default/edge")
        with running_gateway(config, tmp_path, extra) as found:
            assert fetch(found.ports[80], "web.example.com").status == 200
            assert fetch(found.ports[80], "other.example.com").status == 404
            time.sleep(0.6)
            page = prometheus_page(found.envoy.admin_get("/stats/prometheus").encode()).decode()
    samples = [
        sample.labels
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == "istio_requests_total"
    ]
    ok, missing = sorted(samples, key=lambda each: each["response_code"])
    assert ok["reporter"] == missing["reporter"] == "source"
    assert ok["source_workload"] == "edge-ztunnel"
    assert ok["source_workload_namespace"] == "default"
    assert ok["destination_service"] == "web.default.svc.cluster.local"
    assert ok["destination_app"] == "shop"
    assert ok["connection_security_policy"] == "unknown"
    assert (missing["response_code"], missing["destination_service"]) == ("404", "unknown")
