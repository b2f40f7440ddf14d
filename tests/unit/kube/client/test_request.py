# SPDX-License-Identifier: Apache-2.0
"""API requests: decoding, errors and timeouts."""

from __future__ import annotations

import pytest
from urllib3.exceptions import MaxRetryError, ProtocolError

from tests.support.scripted_api import Response, ScriptedClient, failure, reply
from ztunnel.kube.client.request import APPLY_PATCH, ApiError, send


def error_of(*script: Response | Exception) -> ApiError:
    with pytest.raises(ApiError) as raised:
        send(ScriptedClient(*script), "GET", "/pods")
    return raised.value


def test_response_is_decoded() -> None:
    assert send(ScriptedClient(reply({"a": [1]})), "GET", "/pods") == {"a": [1]}
    assert send(ScriptedClient(Response(200)), "DELETE", "/pods") is None


def test_request_has_query_body_and_credentials() -> None:
    client = ScriptedClient(reply({}))
    send(client, "PATCH", "/pods", query={"a": "b"}, body={"c": 1}, content_type=APPLY_PATCH)
    (request,) = client.requests
    assert (request["method"], request["path"], request["body"]) == ("PATCH", "/pods", {"c": 1})
    assert request["query_params"] == [("a", "b")]
    assert request["header_params"]["Content-Type"] == APPLY_PATCH
    assert request["auth_settings"] == ["BearerToken"]


def test_connect_timeout_does_not_exceed_request_timeout() -> None:
    client = ScriptedClient(reply({}), reply({}))
    send(client, "GET", "/pods")
    send(client, "GET", "/pods", timeout_s=2)
    assert client.timeouts == [(5, 15), (2, 2)]


def test_error_has_status_and_message_of_server() -> None:
    error = error_of(failure(403, 'pods is forbidden:\n User "a" cannot list'))
    assert error.status == 403
    assert error.message == 'pods is forbidden:\n User "a" cannot list'
    assert str(error) == '403: pods is forbidden: User "a" cannot list'


def test_error_without_status_object_has_http_reason() -> None:
    assert str(error_of(Response(502, [b"<html>"], reason="Bad Gateway"))) == "502: Bad Gateway"


def test_error_text_is_limited() -> None:
    assert len(str(error_of(failure(400, "x" * 5000)))) < 400


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (ConnectionRefusedError("refused"), "ConnectionRefusedError: refused"),
        (MaxRetryError(None, "/", OSError("refused")), "MaxRetryError: refused"),  # type: ignore[arg-type]
        (Response(200, [ProtocolError("cut")]), "ProtocolError: cut"),
        (Response(200, [b"not JSON"]), "/pods: response is not JSON"),
    ],
    ids=str,
)
def test_failure_without_response_has_status_zero(answer: Response | Exception, text: str) -> None:
    error = error_of(answer)
    assert error.status == 0
    assert str(error).startswith(text)
