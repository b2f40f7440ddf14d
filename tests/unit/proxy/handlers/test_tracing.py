# SPDX-License-Identifier: Apache-2.0
"""Spans of real connections, sent to an OTLP/HTTP collector."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.support.waiting import wait_until
from tests.unit.proxy.conftest import Pair
from tests.unit.proxy.harness import DEADLINE
from ztunnel.telemetry.tracing import ConnectionTracer, parse


class Collector:
    """Collects what is posted to /v1/traces."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.requests.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """No log."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/traces"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def spans(self) -> dict[str, Span]:
        """Spans by the name of their node."""
        found: dict[str, Span] = {}
        for request in self.requests:
            for resource in request.resource_spans:
                node = next(
                    each.value.string_value
                    for each in resource.resource.attributes
                    if each.key == "host.name"
                )
                for scope in resource.scope_spans:
                    found.update((node, span) for span in scope.spans)
        return found

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(DEADLINE)


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def test_both_proxies_of_a_connection_share_one_trace(pair: Pair, collector: Collector) -> None:
    makers = {node.name: ConnectionTracer.to(collector.url, node.name) for node in (pair.a, pair.b)}
    for node in (pair.a, pair.b):
        node.context.tracker.tracer = makers[node.name]
    client, server = pair.a.dial(), pair.app.accept()
    client.sendall(b"traced")
    assert server.recv(6) == b"traced"
    client.close()
    server.close()
    wait_until(lambda: not pair.a.context.tracker.live() and not pair.b.context.tracker.live())
    for maker in makers.values():
        maker.close()
    spans = collector.spans()
    ours, theirs = spans["a"], spans["b"]
    assert ours.trace_id == theirs.trace_id
    assert theirs.parent_span_id == ours.span_id
    assert not ours.parent_span_id
    assert (ours.kind, theirs.kind) == (Span.SPAN_KIND_CLIENT, Span.SPAN_KIND_SERVER)
    assert ours.start_time_unix_nano <= ours.end_time_unix_nano
    attributes = {each.key: each.value for each in ours.attributes}
    assert attributes["src.identity"].string_value == pair.a.me.identity
    assert attributes["bytes_sent"].int_value == 6
    assert ours.status.code == Status.STATUS_CODE_UNSET


def test_failed_connection_marks_span_as_error(pair: Pair, collector: Collector) -> None:
    maker = pair.a.context.tracker.tracer = ConnectionTracer.to(collector.url, "a")
    pair.app.close()
    with pytest.raises(ConnectionResetError):
        pair.a.dial().recv(1)
    wait_until(lambda: not pair.a.context.tracker.live())
    maker.close()
    span = collector.spans()["a"]
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert "answered 503" in span.status.message


def test_unsampled_trace_creates_no_span_at_the_peer(pair: Pair, collector: Collector) -> None:
    maker = pair.b.context.tracker.tracer = ConnectionTracer.to(collector.url, "b")
    client, server = pair.a.dial(), pair.app.accept()
    client.close()
    server.close()
    wait_until(lambda: not pair.b.context.tracker.live())
    maker.close()
    assert collector.requests == []


def test_without_a_collector_nothing_is_recorded(pair: Pair) -> None:
    client, server = pair.a.dial(), pair.app.accept()
    (record,) = pair.a.context.tracker.live()
    assert record.trace.endswith("-00")
    client.close()
    server.close()


@given(st.text(max_size=80) | st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}"))
def test_any_traceparent_is_parsed_or_rejected(text: str) -> None:
    context = parse(text)
    assert context is None or context.is_valid


def test_traceparent_with_zero_ids_is_rejected() -> None:
    assert parse(f"00-{'0' * 32}-{'1' * 16}-01") is None
    assert parse(f"00-{'1' * 32}-{'0' * 16}-01") is None
    assert parse(f"00-{'1' * 32}-{'2' * 16}-01") is not None
