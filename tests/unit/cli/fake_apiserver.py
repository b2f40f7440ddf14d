# SPDX-License-Identifier: Apache-2.0
"""A fake API server with what `ztctl --context` uses: pods, tokens, exec and port-forward.

A real one forwards exec and port-forward to a kubelet. The fake runs the command, or connects to
the port, on this machine, and implements the server side of the websocket protocol
v4.channel.k8s.io. The ports are those of `ztunnel.agent.api.remote_admin_server`, the real server,
in front of the fake agents.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from pathlib import Path

from aiohttp import WSMsgType, web

from ztunnel.agent.api.remote_admin_server import AdminTlsServer
from ztunnel.kube.admin_endpoint import ACCOUNT, ANNOTATION
from ztunnel.kube.constants import NAMESPACE

_STDOUT, _STDERR, _ERROR = b"\1", b"\2", b"\3"


class ApiServer:
    """`agents` maps nodes to the run directories of their agents.

    `annotations` maps nodes to the annotations of their agents' pods. Requests for the nodes in
    `forbidden` get 403, as do the requests in `denied`: `exec`, `portforward` or `token`. `execs`,
    `forwards` and `tokens` record the requests.
    """

    def __init__(self, directory: Path) -> None:
        self.agents: dict[str, Path] = {}
        self.forbidden: set[str] = set()
        self.annotations: dict[str, str] = {}
        self.denied: set[str] = set()
        self.execs: list[list[str]] = []
        self.forwards: list[int] = []
        self.tokens: dict[str, str] = {}  # token → audience
        self.is_strict = False  # reject all tokens
        self._endpoints: list[tuple[AdminTlsServer, asyncio.Task[None]]] = []
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
        asyncio.run_coroutine_threadsafe(self._close_endpoints(), self._loop).result(10)
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def open_endpoint(self, node: str) -> AdminTlsServer:
        """Give a node's agent a port, and its pod the annotation."""
        endpoint = asyncio.run_coroutine_threadsafe(self._open_endpoint(node), self._loop).result(
            10
        )
        self.annotations[node] = str(endpoint.endpoint)
        return endpoint

    async def _open_endpoint(self, node: str) -> AdminTlsServer:
        endpoint = AdminTlsServer(self.agents[node] / "admin.sock", self._review)
        self._endpoints.append((endpoint, asyncio.create_task(endpoint.serve())))
        return endpoint

    async def _close_endpoints(self) -> None:
        for endpoint, serving in self._endpoints:
            serving.cancel()
            await endpoint.close()

    def _review(self, token: str, audience: str) -> str:
        is_good = self.tokens.get(token) == audience and not self.is_strict
        return "" if is_good else "unknown token"

    async def _start(self) -> int:
        application = web.Application()
        pods = f"/api/v1/namespaces/{NAMESPACE}/pods"
        application.router.add_get(pods, self._pods)
        application.router.add_get(pods + "/{name}/exec", self._exec)
        application.router.add_get(pods + "/{name}/portforward", self._forward)
        token = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{ACCOUNT}/token"
        application.router.add_post(token, self._token)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        port: int = self._runner.addresses[0][1]
        return port

    async def _pods(self, request: web.Request) -> web.Response:
        assert request.query["labelSelector"] == "app.kubernetes.io/name=ztunnel-agent"
        items = [
            {
                "metadata": {
                    "name": f"agent-{node}",
                    "annotations": {ANNOTATION: self.annotations[node]}
                    if node in self.annotations
                    else None,
                },
                "spec": {"nodeName": node},
            }
            for node in self.agents
        ]
        return web.json_response({"kind": "PodList", "apiVersion": "v1", "items": items})

    async def _exec(self, request: web.Request) -> web.StreamResponse:
        node = request.match_info["name"].removeprefix("agent-")
        if node in self.forbidden or "exec" in self.denied:
            return web.json_response({"message": "pods/exec is forbidden"}, status=403)
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
        await self._forward_streams(socket, process)
        return socket

    async def _token(self, request: web.Request) -> web.Response:
        if "token" in self.denied:
            return web.json_response({"message": "serviceaccounts/token is forbidden"}, status=403)
        review = await request.json()
        token = f"token-{len(self.tokens)}"
        (self.tokens[token],) = review["spec"]["audiences"]
        return web.json_response(review | {"status": {"token": token}}, status=201)

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        node = request.match_info["name"].removeprefix("agent-")
        if node in self.forbidden or "portforward" in self.denied:
            return web.json_response({"message": "pods/portforward is forbidden"}, status=403)
        port = int(request.query["ports"])
        self.forwards.append(port)
        socket = web.WebSocketResponse(protocols=["v4.channel.k8s.io"])
        await socket.prepare(request)
        for channel in (b"\0", b"\1"):
            await socket.send_bytes(channel + port.to_bytes(2, "little"))
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError as error:
            await socket.send_bytes(b"\1" + f"dial: {error}".encode())
            await socket.close()
            return socket

        async def out() -> None:
            while data := await reader.read(4096):
                await socket.send_bytes(b"\0" + data)
            await socket.close()

        sending = asyncio.create_task(out())
        async for message in socket:
            if message.type is WSMsgType.BINARY and message.data[:1] == b"\0":
                writer.write(message.data[1:])
                await writer.drain()
        sending.cancel()
        writer.close()
        return socket

    async def _forward_streams(
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
