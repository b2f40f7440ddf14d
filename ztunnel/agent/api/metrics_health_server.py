# SPDX-License-Identifier: Apache-2.0
"""The ports of the node for Prometheus and the kubelet; the numbers are Istio's.

    :15020  GET /metrics, /stats/prometheus   the metrics of the node
    :15021  GET /healthz/ready                200 or 503, as on the admin socket
            GET /healthz/live                 200 while the agent's event loop runs

Every client that can reach the node can send requests, so they change nothing and return no key or
configuration. Each port has a limit of connections; a new one closes the oldest. Clients that hold
connections open can therefore neither exhaust the agent's descriptors nor block the probes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from ztunnel.agent.api.admin_server import ready_response

MAX_CONNECTIONS = 64  # of each port

MetricsPage = Callable[[str], Awaitable[tuple[bytes, str]]]


class PortTakenError(Exception):
    """Another process listens on the port; the text names the option."""


class MetricsHealthServer:
    """Two HTTP servers. Port 0 disables a server; an empty address means all addresses."""

    def __init__(
        self,
        *,
        page: MetricsPage,
        waiting_for: Callable[[], list[str]],
        bind_address: str,
        metrics_port: int,
        health_port: int,
    ) -> None:
        self._page = page
        self._waiting_for = waiting_for
        self._bind_address = bind_address or None
        self._applications = (
            ("--metrics-port", metrics_port, self._metrics_application()),
            ("--health-port", health_port, self._health_application()),
        )
        self._runners: list[web.AppRunner] = []
        self._servers: list[asyncio.Server] = []

    async def start(self) -> None:
        """Listen. Raises PortTakenError."""
        for option, port, application in self._applications:
            if not port:
                continue
            runner = web.AppRunner(application, access_log=None)
            self._runners.append(runner)
            await runner.setup()
            assert runner.server is not None  # since it was set up
            loop = asyncio.get_running_loop()
            try:
                made = await loop.create_server(_bounded(runner.server), self._bind_address, port)
                self._servers.append(made)
            except OSError as error:
                await self.close()
                raise PortTakenError(
                    f"can't listen on {self._bind_address or 'all addresses'}, port {port}: "
                    f"{error.strerror or error}; hint: set {option} to another port, or to 0"
                ) from error

    async def close(self) -> None:
        """Stop both servers."""
        while self._servers:
            self._servers.pop().close()
        while self._runners:
            await self._runners.pop().cleanup()

    def _metrics_application(self) -> web.Application:
        application = web.Application()
        for path in ("/metrics", "/stats/prometheus"):
            application.router.add_get(path, self._metrics)
        return application

    def _health_application(self) -> web.Application:
        application = web.Application()
        application.router.add_get("/healthz/ready", self._ready)
        application.router.add_get("/healthz/live", self._live)
        return application

    async def _metrics(self, request: web.Request) -> web.Response:
        body, content_type = await self._page(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _ready(self, _: web.Request) -> web.Response:
        return ready_response(self._waiting_for())

    async def _live(self, _: web.Request) -> web.Response:
        return web.Response(text="live\n")


def _bounded(server: web.Server) -> Callable[[], RequestHandler]:
    def connection() -> RequestHandler:
        held = server.connections
        for oldest in held[: len(held) - MAX_CONNECTIONS + 1]:
            oldest.force_close()
        return server()

    return connection
