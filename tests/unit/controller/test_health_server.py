# SPDX-License-Identifier: Apache-2.0
"""Probe endpoints of the controller."""

from __future__ import annotations

import http.client

import pytest

from ztunnel.controller.health_server import HealthServer


def _get(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def test_readiness_follows_api_server_and_liveness_does_not() -> None:
    state = {"ready": True}
    with HealthServer(0, lambda: state["ready"]) as health:
        port = health.port
        assert (_get(port, "/healthz/ready"), _get(port, "/healthz/live")) == (200, 200)
        state["ready"] = False
        assert (_get(port, "/healthz/ready"), _get(port, "/healthz/live")) == (503, 200)
        assert _get(port, "/") == 404
    with pytest.raises(ConnectionRefusedError):
        _get(port, "/healthz/live")
