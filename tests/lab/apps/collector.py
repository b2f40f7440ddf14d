# SPDX-License-Identifier: Apache-2.0
"""An OTLP/HTTP collector that prints the names of known span attributes, one line per request.

usage: collector.py PORT
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        request = ExportTraceServiceRequest.FromString(body)
        spans = [
            {each.key: each.value.string_value for each in span.attributes}
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        print(json.dumps(spans), flush=True)
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Suppress the request log."""


if __name__ == "__main__":
    server = HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    print("collecting", flush=True)
    server.serve_forever()
