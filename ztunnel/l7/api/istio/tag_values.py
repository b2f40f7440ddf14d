# SPDX-License-Identifier: Apache-2.0
"""Translates the value of a tag override, a CEL expression, to a format string of Envoy.

Supported are texts and the attributes below; envoyproxy.io, "Attributes" and "Access logging".
"""

from __future__ import annotations

import re

MAX_VALUE_BYTES = 256
_ATTRIBUTES = {
    "request.host": "%REQ(:authority)%",
    "request.method": "%REQ(:method)%",
    "request.path": "%REQ(:path)%",
    "request.url_path": "%PATH(NQ)%",
    "request.scheme": "%REQ(:scheme)%",
    "request.useragent": "%REQ(user-agent)%",
    "request.protocol": "%PROTOCOL%",
    "response.code": "%RESPONSE_CODE%",
    "response.code_details": "%RESPONSE_CODE_DETAILS%",
    "response.flags": "%RESPONSE_FLAGS%",
    "response.grpc_status": "%GRPC_STATUS_NUMBER%",
    "destination.port": "%DOWNSTREAM_LOCAL_PORT%",
    "source.address": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
    "connection.requested_server_name": "%REQUESTED_SERVER_NAME%",
    "upstream.address": "%UPSTREAM_HOST%",
    "xds.cluster_name": "%UPSTREAM_CLUSTER_RAW%",
    "xds.route_name": "%ROUTE_NAME%",
}
_TEXT = re.compile(r"\"([^\"\\\n]*)\"|'([^'\\\n]*)'")
_HEADER = re.compile(r"(request|response)\.headers\[(?:\"([A-Za-z0-9_-]+)\"|'([A-Za-z0-9_-]+)')\]")
_COMMANDS = {"request": "REQ", "response": "RESP"}


class TagValueError(ValueError):
    """The expression is not one of the supported ones."""


def tag_value_format(expression: str) -> str:
    """Return the format string. Raises TagValueError."""
    text = expression.strip()
    if len(text.encode()) > MAX_VALUE_BYTES:
        raise TagValueError(f"the value is longer than {MAX_VALUE_BYTES} bytes")
    if match := _TEXT.fullmatch(text):
        return (match[1] or match[2] or "").replace("%", "%%")
    if match := _HEADER.fullmatch(text):
        return f"%{_COMMANDS[match[1]]}({match[2] or match[3]})%"
    if text in _ATTRIBUTES:
        return _ATTRIBUTES[text]
    known = ", ".join(_ATTRIBUTES)
    raise TagValueError(
        f"{text[:64]!r} is not supported; supported are texts, request.headers['name'], "
        f"response.headers['name'], {known}"
    )
