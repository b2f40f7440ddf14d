# SPDX-License-Identifier: Apache-2.0
"""An HTTP/3 client for one request."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration

TIMEOUT_S = 4.0


class _Client(QuicConnectionProtocol):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._http = H3Connection(self._quic)
        self.headers: dict[str, str] = {}
        self.body = b""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def quic_event_received(self, event: Any) -> None:
        for each in self._http.handle_event(event):
            if isinstance(each, HeadersReceived):
                self.headers |= {k.decode(): v.decode() for k, v in each.headers}
            elif isinstance(each, DataReceived):
                self.body += each.data
            if getattr(each, "stream_ended", False) and not self.done.done():
                self.done.set_result(None)

    def send(self, host: str, path: str) -> None:
        headers = {":method": "GET", ":scheme": "https", ":authority": host, ":path": path}
        stream = self._quic.get_next_available_stream_id()
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        self._http.send_headers(stream, pairs, end_stream=True)
        self.transmit()


def fetch_http3(
    port: int, host: str, path: str = "/", server_name: str = "", *, address: str = "127.0.0.1"
) -> tuple[dict[str, str], bytes]:
    """Return the headers and the body of the response.

    Raises ConnectionError if there is no connection.
    """
    request = (host, path, server_name or host)
    return asyncio.run(_fetch((address, port), *request))


async def _fetch(
    place: tuple[str, int], host: str, path: str, server_name: str
) -> tuple[dict[str, str], bytes]:
    config = QuicConfiguration(
        alpn_protocols=H3_ALPN, server_name=server_name, verify_mode=ssl.CERT_NONE
    )
    async with (
        asyncio.timeout(TIMEOUT_S),
        connect(*place, configuration=config, create_protocol=_Client) as client,
    ):
        assert isinstance(client, _Client)
        client.send(host, path)
        await client.done
        return client.headers, client.body
