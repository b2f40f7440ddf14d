# SPDX-License-Identifier: Apache-2.0
"""An API server as far as `ztctl --context` needs one: a list of pods, and exec by websocket.

A real one hands exec on to a kubelet, which tests have none of. This one runs the command that it
is asked to run, here, and speaks the kubelet's side of the websocket protocol v4.channel.k8s.io.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from pathlib import Path

from aiohttp import WSMsgType, web

from ztunnel.kube.signing import NAMESPACE

_STDOUT, _STDERR, _ERROR = b"\1", b"\2", b"\3"


class ApiServer:
    """`agents` maps a node to the run directory of its agent; `forbidden` ones answer 403."""

    def __init__(self, directory: Path) -> None:
        self.agents: dict[str, Path] = {}
        self.forbidden: set[str] = set()
        self.execs: list[list[str]] = []
        self.kubeconfig = directory / "kubeconfig"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._runner: web.AppRunner | None = None

    def __enter__(self) -> ApiServer:
        self._thread.start()
        port = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        self.kubeconfig.write_text(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\nusers: [{name: c, user: {}}]\n"
            f"clusters: [{{name: c, cluster: {{server: 'http://127.0.0.1:{port}'}}}}]\n"
            "contexts: [{name: c, context: {cluster: c, user: c}}]\n"
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._runner is not None
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> int:
        application = web.Application()
        pods = f"/api/v1/namespaces/{NAMESPACE}/pods"
        application.router.add_get(pods, self._pods)
        application.router.add_get(pods + "/{name}/exec", self._exec)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        port: int = self._runner.addresses[0][1]
        return port

    async def _pods(self, request: web.Request) -> web.Response:
        assert request.query["labelSelector"] == "app.kubernetes.io/name=ztunnel-agent"
        items = [
            {"metadata": {"name": f"agent-{node}"}, "spec": {"nodeName": node}}
            for node in self.agents
        ]
        return web.json_response({"kind": "PodList", "apiVersion": "v1", "items": items})

    async def _exec(self, request: web.Request) -> web.StreamResponse:
        node = request.match_info["name"].removeprefix("agent-")
        if node in self.forbidden:
            return web.json_response({"message": "pods is forbidden"}, status=403)
        assert request.query["container"] == "agent"
        command = request.query.getall("command")
        self.execs.append(command)
        socket = web.WebSocketResponse(protocols=["v4.channel.k8s.io"])
        await socket.prepare(request)
        argv = [sys.executable, "-m", "ztctl.main", *command[1:]]
        process = await asyncio.create_subprocess_exec(
            *argv,
            "--run-dir",
            str(self.agents[node]),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        await self._carry(socket, process)
        return socket

    async def _carry(
        self, socket: web.WebSocketResponse, process: asyncio.subprocess.Process
    ) -> None:
        async def out(stream: asyncio.StreamReader, channel: bytes) -> None:
            while data := await stream.read(4096):
                await socket.send_bytes(channel + data)

        async def into() -> None:
            assert process.stdin is not None
            async for message in socket:
                if message.type is WSMsgType.BINARY and message.data[:1] == b"\0":
                    process.stdin.write(message.data[1:])
                    await process.stdin.drain()
            process.stdin.close()

        assert process.stdout is not None
        assert process.stderr is not None
        reading = asyncio.create_task(into())
        await asyncio.gather(out(process.stdout, _STDOUT), out(process.stderr, _STDERR))
        status = await process.wait()
        if not socket.closed:
            ended = {"status": "Success"} if status == 0 else {"status": "Failure"}
            await socket.send_bytes(_ERROR + json.dumps(ended).encode())
            await socket.close()
        await reading
