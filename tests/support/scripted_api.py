# SPDX-License-Identifier: Apache-2.0
"""A `kubernetes.client.ApiClient` that answers from a script and fails on further requests."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Response:
    """What `urllib3.HTTPResponse` offers to the client. An exception in `chunks` is raised."""

    status: int
    chunks: list[bytes | Exception] = field(default_factory=list)
    reason: str = "reason"
    connection: None = None

    @property
    def response(self) -> Response:
        return self

    def read(self) -> bytes:
        return b"".join(self.stream())

    def stream(self, **_: Any) -> Iterator[bytes]:
        for chunk in self.chunks:
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk

    def close(self) -> None: ...
    def release_conn(self) -> None: ...


def reply(body: Any, status: int = 200) -> Response:
    """A JSON response."""
    return Response(status, [json.dumps(body).encode()])


def failure(status: int, message: str = "") -> Response:
    """A Status object, as the API server sends with an error."""
    return reply({"kind": "Status", "message": message}, status)


class ScriptedClient:
    """Answers requests in order; `finished` is set by the first request after the last response."""

    def __init__(self, *script: Response | Exception) -> None:
        self._script = list(script)
        self.requests: list[dict[str, Any]] = []
        self.timeouts: list[tuple[float, float]] = []
        self.finished = threading.Event()
        self.on_finished: Callable[[], None] = lambda: None

    def param_serialize(self, method: str, path: str, **options: Any) -> tuple[Any, ...]:
        self.requests.append({"method": method, "path": path, **options})
        return ()

    def call_api(self, *_: Any, _request_timeout: tuple[float, float]) -> Response:
        self.timeouts.append(_request_timeout)
        if not self._script:
            self.on_finished()
            self.finished.set()
            raise OSError("end of the script")
        answer = self._script.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def queries(self) -> list[dict[str, str]]:
        """The query parameters of each request."""
        return [dict(request["query_params"]) for request in self.requests]
