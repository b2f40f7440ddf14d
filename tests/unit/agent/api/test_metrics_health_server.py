# SPDX-License-Identifier: Apache-2.0
"""The ports for Prometheus and the kubelet."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.agent_fakes import FakeWorker
from tests.support.ports import free_ports
from tests.support.waiting import wait_until_async
from tests.unit.agent.test_agent import Agent, agent, namespace, pod
from tests.unit.telemetry.builders import between
from ztunnel.agent.api import metrics_collector as metrics_module
from ztunnel.agent.api.metrics_collector import MetricsCollector
from ztunnel.agent.api.metrics_health_server import (
    MAX_CONNECTIONS,
    MetricsHealthServer,
    PortTakenError,
)
from ztunnel.ipc.messages import SeriesCounts
from ztunnel.telemetry.dns_counters import DnsCounters
from ztunnel.telemetry.log_drop_counters import LogDropCounters
from ztunnel.telemetry.node_counters import TrafficTotals
from ztunnel.telemetry.same_node_rtt import RttTable

LOOPBACK = "127.0.0.1"


class Served:
    """The state that the servers report."""

    def __init__(self) -> None:
        self.missing: list[str] = []
        self.metrics_port, self.health_port = free_ports(2)

    async def page(self, accept: str) -> tuple[bytes, str]:
        return f"accept {accept}".encode(), "text/plain; version=0.0.4; charset=utf-8"

    def endpoints(self, **other: Any) -> MetricsHealthServer:
        options: dict[str, Any] = {
            "page": self.page,
            "waiting_for": lambda: self.missing,
            "bind_address": LOOPBACK,
            "metrics_port": self.metrics_port,
            "health_port": self.health_port,
        }
        return MetricsHealthServer(**{**options, **other})


@asynccontextmanager
async def served(**other: Any) -> AsyncIterator[Served]:
    made = Served()
    endpoints = made.endpoints(**other)
    await endpoints.start()
    try:
        yield made
    finally:
        await endpoints.close()


async def get(port: int, path: str, **headers: str) -> tuple[int, str, str]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{LOOPBACK}:{port}{path}", headers=headers) as response,
    ):
        return response.status, await response.text(), response.headers["Content-Type"]


async def test_metrics_are_served_at_istios_paths() -> None:
    async with served() as made:
        for path in ("/metrics", "/stats/prometheus"):
            status, body, kind = await get(made.metrics_port, path, Accept="this")
            assert (status, body, kind[:25]) == (
                200,
                "accept this",
                "text/plain; version=0.0.4",
            )
        assert (await get(made.metrics_port, "/healthz/ready"))[0] == 404
        assert (await get(made.health_port, "/metrics"))[0] == 404


async def test_readiness_names_conditions_and_liveness_ignores_them() -> None:
    async with served() as made:
        assert (await get(made.health_port, "/healthz/ready"))[0] == 200
        made.missing.append("a proxy worker")
        status, body, _ = await get(made.health_port, "/healthz/ready")
        assert (status, "a proxy worker" in body) == (503, True)
        assert (await get(made.health_port, "/healthz/live"))[0] == 200


@pytest.mark.parametrize("option", ["metrics_port", "health_port"])
async def test_port_in_use_is_reported_with_its_option(option: str) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        made = Served()
        with pytest.raises(PortTakenError, match=f"port {port}.*--{option.replace('_', '-')}"):
            await made.endpoints(**{option: port}).start()
        other = made.health_port if option == "metrics_port" else made.metrics_port
        with socket.create_server((LOOPBACK, other)):  # no socket stays open
            pass


async def test_port_zero_disables_server() -> None:
    async with served(metrics_port=0) as made:
        assert (await get(made.health_port, "/healthz/live"))[0] == 200
        with pytest.raises(aiohttp.ClientConnectorError):
            await get(made.metrics_port, "/metrics")


async def test_idle_connections_do_not_block_probes() -> None:
    async with served() as made:
        idle = [
            await asyncio.open_connection(LOOPBACK, made.health_port)
            for _ in range(2 * MAX_CONNECTIONS)
        ]
        assert (await get(made.health_port, "/healthz/ready"))[0] == 200
        async with asyncio.timeout(10):
            assert await idle[0][0].read() == b""  # the oldest was closed
        for _, writer in idle:
            writer.close()


# The metrics of an agent without a kernel


def metrics_of(a: Agent, totals: TrafficTotals, directory: Path) -> MetricsCollector:
    return MetricsCollector(
        totals=totals,
        rtt=RttTable(10),
        dns=DnsCounters(),
        log_drops=LogDropCounters(),
        status=a.admin._views,
        sessions=a.sessions,
        read_events=a.events.read,
        pin_dir=directory,
    )


async def test_page_has_agent_metrics_and_current_worker_counters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with agent(tmp_path) as a:
        a.namespaces.start("web-uid", "web")
        a.say(namespace(), pod("web", 2))
        a.enroller.advance()
        await wait_until_async(lambda: len(a.store.current()) == 1)
        worker = FakeWorker(a.options.agent_socket).greet()
        await wait_until_async(a.is_serving, "readiness")
        totals = TrafficTotals(10)
        worker.answers = lambda number, what: totals.add(SeriesCounts(between("a", "b"), opened=1))
        monkeypatch.setattr(metrics_module, "REPORT_TIMEOUT_S", 0.2)
        body, _ = await metrics_of(a, totals, tmp_path).page()
        found = {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(body.decode())
            for sample in family.samples
        }
        assert found["ztunnel_ready",] == found["ztunnel_workers",] == 1
        assert found["ztunnel_pods", "captured"] == 1
        identity = "spiffe://cluster.local/ns/shop/sa/web"
        assert found["ztunnel_certificate_expiry_timestamp_seconds", identity] > 1e9
        assert sum(v for k, v in found.items() if k[0].endswith("opened_total")) == 1
        worker.close()


async def test_concurrent_scrapes_share_a_page(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        metrics = metrics_of(a, TrafficTotals(10), tmp_path)
        pages = await asyncio.gather(*(metrics.page() for _ in range(20)))
        assert len({id(body) for body, _ in pages}) == 1
        _, kind = await metrics.page("application/openmetrics-text")
        assert kind.startswith("application/openmetrics-text")
