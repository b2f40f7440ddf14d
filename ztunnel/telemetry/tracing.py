# SPDX-License-Identifier: Apache-2.0
"""A span for each tunnelled connection, for an OpenTelemetry collector. An extra, off by default.

    outbound span (CLIENT, the ids that our traceparent carried)
      └─ inbound span at the other node (SERVER, its parent is what that traceparent names)

Spans are made when connections end, and sent in batches by a thread of the SDK. What a peer says in
its traceparent is used only if it is one, and counts for nothing else. Imported only when wanted.
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

QUEUE = 4096  # spans that may wait; what exceeds them is dropped
FLUSH = 2000  # milliseconds for what waits at the end
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_SAMPLED = 1


class _Ids(IdGenerator):
    """Those that went out in a traceparent already, else random ones."""

    def __init__(self) -> None:
        self.told: tuple[int, int] | None = None
        self._random = RandomIdGenerator()

    def generate_trace_id(self) -> int:
        return self.told[0] if self.told else self._random.generate_trace_id()

    def generate_span_id(self) -> int:
        return self.told[1] if self.told else self._random.generate_span_id()


class SpanMaker:
    """Implements `report.Tracer`. One per worker, made in its process."""

    def __init__(self, processor: SpanProcessor, node: str) -> None:
        resource = Resource.create({"service.name": "ztunnel", "host.name": node})
        self._ids = _Ids()
        self._provider = TracerProvider(
            resource=resource, id_generator=self._ids, shutdown_on_exit=False
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("ztunnel")

    @classmethod
    def to(cls, url: str, node: str) -> SpanMaker:
        """One that sends to an OTLP/HTTP collector."""
        exporter = OTLPSpanExporter(endpoint=url, timeout=5)
        return cls(BatchSpanProcessor(exporter, max_queue_size=QUEUE), node)

    def connection_closed(
        self,
        trace: str,
        *,
        outbound: bool,
        started: float,
        fields: Mapping[str, object],
        error: str,
    ) -> None:
        """Make the span of a connection that is over, unless its traceparent says not to."""
        told = parse(trace)
        if told is None or not told.trace_flags & _SAMPLED:
            return
        span = self._span(told, outbound=outbound, started=started)
        for name, value in fields.items():
            if isinstance(value, str | int) and value != "":
                span.set_attribute(name, value)
        if error:
            span.set_status(StatusCode.ERROR, error)
        span.end()

    def close(self) -> None:
        """Send what waits, for a moment at most."""
        self._provider.force_flush(FLUSH)
        self._provider.shutdown()

    def _span(self, told: SpanContext, *, outbound: bool, started: float) -> trace.Span:
        """Ours has the very ids we sent; the peer's are our parent."""
        self._ids.told = (told.trace_id, told.span_id) if outbound else None
        parent = None if outbound else trace.set_span_in_context(NonRecordingSpan(told))
        try:
            return self._tracer.start_span(
                "CONNECT",
                context=parent or trace.set_span_in_context(trace.INVALID_SPAN),
                kind=SpanKind.CLIENT if outbound else SpanKind.SERVER,
                start_time=int(started * 1e9),
            )
        finally:
            self._ids.told = None


def parse(traceparent: str) -> SpanContext | None:
    """W3C Trace Context, version 00; None when it is none."""
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
