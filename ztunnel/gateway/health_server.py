# SPDX-License-Identifier: Apache-2.0
"""The gateway process's health endpoints for the kubelet.

GET /healthz/live     200 while the event loop turns
GET /healthz/ready    200 once the process has a complete view of the mesh; else 503 with the reason
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from aiohttp import web


class HealthServer:
    """`unready_reasons` returns the conditions that readiness waits for."""

    def __init__(self, unready_reasons: Callable[[], list[str]]) -> None:
        self._unready_reasons = unready_reasons
        application = web.Application()
        application.router.add_get("/healthz/live", self._live)
        application.router.add_get("/healthz/ready", self._ready)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)

    async def listen(self, sock: socket.socket) -> None:
        """Serve a listening socket."""
        await self._runner.setup()
        await web.SockSite(self._runner, sock).start()

    async def close(self) -> None:
        """Close the listener."""
        await self._runner.cleanup()

    async def _live(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _ready(self, _: web.Request) -> web.Response:
        reasons = self._unready_reasons()
        text = "".join(f"{reason}\n" for reason in reasons or ["ok"])
        return web.Response(status=503 if reasons else 200, text=text)
