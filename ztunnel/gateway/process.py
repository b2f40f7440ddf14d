# SPDX-License-Identifier: Apache-2.0
"""The gateway process: connects the agent link, the compiler and the gateway pods."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import structlog

from ztunnel import __version__
from ztunnel.gateway.compiler import Compiled, ConfigCompiler, MeshConfigChanged
from ztunnel.gateway.envoy_admin import EnvoyAdminError
from ztunnel.gateway.health_server import HealthServer
from ztunnel.gateway.link import AgentLink, Message
from ztunnel.gateway.mesh_config import MeshConfig, MeshConfigFile
from ztunnel.gateway.pod import GatewayPod
from ztunnel.gateway.state import GatewayState
from ztunnel.gateway.xds.descriptors import EnvoyApi
from ztunnel.ipc.channel import MAX_FDS
from ztunnel.ipc.gateway_messages import (
    MAX_REPLY_BYTES,
    GatewayHello,
    GatewayPodAdded,
    GatewayQuery,
    GatewayRejected,
    GatewayReply,
    GatewaySettings,
    HeldGatewayListeners,
    L7Delta,
    RejectedResource,
)
from ztunnel.ipc.messages import LogConfig, MeshDelta, PodRemoved, SocketRequest, Sockets
from ztunnel.telemetry.logs import set_level

log = structlog.get_logger()


class GatewayProcess:
    """One per node."""

    def __init__(self, api: EnvoyApi, socket_path: Path, mesh_config: Path | None = None) -> None:
        self._api = api
        self._pods: dict[str, GatewayPod] = {}
        self._reported: dict[str, tuple[RejectedResource, ...]] = {}
        self._state = GatewayState()
        self._compiler = ConfigCompiler(
            api,
            self._state,
            lambda: {pod.gateway for pod in self._pods.values()},
            self._publish,
            lambda: [pod.workload for pod in self._pods.values()],
        )
        self._link = AgentLink(socket_path, self._greet, self._receive)
        self._tasks: set[asyncio.Task[None]] = set()
        self._mesh_config = mesh_config

    def unready_reasons(self) -> list[str]:
        """The conditions that readiness waits for."""
        return [] if self._state.inputs() is not None else ["first complete view of the mesh"]

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set."""
        running = [self._link.run(), self._compiler.run()]
        if self._mesh_config is not None:
            running.append(MeshConfigFile(self._mesh_config, self._mesh_config_changed).run())
        tasks = [asyncio.create_task(each) for each in running]
        stopped = asyncio.create_task(stop.wait())
        try:
            done, _ = await asyncio.wait([*tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # raises the failure
        finally:
            for task in [*tasks, stopped]:
                task.cancel()
            await asyncio.gather(*tasks, stopped, return_exceptions=True)
            for pod in self._pods.values():
                await pod.close()

    # The agent link

    def _greet(self) -> list[Message]:
        """Hellos with the listeners that this process holds, and the rejected resources."""
        messages: list[Message] = []
        pods: list[HeldGatewayListeners] = []
        fds: list[int] = []

        def hello() -> GatewayHello:
            return GatewayHello(version=__version__, pid=os.getpid(), pods=tuple(pods))

        for pod in self._pods.values():
            held, of_pod = pod.held()
            if fds and len(fds) + len(of_pod) > MAX_FDS:
                messages.append((hello(), list(fds)))
                pods.clear()
                fds.clear()
            pods.append(held)
            fds += of_pod
        messages.append((hello(), list(fds)))
        self._reported.clear()
        for pod in self._pods.values():
            asyncio.get_running_loop().call_later(0.5, self._report, pod)
        return messages

    def _receive(self, message: Any, fds: list[int]) -> None:
        if isinstance(message, MeshDelta | L7Delta | GatewaySettings):
            self._compiler.add(message)
        elif isinstance(message, GatewayPodAdded):
            self._add_pod(message, fds)
        elif isinstance(message, PodRemoved):
            pod = self._pods.pop(message.pod_uid, None)
            if pod is not None:
                log.info("gateway pod removed", pod=pod.workload)
                self._reported.pop(pod.uid, None)
                self._start(pod.close())
                self._compiler.wake()
        elif isinstance(message, Sockets):
            pod = self._pods.get(message.pod_uid)
            while fds and pod is not None:
                pod.admin.offer(socket.socket(fileno=fds.pop()))
        elif isinstance(message, GatewayQuery):
            self._start(self._reply(message))
        elif isinstance(message, LogConfig):
            set_level(message.process.value)

    def _mesh_config_changed(self, config: MeshConfig) -> None:
        self._compiler.add(MeshConfigChanged(config))

    def _add_pod(self, added: GatewayPodAdded, fds: list[int]) -> None:
        socks = [socket.socket(fileno=fd) for fd in fds]
        fds.clear()
        pod = self._pods.get(added.pod_uid)
        if pod is not None and (pod.gateway, pod.cookie) != (added.gateway, added.netns_cookie):
            self._start(pod.close())
            pod = None
        if pod is None:
            pod = GatewayPod(
                self._api,
                added,
                request_socket=lambda: self._link.send(SocketRequest(added.pod_uid, 4, 1)),
                on_change=self._report,
            )
            self._pods[added.pod_uid] = pod
            log.info("gateway pod added", pod=pod.workload, gateway=pod.gateway)
            compiled = self._compiler.last(pod.gateway)
            if compiled is not None:
                pod.set_compiled(compiled)
        for kind, sock in zip(added.listeners, socks, strict=True):
            self._start(pod.listen(kind, sock))
        self._compiler.wake()

    def _publish(self, gateway: str, compiled: Compiled) -> None:
        for pod in self._pods.values():
            if pod.gateway == gateway:
                pod.set_compiled(compiled)
                self._report(pod)

    def _report(self, pod: GatewayPod) -> None:
        """Report the rejected resources of a pod if they have changed."""
        if self._pods.get(pod.uid) is not pod or not pod.ads.is_connected:
            return
        rejected = pod.rejected()
        if self._reported.get(pod.uid, ()) != rejected and self._link.is_up:
            self._reported[pod.uid] = rejected
            for each in rejected:
                log.warning(
                    "configuration rejected",
                    pod=pod.workload,
                    resource=each.name,
                    error=each.message,
                )
            self._link.send(GatewayRejected(pod.uid, rejected))

    async def _reply(self, query: GatewayQuery) -> None:
        pod = self._pods.get(query.pod_uid)
        if pod is None:
            self._link.send(GatewayReply(query.id, error="the process does not serve this pod"))
            return
        try:
            error = self._compiler.error(pod.gateway)
            data = await pod.view(query.view, query.log_level, error)
        except EnvoyAdminError as failure:
            self._link.send(GatewayReply(query.id, error=str(failure)[:1024]))
            return
        for at in range(0, max(len(data), 1), MAX_REPLY_BYTES):
            part = data[at : at + MAX_REPLY_BYTES]
            self._link.send(GatewayReply(query.id, part, at + MAX_REPLY_BYTES < len(data)))

    def _start(self, step: Coroutine[Any, Any, None]) -> None:
        """Run a step in the background; a failure is logged."""
        task = asyncio.ensure_future(_logged(step))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _logged(step: Coroutine[Any, Any, None]) -> None:
    try:
        await step
    except Exception as error:
        log.error("step failed", exc_info=error)


async def serve(
    api: EnvoyApi,
    socket_path: Path,
    health_socket: socket.socket | None,
    mesh_config: Path | None = None,
) -> None:
    """Run the process until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    process = GatewayProcess(api, socket_path, mesh_config)
    health = HealthServer(process.unready_reasons)
    if health_socket is not None:
        await health.listen(health_socket)
    try:
        await process.run(stop)
    finally:
        await health.close()
        log.info("gateway process stopped", note="Envoys continue with their configuration")
