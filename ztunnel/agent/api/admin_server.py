# SPDX-License-Identifier: Apache-2.0
"""The agent's admin API: JSON over HTTP on `<run-dir>/admin.sock`, for ztctl and operators.

    GET /healthz/ready    200 {"ready": true} or 503 {"ready": false, "waiting_for": [text, ...]}
    GET /v1/status        one object, see `AgentViews.status`
    GET /v1/workloads     {"workloads": [mesh.model.Workload and its "identity", ...]}
    GET /v1/services      {"services": [mesh.model.Service and its "key", ...]}
    GET /v1/pods          {"pods": [...], "refused": [{"pod", "reason"}, ...]}
    GET /v1/certificates  {"certificates": [identity.certificate_store.CertificateStatus, ...]}
    GET /v1/connections   {"connections": [proxy.conntrack.tracker rows and "worker", ...],
                           "unanswered": [worker pid, ...]}
    GET /v1/policies      {"policies": [policy_simulator rows]}
    GET /v1/policy        ?name=: these policies, each with its target "workloads"; or {"error"}
    GET /v1/policy/test   ?from=&to=: the decision about a connection, see `policy_simulator`
    GET /v1/l7            {"settings": {...}, "objects": [...]}: routes, Gateways, ...; unparsed
    GET /v1/gateways      {"gateways": [...], "processes": [...]}, see `gateway_views`
    GET /v1/gateway       ?pod=&view=config_dump|clusters|xds|log: of a gateway pod's Envoy
    PATCH /v1/gateway     ?pod=&log=LEVEL or LOGGER=LEVEL: Envoy's log levels; returns all
    GET /v1/tunnels       {"tunnels": [...], "unanswered": [...]}
    GET /v1/log           {"process": level, "access": {"level", "sample"}, "namespaces": {...}}
    PATCH /v1/log         the same with the fields to change, null for the default; returns all
    GET /config_dump      all of the above except connections, l7, in one object

    curl --unix-socket /run/ztunnel/admin.sock http://agent/v1/status

Only root can connect. Only log levels can be changed. No response has a private key.
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
    """The responses: data that msgspec can encode as JSON."""

    def waiting_for(self) -> list[str]:
        """The conditions that readiness waits for; empty if the agent is ready."""
        ...

    def status(self) -> Json: ...
    def workloads(self) -> Json: ...
    def services(self) -> Json: ...
    def pods(self) -> Json: ...
    def certificates(self) -> Json: ...
    def policies(self) -> Json: ...
    def l7(self) -> Json: ...
    def policy(self, query: Mapping[str, str]) -> Json: ...
    def policy_test(self, query: Mapping[str, str]) -> Json: ...
    async def query_workers(self, what: str) -> Json: ...


class Logs(Protocol):
    """The node's log configuration; see `ztunnel.agent.api.log_level`."""

    def view(self) -> Json: ...
    def change(self, wanted: bytes) -> Json:
        """Apply a change. Raises ValueError."""
        ...


class Gateways(Protocol):
    """The gateway pods; see `ztunnel.agent.api.gateway_views`."""

    def gateways(self) -> Json: ...
    async def gateway(self, pod: str, view: str, log_level: str = "") -> bytes:
        """JSON text. Raises ValueError, LookupError."""
        ...


class AdminServer:
    """The HTTP server."""

    def __init__(
        self,
        path: Path,
        views: Views,
        logs: Logs | None = None,
        gateways: Gateways | None = None,
    ) -> None:
        self._path = path
        self._views = views
        self._logs = logs
        self._gateways = gateways
        self._runner = web.AppRunner(self._application(), access_log=None)

    async def start(self) -> None:
        """Listen. Raises OSError."""
        self._path.unlink(missing_ok=True)
        await self._runner.setup()
        before = os.umask(0o177)  # mode 0600 from the moment the path exists
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
            ("/v1/l7", views.l7),
            ("/config_dump", self._dump),
        ):
            application.router.add_get(path, _handler(view))
        for path, query_view in (
            ("/v1/policy", views.policy),
            ("/v1/policy/test", views.policy_test),
        ):
            application.router.add_get(path, _query_handler(query_view))
        for what in ("connections", "tunnels"):
            application.router.add_get(f"/v1/{what}", self._worker_handler(what))
        application.router.add_get("/healthz/ready", self._ready)
        if self._logs is not None:
            application.router.add_get("/v1/log", _handler(self._logs.view))
            application.router.add_patch("/v1/log", self._change_logs)
        if self._gateways is not None:
            application.router.add_get("/v1/gateways", _handler(self._gateways.gateways))
            application.router.add_get("/v1/gateway", self._gateway)
            application.router.add_patch("/v1/gateway", self._gateway)
        return application

    async def _gateway(self, request: web.Request) -> web.Response:
        assert self._gateways is not None
        query = request.query
        is_change = request.method == "PATCH"
        view = "log" if is_change else query.get("view", "")
        level = query.get("log", "") if is_change else ""
        try:
            body = await self._gateways.gateway(query.get("pod", ""), view, level)
        except ValueError as error:
            return web.Response(status=400, text=str(error))
        except LookupError as error:
            return web.Response(status=404, text=str(error))
        return web.Response(body=body, content_type="application/json")

    def _worker_handler(self, what: str) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(_: web.Request) -> web.Response:
            return _response(await self._views.query_workers(what))

        return handle

    async def _ready(self, _: web.Request) -> web.Response:
        return ready_response(self._views.waiting_for())

    async def _change_logs(self, request: web.Request) -> web.Response:
        assert self._logs is not None
        try:
            return _response(self._logs.change(await request.read()))
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


def ready_response(waiting_for: list[str]) -> web.Response:
    """200 if the agent is ready, else 503 with the conditions that it waits for."""
    if waiting_for:
        return _response({"ready": False, "waiting_for": waiting_for}, status=503)
    return _response({"ready": True})


def _handler(view: Callable[[], Json]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(_: web.Request) -> web.Response:
        return _response(view())

    return handle


def _query_handler(
    view: Callable[[Mapping[str, str]], Json],
) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        return _response(view(request.query))

    return handle


def _response(data: Json, status: int = 200) -> web.Response:
    body = msgspec.json.encode(data)
    return web.Response(body=body, status=status, content_type="application/json")
