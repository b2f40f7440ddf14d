# SPDX-License-Identifier: Apache-2.0
"""Runs the Envoy of the venv with the resources of a GatewayConfig as static configuration."""

from __future__ import annotations

import copy
import http.client
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.ports import free_ports
from tests.support.waiting import wait_until
from ztunnel.l7.config import GatewayConfig
from ztunnel.l7.deployment.bootstrap import RUNTIME
from ztunnel.l7.names import WAYPOINT_LISTENER, TypeUrl

ENVOY = Path(sys.executable).parent / "envoy"
START_TIMEOUT_S = 30.0


@dataclass
class RunningEnvoy:
    """A running Envoy. `port` is the waypoint listener's on 127.0.0.1, `admin` the admin port."""

    port: int
    admin: int
    log: Path
    process: subprocess.Popen[bytes]

    def admin_get(self, path: str, method: str = "GET") -> str:
        """Return the body of an admin endpoint."""
        connection = http.client.HTTPConnection("127.0.0.1", self.admin, timeout=10)
        try:
            connection.request(method, path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def stat(self, name: str) -> int:
        """Return a counter or gauge, 0 if it does not exist."""
        pattern = name.replace(".", "[.]").replace("|", "[|]")
        text = self.admin_get(f"/stats?filter=^{pattern}$")
        return int(text.rpartition(":")[2]) if text.strip() else 0


def static_bootstrap(
    config: GatewayConfig, port: int, admin: int, extra: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return a bootstrap with the same resources inline. `extra` merges into the top level."""
    resources = inline_resources(config)
    (listener,) = (e for e in resources["listeners"] if e["name"] == WAYPOINT_LISTENER)
    listener["address"]["socket_address"]["port_value"] = port
    return bootstrap_of(resources | {"listeners": [listener]}, admin, extra)


def inline_resources(config: GatewayConfig) -> dict[str, list[Any]]:
    """Return `static_resources` with all resources: routes, endpoints and secrets are inline."""
    resources = copy.deepcopy(config.resources)
    listeners = list(resources[TypeUrl.LISTENER].values())
    for listener in listeners:
        for chain in listener.get("filter_chains", ()):
            for each in chain["filters"]:
                _inline_routes(each["typed_config"], resources[TypeUrl.ROUTE])
    clusters = resources[TypeUrl.CLUSTER]
    for name, cluster in clusters.items():
        _inline_endpoints(cluster, resources[TypeUrl.ENDPOINT].get(name))
    secrets = [
        secret
        for url, named in resources.items()
        if url.endswith(".Secret")
        for secret in named.values()
    ]
    found = {"listeners": listeners, "clusters": list(clusters.values()), "secrets": secrets}
    _without_sds(found)
    return found


def bootstrap_of(
    resources: dict[str, list[Any]], admin: int, extra: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return a bootstrap with static resources. `extra` merges into the top level."""
    return {
        "node": {"id": "test", "cluster": "test"},
        "layered_runtime": {"layers": [{"name": "static", "static_layer": RUNTIME}]},
        "static_resources": resources,
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin}}},
        **(extra or {}),
    }


@contextmanager
def running_envoy(
    config: GatewayConfig, directory: Path, extra: dict[str, Any] | None = None
) -> Iterator[RunningEnvoy]:
    """Run Envoy until the end of the context. Raises AssertionError with its log if it exits."""
    port, admin = free_ports(2)
    with started_envoy(static_bootstrap(config, port, admin, extra), directory, port) as envoy:
        yield envoy


@contextmanager
def started_envoy(config: dict[str, Any], directory: Path, port: int = 0) -> Iterator[RunningEnvoy]:
    """Run Envoy with a bootstrap until the end of the context, as `running_envoy`."""
    admin = config["admin"]["address"]["socket_address"]["port_value"]
    bootstrap = directory / "bootstrap.json"
    bootstrap.write_text(json.dumps(config, indent=1))
    log = directory / "envoy.log"
    command = [str(ENVOY), "-c", str(bootstrap), "--disable-hot-restart", "--concurrency", "1"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--log-level", "warning"], stdout=output, stderr=output
        )
    envoy = RunningEnvoy(port, admin, log, process)
    try:
        wait_until(lambda: _is_ready(envoy), log.read_text, START_TIMEOUT_S)
        yield envoy
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


def validate(config: GatewayConfig, directory: Path) -> None:
    """Raise AssertionError with Envoy's message unless Envoy accepts the configuration."""
    bootstrap = directory / "validate.json"
    resources = inline_resources(config)
    bootstrap.write_text(json.dumps(bootstrap_of(resources, 0)))
    command = [str(ENVOY), "--mode", "validate", "-c", str(bootstrap), "--log-level", "error"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    # Envoy 1.40 may crash while it exits, after it has accepted a configuration with TLS
    is_valid = result.returncode == 0 or f"configuration '{bootstrap}' OK" in result.stdout
    assert is_valid, result.stdout[-4000:] + result.stderr[-4000:]


def _is_ready(envoy: RunningEnvoy) -> bool:
    assert envoy.process.poll() is None, envoy.log.read_text()[-6000:]
    try:
        return envoy.admin_get("/ready").strip() == "LIVE"
    except OSError:
        return False


def _inline_routes(hcm: dict[str, Any], routes: dict[str, dict[str, Any]]) -> None:
    rds = hcm.pop("rds", None)
    if rds is not None:
        hcm["route_config"] = routes[rds["route_config_name"]]


def _inline_endpoints(cluster: dict[str, Any], endpoints: dict[str, Any] | None) -> None:
    if cluster.get("type") == "EDS":
        assert endpoints is not None, f"cluster {cluster['name']} has no endpoints resource"
        del cluster["eds_cluster_config"]
        cluster["type"] = "STATIC"
        cluster["load_assignment"] = endpoints


def _without_sds(value: Any) -> None:
    """A secret without `sds_config` is the static one of its name."""
    if isinstance(value, dict):
        value.pop("sds_config", None)
    for each in value.values() if isinstance(value, dict) else value:
        if isinstance(each, dict | list):
            _without_sds(each)
