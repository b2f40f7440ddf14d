# SPDX-License-Identifier: Apache-2.0
"""Runs the Envoy of the venv with the bootstrap of a gateway pod: it gets the rest by delta ADS."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.support.ports import free_ports
from tests.support.waiting import wait_until
from tests.support.waypoint.envoy import ENVOY, START_TIMEOUT_S, RunningEnvoy
from ztunnel.l7.config import GatewayConfig, Json
from ztunnel.l7.deployment.bootstrap import BootstrapSettings, bootstrap
from ztunnel.l7.names import WAYPOINT_LISTENER, TypeUrl


@contextmanager
def dynamic_envoy(
    directory: Path, xds_port: int, gateway: str = "default/waypoint", port: int = 0
) -> Iterator[RunningEnvoy]:
    """Run Envoy until the end of the context. `port`: of the waypoint listener, see `at_port`."""
    admin, readiness = free_ports(2)
    config = bootstrap(BootstrapSettings(gateway, "test", "127.0.0.1"))
    text = json.dumps(config)
    for number, replacement in ((15010, xds_port), (15000, admin), (15021, readiness)):
        text = text.replace(f'"port_value": {number}', f'"port_value": {replacement}')
    path = directory / "bootstrap.json"
    path.write_text(text)
    log = directory / "envoy.log"
    command = [str(ENVOY), "-c", str(path), "--disable-hot-restart", "--concurrency", "1"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--log-level", "warning", "--drain-time-s", "1"],
            stdout=output,
            stderr=output,
        )
    envoy = RunningEnvoy(port, admin, log, process)
    try:
        wait_until(lambda: _answers(envoy), log.read_text, START_TIMEOUT_S)
        yield envoy
    finally:
        process.kill()
        process.wait(10)


def _answers(envoy: RunningEnvoy) -> bool:
    assert envoy.process.poll() is None, envoy.log.read_text()[-6000:]
    try:
        return bool(envoy.admin_get("/ready"))
    except OSError:
        return False


def at_port(config: GatewayConfig, port: int) -> Mapping[TypeUrl, dict[str, Json]]:
    """The resources with the waypoint listener at another port: tests share a network namespace."""
    if WAYPOINT_LISTENER not in config.resources[TypeUrl.LISTENER]:
        return config.resources
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    listener = {**config.resources[TypeUrl.LISTENER][WAYPOINT_LISTENER], "address": address}
    return {**config.resources, TypeUrl.LISTENER: {WAYPOINT_LISTENER: listener}}
