# SPDX-License-Identifier: Apache-2.0
"""A gRPC server of h2c that answers every unary call with its name and the call's metadata."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import grpc


class GrpcBackend(grpc.GenericRpcHandler):  # type: ignore[misc]
    """A server on 127.0.0.1 at `port`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._server = grpc.server(ThreadPoolExecutor(4))
        self._server.add_generic_rpc_handlers((self,))
        self.port: int = self._server.add_insecure_port("127.0.0.1:0")

    def service(self, handler_call_details: Any) -> Any:
        """Serve any method."""

        def answer(_: bytes, context: Any) -> bytes:
            metadata = {k: v for k, v in context.invocation_metadata() if isinstance(v, str)}
            found = {"backend": self.name, "method": handler_call_details.method}
            return json.dumps({**found, "headers": metadata}).encode()

        return grpc.unary_unary_rpc_method_handler(answer)

    def __enter__(self) -> GrpcBackend:
        self._server.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.stop(0)
