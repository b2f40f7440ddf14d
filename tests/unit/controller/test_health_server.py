# SPDX-License-Identifier: Apache-2.0
"""What the kubelet is told of a signer."""

from __future__ import annotations

import http.client

import pytest

from ztunnel.controller.health_server import Health


def _ask(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def test_ready_follows_the_api_server_and_live_does_not() -> None:
    answers = {"ready": True}
    with Health(0, lambda: answers["ready"]) as health:
        port = health.port
        assert (_ask(port, "/healthz/ready"), _ask(port, "/healthz/live")) == (200, 200)
        answers["ready"] = False
        assert (_ask(port, "/healthz/ready"), _ask(port, "/healthz/live")) == (503, 200)
        assert _ask(port, "/") == 404
    with pytest.raises(ConnectionRefusedError):
        _ask(port, "/healthz/live")
