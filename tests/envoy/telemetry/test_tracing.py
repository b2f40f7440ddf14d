# SPDX-License-Identifier: Apache-2.0
"""Spans that a real Envoy sends to a collector (OTLP over gRPC)."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from tests.envoy.telemetry.running import IDENTITY, PEER, running, telemetry
from tests.support.waiting import wait_until
from ztunnel.l7.inputs import Settings
from ztunnel.l7.names import PeerState
from ztunnel.l7.telemetry.tracing import collector_cluster

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


class Collector(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Records the spans that it receives."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Any]] = []  # service name and span
        self._server = grpc.server(futures.ThreadPoolExecutor(1))
        self._server.add_generic_rpc_handlers((self,))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def service(self, call: Any) -> Any:
        """The handler of a method."""
        if call.method != METHOD:
            return None
        return grpc.unary_unary_rpc_method_handler(
            self._export,
            request_deserializer=trace_service_pb2.ExportTraceServiceRequest.FromString,
            response_serializer=lambda response: response.SerializeToString(),
        )

    def stop(self) -> None:
        """Stop the server."""
        self._server.stop(None).wait()

    def _export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            names = {each.key: each.value.string_value for each in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans += [(names["service.name"], span) for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Iterator[Collector]:
    found = Collector()
    yield found
    found.stop()


def settings(collector: Collector, sampling: float = 100.0) -> Settings:
    return Settings(otlp_endpoint=f"127.0.0.1:{collector.port}", trace_sampling_percent=sampling)


def attributes(span: Any) -> dict[str, str]:
    return {each.key: each.value.string_value for each in span.attributes}


def test_sampled_request_is_a_span_with_the_callers_identity(
    tmp_path: Any, collector: Collector
) -> None:
    with running(tmp_path, settings=settings(collector)) as waypoint:
        answer = waypoint.get("/traced")
        wait_until(lambda: bool(collector.spans), lambda: "no span", 15)
        ((service, span), *_) = collector.spans
        assert service == "waypoint.default"
        assert attributes(span)["source.principal"] == IDENTITY
        assert attributes(span)["http.status_code"] == "200"
        # the backend continues the trace
        assert span.trace_id.hex() in answer.received["headers"]["traceparent"]


def test_request_continues_its_own_trace(tmp_path: Any, collector: Collector) -> None:
    with running(tmp_path, settings=settings(collector, 0)) as waypoint:
        waypoint.get(headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
        wait_until(lambda: bool(collector.spans), lambda: "no span", 15)
        spans = [span for _, span in collector.spans]
        assert {span.trace_id.hex() for span in spans} == {TRACE}
        assert PARENT in {span.parent_span_id.hex() for span in spans}


def test_request_without_trace_joins_the_tunnels(tmp_path: Any, collector: Collector) -> None:
    peer = PEER | {PeerState.TRACEPARENT: f"00-{TRACE}-{PARENT}-01"}
    with running(tmp_path, settings=settings(collector, 0)) as waypoint:
        waypoint.get(peer=peer)
        wait_until(lambda: bool(collector.spans), lambda: "no span", 15)
        spans = [span for _, span in collector.spans]
        assert {span.trace_id.hex() for span in spans} == {TRACE}
        assert PARENT in {span.parent_span_id.hex() for span in spans}


def test_request_keeps_its_trace_although_the_tunnel_has_one(
    tmp_path: Any, collector: Collector
) -> None:
    peer = PEER | {PeerState.TRACEPARENT: f"00-{'1' * 32}-{'2' * 16}-01"}
    with running(tmp_path, settings=settings(collector, 0)) as waypoint:
        waypoint.get(headers={"traceparent": f"00-{TRACE}-{PARENT}-01"}, peer=peer)
        wait_until(lambda: bool(collector.spans), lambda: "no span", 15)
        assert {span.trace_id.hex() for _, span in collector.spans} == {TRACE}


def test_sampling_of_telemetry_overrides_that_of_the_mesh(
    tmp_path: Any, collector: Collector
) -> None:
    spec = {
        "tracing": [
            {
                "randomSamplingPercentage": 100,
                "customTags": {"team": {"literal": {"value": "a"}}},
            }
        ]
    }
    with running(tmp_path, telemetry(spec), settings=settings(collector, 0)) as waypoint:
        waypoint.get()
        wait_until(lambda: bool(collector.spans), lambda: "no span", 15)
        assert attributes(collector.spans[0][1])["team"] == "a"


def test_disabled_reporting_leaves_headers_alone(tmp_path: Any, collector: Collector) -> None:
    spec = {"tracing": [{"disableSpanReporting": True}]}
    with running(tmp_path, telemetry(spec), settings=settings(collector)) as waypoint:
        assert "traceparent" not in waypoint.get().received["headers"]
        assert collector.spans == []


def test_telemetry_selects_a_provider_of_mesh_config(tmp_path: Any, collector: Collector) -> None:
    target = {"service": "127.0.0.1", "port": collector.port}
    provider = {"name": "otel", "opentelemetry": target}
    sampling = {"tracing": {"sampling": 100}}
    mesh = {"extensionProviders": [provider], "defaultConfig": sampling}
    spec = {"tracing": [{"providers": [{"name": "otel"}]}]}
    given = Settings(mesh_config=mesh)
    with running(tmp_path, telemetry(spec), settings=given) as waypoint:
        waypoint.get()
        wait_until(lambda: bool(collector.spans), lambda: "no span", 15)


def test_collector_may_be_a_name_or_an_address() -> None:
    assert collector_cluster("p", "otel.obs.svc:4317")["type"] == "STRICT_DNS"
    assert collector_cluster("p", "[fd00::1]:4317")["type"] == "STATIC"
    for endpoint in ("otel", "otel:0", ":4317", "otel:x"):
        with pytest.raises(ValueError, match="host:port"):
            collector_cluster("p", endpoint)
