# SPDX-License-Identifier: Apache-2.0
"""The agent's admin API: JSON over HTTP on `<run-dir>/admin.sock`, for ztctl and for people.

    GET /healthz/ready    200 {"ready": true} or 503 {"ready": false, "waiting_for": [text, ...]}
    GET /v1/status        one object: see `Views.status`
    GET /v1/workloads     {"workloads": [mesh.model.Workload and its "identity", ...]}
    GET /v1/services      {"services": [mesh.model.Service and its "key", ...]}
    GET /v1/pods          {"pods": [...], "refused": [{"pod", "reason"}, ...]}
    GET /v1/certificates  {"certificates": [identity.store.Status, ...]}
    GET /v1/connections   {"connections": [proxy.report.Record and "worker", ...],
                           "unanswered": [worker pid, ...]}
    GET /v1/policies      {"policies": [agent.whatif rows]}
    GET /v1/policy        ?name=: the same of these, with the "workloads" they take; or {"error"}
    GET /v1/policy/test   ?from=&to=: what would become of a connection, see `agent.whatif`
    GET /v1/tunnels       {"tunnels": [...], "unanswered": [...]}
    GET /v1/log           {"process": level, "access": {"level", "sample"}, "namespaces": {...}}
    PATCH /v1/log         the same with what is to change, null for back to the default; the result
    GET /config_dump      all of the above but connections, in one object

    curl --unix-socket /run/ztunnel/admin.sock http://agent/v1/status

Only root may connect; nothing but the log is changed here. Private keys are in none of it.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec
from aiohttp import web

Json = dict[str, Any]


class Views(Protocol):
    """Where the answers come from: JSON-able data (msgspec structs and dataclasses included)."""

    def waiting_for(self) -> list[str]:
        """What readiness waits for; empty when ready."""
        ...

    def status(self) -> Json: ...
    def workloads(self) -> Json: ...
    def services(self) -> Json: ...
    def pods(self) -> Json: ...
    def certificates(self) -> Json: ...
    def policies(self) -> Json: ...
    def policy(self, query: Mapping[str, str]) -> Json: ...
    def policy_test(self, query: Mapping[str, str]) -> Json: ...
    async def ask_workers(self, what: str) -> Json: ...


class Logs(Protocol):
    """How the node logs, see `ztunnel.agent.api.log_level`."""

    def view(self) -> Json: ...
    def change(self, wanted: bytes) -> Json:
        """Raises ValueError."""
        ...


class Admin:
    """The HTTP server."""

    def __init__(self, path: Path, views: Views, logs: Logs | None = None) -> None:
        self._path = path
        self._views = views
        self._logs = logs
        self._runner = web.AppRunner(self._application(), access_log=None)

    async def start(self) -> None:
        """Listen. Raises OSError."""
        self._path.unlink(missing_ok=True)
        await self._runner.setup()
        before = os.umask(0o177)  # 0600 from the first moment
        try:
            await web.UnixSite(self._runner, str(self._path)).start()
        finally:
            os.umask(before)

    async def close(self) -> None:
        """Stop listening."""
        await self._runner.cleanup()
        self._path.unlink(missing_ok=True)

    def _application(self) -> web.Application:
        views = self._views
        application = web.Application()
        for path, view in (
            ("/v1/status", views.status),
            ("/v1/workloads", views.workloads),
            ("/v1/services", views.services),
            ("/v1/pods", views.pods),
            ("/v1/certificates", views.certificates),
            ("/v1/policies", views.policies),
            ("/config_dump", self._dump),
        ):
            application.router.add_get(path, _handler(view))
        for path, asked in (("/v1/policy", views.policy), ("/v1/policy/test", views.policy_test)):
            application.router.add_get(path, _query_handler(asked))
        for what in ("connections", "tunnels"):
            application.router.add_get(f"/v1/{what}", self._worker_handler(what))
        application.router.add_get("/healthz/ready", self._ready)
        if self._logs is not None:
            application.router.add_get("/v1/log", _handler(self._logs.view))
            application.router.add_patch("/v1/log", self._change_logs)
        return application

    def _worker_handler(self, what: str) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(_: web.Request) -> web.Response:
            return _answer(await self._views.ask_workers(what))

        return handle

    async def _ready(self, _: web.Request) -> web.Response:
        return ready_answer(self._views.waiting_for())

    async def _change_logs(self, request: web.Request) -> web.Response:
        assert self._logs is not None
        try:
            return _answer(self._logs.change(await request.read()))
        except ValueError as error:
            return web.Response(status=400, text=str(error))

    def _dump(self) -> Json:
        views = self._views
        return {
            "status": views.status(),
            **({"log": self._logs.view()} if self._logs is not None else {}),
            **views.pods(),
            **views.certificates(),
            **views.workloads(),
            **views.services(),
            **views.policies(),
        }


def ready_answer(waiting_for: list[str]) -> web.Response:
    """200 when there is nothing to wait for, else 503 with what it is."""
    if waiting_for:
        return _answer({"ready": False, "waiting_for": waiting_for}, status=503)
    return _answer({"ready": True})


def _handler(view: Callable[[], Json]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(_: web.Request) -> web.Response:
        return _answer(view())

    return handle


def _query_handler(
    view: Callable[[Mapping[str, str]], Json],
) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        return _answer(view(request.query))

    return handle


def _answer(data: Json, status: int = 200) -> web.Response:
    body = msgspec.json.encode(data)
    return web.Response(body=body, status=status, content_type="application/json")
