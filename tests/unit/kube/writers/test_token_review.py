# SPDX-License-Identifier: Apache-2.0
"""A token is accepted only if the API server confirms every property."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.scripted_api import Response, ScriptedClient, failure, reply
from ztunnel.kube.writers.token_review import TokenReviewer

USER = {"username": "system:serviceaccount:ztunnel-system:ztunnel-admin"}
GOOD: dict[str, Any] = {"authenticated": True, "audiences": ["here"], "user": USER}


def refusal(answer: Response | Exception) -> str:
    return TokenReviewer(ScriptedClient(answer), "ztunnel-system").refusal("token", "here")


def test_confirmed_token_is_accepted() -> None:
    client = ScriptedClient(reply({"status": GOOD}))
    assert TokenReviewer(client, "ztunnel-system").refusal("token", "here") == ""
    (request,) = client.requests
    assert request["body"]["spec"] == {"token": "token", "audiences": ["here"]}


@pytest.mark.parametrize(
    "answer",
    [
        failure(403, "forbidden"),
        failure(500),
        OSError("down"),
        Response(200),
        Response(200, [b"not JSON"]),
        reply({}),
        reply({"status": None}),
        reply({"status": {}}),
        reply({"status": {**GOOD, "authenticated": False}}),
        reply({"status": {**GOOD, "authenticated": "true"}}),
        reply({"status": {**GOOD, "audiences": None}}),
        reply({"status": {**GOOD, "audiences": ["elsewhere"]}}),
        reply({"status": {**GOOD, "user": None}}),
        reply({"status": {**GOOD, "user": {"username": "system:admin"}}}),
        reply({"status": {**GOOD, "user": {}}}),
    ],
    ids=str,
)
def test_everything_else_is_rejected(answer: Response | Exception) -> None:
    assert refusal(answer) != ""
