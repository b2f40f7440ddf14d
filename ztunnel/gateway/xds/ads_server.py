# SPDX-License-Identifier: Apache-2.0
"""Serves delta ADS to the Envoy of one gateway pod, on listeners inside the pod.

The listener identifies the pod: no token is needed. The streams of a pod share what is known of its
Envoy, so that a reconnecting Envoy gets only what it lacks.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator

import structlog

from ztunnel.gateway.xds import messages
from ztunnel.gateway.xds.delta import DeltaSession, ResourceStatus
from ztunnel.gateway.xds.descriptors import EnvoyApi
from ztunnel.gateway.xds.grpc_server import GrpcConnection
from ztunnel.gateway.xds.resources import Config
from ztunnel.gateway.xds.subscription import Memory, Rejection

MAX_CONNECTIONS = 8  # of a pod; Envoy has one

log = structlog.get_logger()


class AdsServer:
    """One per gateway pod. `on_change` is called when the state of synchronization may differ."""

    def __init__(self, api: EnvoyApi, pod: str, on_change: Callable[[], None]) -> None:
        """`pod`: for logs."""
        self._api = api
        self._pod = pod
        self._on_change = on_change
        self._config: Config | None = None
        self._memory: dict[str, Memory] = {}
        self._servers: list[asyncio.Server] = []
        self._connections: set[GrpcConnection] = set()
        self._streams: list[AdsStream] = []  # oldest first

    async def listen(self, sock: socket.socket) -> None:
        """Accept connections on a listening socket, which the server then owns."""
        loop = asyncio.get_running_loop()
        self._servers.append(await loop.create_server(self._connection, sock=sock))

    def stop_accepting(self) -> None:
        """Close the listeners; connections continue."""
        for server in self._servers:
            server.close()
        self._servers.clear()

    def close(self) -> None:
        """Close listeners and connections. Envoy continues with its configuration."""
        self.stop_accepting()
        for connection in list(self._connections):
            connection.close()

    def set_config(self, config: Config) -> None:
        """Send what differs to all streams."""
        self._config = config
        for stream in list(self._streams):
            stream.set_config(config)

    @property
    def is_connected(self) -> bool:
        return bool(self._streams)

    @property
    def is_synced(self) -> bool:
        """Whether the latest stream's Envoy has answered everything."""
        return bool(self._streams) and self._streams[-1].session.is_synced

    def rejected(self) -> list[tuple[str, Rejection]]:
        """What the Envoy rejects, with type URLs."""
        return list(self._streams[-1].session.rejected()) if self._streams else []

    def statuses(self) -> Iterator[ResourceStatus]:
        """Every resource, as of the latest stream."""
        if self._streams:
            return self._streams[-1].session.statuses()
        idle = DeltaSession()
        idle.set_config(self._config or {})
        return idle.statuses()

    def _connection(self) -> GrpcConnection:
        return GrpcConnection(
            messages.METHOD, self._stream, self._opened, self._connections.discard
        )

    def _opened(self, connection: GrpcConnection) -> bool:
        if len(self._connections) >= MAX_CONNECTIONS:
            log.warning("xds connection refused", pod=self._pod, reason="too many connections")
            return False
        self._connections.add(connection)
        return True

    def _stream(self, send: Callable[[bytes], None]) -> AdsStream:
        stream = AdsStream(self, DeltaSession(self._memory), send)
        if self._config is not None:
            stream.session.set_config(self._config)
        self._streams.append(stream)
        log.info("envoy connected", pod=self._pod)
        return stream

    # Called by the streams

    @property
    def api(self) -> EnvoyApi:
        """Envoy's API."""
        return self._api

    def stream_changed(self) -> None:
        self._on_change()

    def stream_closed(self, stream: AdsStream) -> None:
        if stream in self._streams:
            self._streams.remove(stream)
            log.info("envoy disconnected", pod=self._pod)
            self._on_change()


class AdsStream:
    """One stream: connects the protocol's state machine with the connection and the clock."""

    def __init__(
        self, server: AdsServer, session: DeltaSession, send: Callable[[bytes], None]
    ) -> None:
        self.session = session
        self._server = server
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    def set_config(self, config: Config) -> None:
        """Send what differs."""
        self.session.set_config(config)
        self._advance()

    def receive(self, message: bytes) -> None:
        """Handle a request. Raises ProtocolError."""
        request, _ = messages.parse_request(self._server.api, message)
        self.session.receive(request)
        self._advance()
        if request.nonce:
            self._server.stream_changed()

    def closed(self) -> None:
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._server.stream_closed(self)

    def _advance(self) -> None:
        if self._is_closed:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for response in self.session.responses(self._loop.time()):
            self._send(messages.serialize_response(response))
        due = self.session.wait_until
        if due is not None:
            delay = max(0.0, due - self._loop.time()) + 0.001
            self._timer = self._loop.call_later(delay, self._advance)
