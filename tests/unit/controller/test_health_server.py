# SPDX-License-Identifier: Apache-2.0
"""Probe endpoints of the controller."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading

import pytest

from tests.support.silent_connections import silent_connections
from tests.support.waiting import wait_until
from ztunnel.controller import health_server
from ztunnel.controller.health_server import MAX_CONNECTIONS, MAX_REQUEST_BYTES, HealthServer


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


@pytest.mark.parametrize("number_of_pods", [1, 150])
def test_silent_connections_neither_block_probes_nor_occupy_threads(number_of_pods: int) -> None:
    pods = [f"127.0.1.{number + 1}" for number in range(number_of_pods)]
    with HealthServer(0, lambda: True, ["127.0.0.1"]) as health:
        threads = threading.active_count()
        with silent_connections(health.port, pods, per_second=400) as silent:
            wait_until(lambda: len(silent.opened) > 2 * MAX_CONNECTIONS, "connections")
            assert [_get(health.port, "/healthz/live") for _ in range(50)] == [200] * 50
            assert threading.active_count() == threads + 1  # of the client
            assert len(health._open) <= MAX_CONNECTIONS


def test_request_is_limited_in_time_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_server, "REQUEST_TIMEOUT_S", 0.2)
    with HealthServer(0, lambda: True) as health:
        for sent in (b"", b"GET /" + b"a" * 2 * MAX_REQUEST_BYTES):
            with socket.create_connection(("127.0.0.1", health.port), timeout=10) as sock:
                sock.sendall(sent)
                with contextlib.suppress(ConnectionResetError):  # it sent what was not read
                    assert sock.recv(1) == b""


def test_health_server_serves_ipv6() -> None:
    with HealthServer(0, lambda: True) as health:
        connection = http.client.HTTPConnection("::1", health.port, timeout=20)
        connection.request("GET", "/healthz/live")
        assert connection.getresponse().status == 200
        connection.close()
