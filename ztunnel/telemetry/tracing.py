# SPDX-License-Identifier: Apache-2.0
"""Exports a span for each tunneled connection to an OpenTelemetry collector. Optional extra.

    outbound span (CLIENT, with the ids sent in the traceparent)
      └─ inbound span on the other node (SERVER, its parent is the received traceparent)

Spans are created when connections close, and a thread of the SDK sends them in batches. A peer's
traceparent is validated and used for nothing else. This module is imported only if enabled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags

MAX_QUEUED_SPANS = 4096  # further ones are dropped
FLUSH_TIMEOUT_MS = 2000
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_SAMPLED = 1


class _IdGenerator(IdGenerator):
    """Generates the ids that a traceparent already carried, otherwise random ones."""

    def __init__(self) -> None:
        self.sent_ids: tuple[int, int] | None = None  # of the trace and of the span
        self._random = RandomIdGenerator()

    def generate_trace_id(self) -> int:
        return self.sent_ids[0] if self.sent_ids else self._random.generate_trace_id()

    def generate_span_id(self) -> int:
        return self.sent_ids[1] if self.sent_ids else self._random.generate_span_id()


class ConnectionTracer:
    """Implements `conntrack.tracker.Tracer`. Create it in the worker process: it has a thread."""

    def __init__(self, processor: SpanProcessor, node: str) -> None:
        resource = Resource.create({"service.name": "ztunnel", "host.name": node})
        self._ids = _IdGenerator()
        self._provider = TracerProvider(
            resource=resource, id_generator=self._ids, shutdown_on_exit=False
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("ztunnel")

    @classmethod
    def to(cls, url: str, node: str) -> ConnectionTracer:
        """Export to an OTLP/HTTP collector."""
        exporter = OTLPSpanExporter(endpoint=url, timeout=5)
        return cls(BatchSpanProcessor(exporter, max_queue_size=MAX_QUEUED_SPANS), node)

    def connection_closed(
        self,
        trace: str,
        *,
        outbound: bool,
        started: float,
        fields: Mapping[str, object],
        error: str,
    ) -> None:
        """Create the span of a closed connection, if its traceparent is sampled."""
        context = parse(trace)
        if context is None or not context.trace_flags & _SAMPLED:
            return
        span = self._start_span(context, outbound=outbound, started=started)
        for name, value in fields.items():
            if isinstance(value, str | int) and value != "":
                span.set_attribute(name, value)
        if error:
            span.set_status(StatusCode.ERROR, error)
        span.end()

    def close(self) -> None:
        """Send the queued spans, for at most FLUSH_TIMEOUT_MS."""
        self._provider.force_flush(FLUSH_TIMEOUT_MS)
        self._provider.shutdown()

    def _start_span(self, context: SpanContext, *, outbound: bool, started: float) -> trace.Span:
        """An outbound span has the ids that were sent; an inbound one has them as its parent."""
        self._ids.sent_ids = (context.trace_id, context.span_id) if outbound else None
        parent = None if outbound else trace.set_span_in_context(NonRecordingSpan(context))
        try:
            return self._tracer.start_span(
                "CONNECT",
                context=parent or trace.set_span_in_context(trace.INVALID_SPAN),
                kind=SpanKind.CLIENT if outbound else SpanKind.SERVER,
                start_time=int(started * 1e9),
            )
        finally:
            self._ids.sent_ids = None


def parse(traceparent: str) -> SpanContext | None:
    """Parse a traceparent (W3C Trace Context, version 00); None if it is invalid."""
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None:
        return None
    context = SpanContext(
        trace_id=int(match[1], 16),
        span_id=int(match[2], 16),
        is_remote=True,
        trace_flags=TraceFlags(int(match[3], 16)),
    )
    return context if context.is_valid else None
