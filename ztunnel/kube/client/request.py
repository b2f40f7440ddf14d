# SPDX-License-Identifier: Apache-2.0
"""Requests to the Kubernetes API: one function, one error, one set of timeouts.

The kubernetes package supplies connections, TLS and credentials. Requests and responses are plain
JSON: the package's generated calls build a pydantic model of every field, and importing the models
of core/v1 alone costs 20 MB. Calls block; they are safe from any thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from socket import SHUT_RDWR
from typing import Any

import msgspec

CONNECT_TIMEOUT_S = 5.0
TIMEOUT_S = 15.0  # for each read of a response

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"

# Of lists and watches without spec, status and data (kubernetes.io, "Metadata-only fetches")
_PARTIAL = "application/json;as={};g=meta.k8s.io;v=v1"
METADATA_LIST = _PARTIAL.format("PartialObjectMetadataList")
METADATA = _PARTIAL.format("PartialObjectMetadata")

UNAUTHORIZED, FORBIDDEN, NOT_FOUND, CONFLICT, GONE = 401, 403, 404, 409, 410

_MAX_LINE_CHARS = 320

Json = Any  # a decoded response


class ApiError(Exception):
    """A request failed. `status` is the HTTP status, 0 if there was no response.

    `message` is the server's message or the cause of the failure. The exception's text is one line
    of limited length, for logs and status.
    """

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        self.message = message
        line = " ".join(message.split())[:_MAX_LINE_CHARS]
        super().__init__(f"{status}: {line}" if status else line)


def is_namespace_ending(error: ApiError) -> bool:
    """Whether an object cannot be created because its namespace is being deleted.

    The status is Forbidden, as for a missing right; its cause is NamespaceTerminating.
    """
    return error.status == FORBIDDEN and "because it is being terminated" in error.message


class _Status(msgspec.Struct):
    message: str


@dataclass(frozen=True)
class Request:
    """`body` is encoded as JSON; `timeout_s` limits each read of the response."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: Json = None
    content_type: str = JSON
    timeout_s: float = TIMEOUT_S
    accept: str = JSON


def send(
    client: Any,
    method: str,
    path: str,
    *,
    query: Mapping[str, str] | None = None,
    body: Json = None,
    content_type: str = JSON,
    timeout_s: float = TIMEOUT_S,
) -> Json:
    """Send a request and decode the response; None if it is empty. Raises ApiError."""
    request = Request(method, path, query or {}, body, content_type, timeout_s)
    text = send_raw(client, request)
    try:
        return msgspec.json.decode(text) if text else None
    except msgspec.DecodeError as error:
        raise ApiError(0, f"{path}: response is not JSON: {error}") from error


def send_raw(client: Any, request: Request) -> bytes:
    """Send a request; returns the body as received. Raises ApiError."""
    from urllib3.exceptions import HTTPError  # noqa: PLC0415  13 MB, only where it is used

    response = _open(client, request)
    try:
        return bytes(response.read())
    except (HTTPError, OSError) as error:
        raise ApiError(0, cause_of(error)) from error
    finally:
        response.release_conn()


class LineStream:
    """The lines of a response that does not end by itself: a watch. Raises ApiError.

    Iterated in one thread; `shutdown` may be called from any.
    """

    def __init__(self, client: Any, request: Request) -> None:
        self._response = _open(client, request)

    def __iter__(self) -> Iterator[bytes]:
        from urllib3.exceptions import HTTPError  # noqa: PLC0415

        pending = bytearray()
        try:
            for segment in self._response.stream(amt=None, decode_content=False):
                *lines, rest = segment.split(b"\n")
                for line in lines:
                    pending += line
                    if pending:
                        yield bytes(pending)
                    pending.clear()
                pending += rest
        except (HTTPError, OSError) as error:
            raise ApiError(0, cause_of(error)) from error

    def shutdown(self) -> None:
        """End the iteration; the reader closes the connection."""
        sock = getattr(self._response.connection, "sock", None)
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        self._response.close()
        self._response.release_conn()


def _open(client: Any, request: Request) -> Any:
    """A successful response (urllib3's), not read yet."""
    from urllib3.exceptions import HTTPError  # noqa: PLC0415

    headers = {"Accept": request.accept}
    if request.body is not None:
        headers["Content-Type"] = request.content_type
    serialized = client.param_serialize(
        request.method,
        request.path,
        query_params=list(request.query.items()),
        header_params=headers,
        body=request.body,
        auth_settings=["BearerToken"],
    )
    timeouts = min(CONNECT_TIMEOUT_S, request.timeout_s), request.timeout_s
    try:
        answer = client.call_api(*serialized, _request_timeout=timeouts)
        if 200 <= answer.status < 300:
            return answer.response
        text = answer.read()
    except (HTTPError, OSError) as error:
        raise ApiError(0, cause_of(error)) from error
    raise ApiError(answer.status, _message_of(text, str(answer.reason)))


def _message_of(text: bytes, reason: str) -> str:
    """The message of a Status object; the HTTP reason if the body is something else."""
    try:
        return msgspec.json.decode(text, type=_Status).message
    except msgspec.DecodeError:
        return reason


def cause_of(error: Exception) -> str:
    """The cause of a transport failure in one line; urllib3 hides it in `reason`."""
    cause = getattr(error, "reason", None)
    return " ".join(f"{type(error).__name__}: {cause or error}".split())
