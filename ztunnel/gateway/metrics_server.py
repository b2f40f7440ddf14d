# SPDX-License-Identifier: Apache-2.0
"""Serves /metrics of a gateway pod: Envoy's statistics under the names that Istio's have.

Envoy adds the prefix `envoy_` to all names; `istio_*` metrics lose it.
"""

from __future__ import annotations

import asyncio
import socket

from aiohttp import web

from ztunnel.gateway.envoy_admin import EnvoyAdmin, EnvoyAdminError
from ztunnel.l7.telemetry.page import prometheus_page

MAX_SCRAPES = 2  # at a time, of a pod; more wait
_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class MetricsServer:
    """One per gateway pod."""

    def __init__(self, admin: EnvoyAdmin) -> None:
        self._admin = admin
        self._room = asyncio.Semaphore(MAX_SCRAPES)
        application = web.Application()
        for path in ("/metrics", "/stats/prometheus"):
            application.router.add_get(path, self._metrics)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)

    async def listen(self, sock: socket.socket) -> None:
        """Serve a listening socket, which the server then owns."""
        if self._runner.server is None:
            await self._runner.setup()
        await web.SockSite(self._runner, sock).start()

    async def close(self) -> None:
        """Close the listeners."""
        await self._runner.cleanup()

    async def _metrics(self, _: web.Request) -> web.Response:
        async with self._room:
            try:
                body = await self._admin.get("/stats/prometheus?usedonly")
            except EnvoyAdminError as error:
                return web.Response(status=503, text=f"{error}\n")
        return web.Response(body=prometheus_page(body), headers={"Content-Type": _CONTENT_TYPE})
