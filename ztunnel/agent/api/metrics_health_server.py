# SPDX-License-Identifier: Apache-2.0
"""What anybody on the node's network may ask: metrics, and whether it serves. Istio's ports.

    :15020  GET /metrics, /stats/prometheus   what Prometheus reads
    :15021  GET /healthz/ready                200 or 503, as on the admin socket
            GET /healthz/live                 200 while the agent's loop turns

Nothing here changes anything, and no key or configuration is in it. Whoever holds connections open
takes no descriptors from the agent and no probe from the kubelet: each port has room for some, and
the oldest gives way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from ztunnel.agent.api.admin_server import ready_answer

MOST_CONNECTIONS = 64  # of each port

Page = Callable[[str], Awaitable[tuple[bytes, str]]]


class PortTakenError(Exception):
    """Somebody else listens there; the text names the option."""


class Endpoints:
    """Two HTTP servers; port 0 stands for none. `listen` empty: all addresses of the node."""

    def __init__(
        self,
        *,
        page: Page,
        waiting_for: Callable[[], list[str]],
        listen: str,
        metrics_port: int,
        health_port: int,
    ) -> None:
        self._page = page
        self._waiting_for = waiting_for
        self._listen = listen or None
        self._wanted = (
            ("--metrics-port", metrics_port, self._metrics_application()),
            ("--health-port", health_port, self._health_application()),
        )
        self._runners: list[web.AppRunner] = []
        self._servers: list[asyncio.Server] = []

    async def start(self) -> None:
        """Listen. Raises PortTakenError."""
        for option, port, application in self._wanted:
            if not port:
                continue
            runner = web.AppRunner(application, access_log=None)
            self._runners.append(runner)
            await runner.setup()
            assert runner.server is not None  # since it was set up
            loop = asyncio.get_running_loop()
            try:
                made = await loop.create_server(_bounded(runner.server), self._listen, port)
                self._servers.append(made)
            except OSError as error:
                await self.close()
                raise PortTakenError(
                    f"can't listen on {self._listen or 'all addresses'}, port {port}: "
                    f"{error.strerror or error}; choose another by {option}, or 0 for none"
                ) from error

    async def close(self) -> None:
        """Stop listening."""
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
        return ready_answer(self._waiting_for())

    async def _live(self, _: web.Request) -> web.Response:
        return web.Response(text="live\n")


def _bounded(server: web.Server) -> Callable[[], RequestHandler]:
    def connection() -> RequestHandler:
        held = server.connections
        for oldest in held[: len(held) - MOST_CONNECTIONS + 1]:
            oldest.force_close()
        return server()

    return connection
