# SPDX-License-Identifier: Apache-2.0
"""What the kubelet is told of a signer."""

from __future__ import annotations

import http.client
import socket

import pytest

from ztunnel.signer.health import Health


def _ask(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_ready_follows_the_api_server_and_live_does_not() -> None:
    answers = {"ready": True}
    port = _free_port()
    with Health(port, lambda: answers["ready"]):
        assert (_ask(port, "/healthz/ready"), _ask(port, "/healthz/live")) == (200, 200)
        answers["ready"] = False
        assert (_ask(port, "/healthz/ready"), _ask(port, "/healthz/live")) == (503, 200)
        assert _ask(port, "/") == 404
    with pytest.raises(ConnectionRefusedError):
        _ask(port, "/healthz/live")


def test_port_zero_listens_nowhere() -> None:
    with Health(0, lambda: True) as health:
        assert health is not None
