# SPDX-License-Identifier: Apache-2.0
"""An independent HBONE client: the h2 library over Python's ssl."""

from __future__ import annotations

import os
import socket
import ssl
import tempfile
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events

from tests.unit.proxy.harness import DEADLINE
from ztunnel.ipc.messages import Certificate

Headers = list[tuple[str, str]]


def tls_context(certificate: Certificate | None, roots_pem: bytes, alpn: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=roots_pem.decode())
    if alpn:
        context.set_alpn_protocols([alpn])
    if certificate is not None:
        _show(context, certificate)
    return context


def server_context(certificate: Certificate) -> ssl.SSLContext:
    """A TLS context for HBONE, with another OpenSSL than the proxy's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=certificate.roots_pem.decode())
    context.set_alpn_protocols(["h2"])
    _show(context, certificate)
    return context


def _show(context: ssl.SSLContext, certificate: Certificate) -> None:
    with tempfile.TemporaryDirectory(prefix="zt-") as directory:
        path = Path(directory, "pem")
        path.write_bytes(certificate.key_pem + b"\n" + certificate.chain_pem)
        context.load_cert_chain(os.fspath(path))


class Http2Client:
    """One connection; `events` collects the events of h2."""

    def __init__(
        self,
        address: tuple[str, int],
        certificate: Certificate | None,
        roots_pem: bytes,
        *,
        source: str,
        alpn: str = "h2",
    ) -> None:
        raw = socket.create_connection(address, DEADLINE, source_address=(source, 0))
        self.sock = tls_context(certificate, roots_pem, alpn).wrap_socket(raw)
        config = h2.config.H2Configuration(client_side=True, validate_outbound_headers=False)
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.events: list[h2.events.Event] = []
        self.flush()

    def __enter__(self) -> Http2Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()

    def flush(self) -> None:
        self.sock.sendall(self.h2.data_to_send())

    def connect(self, authority: str, extra: Headers | None = None, **pseudo: str) -> int:
        headers = [(":method", pseudo.get("method", "CONNECT")), (":authority", authority)]
        stream_id: int = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream_id, headers + (extra or []))
        self.flush()
        return stream_id

    def request(self, headers: Headers) -> int:
        stream_id: int = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream_id, headers)
        self.flush()
        return stream_id

    def wait(self, kind: type[Any], stream_id: int) -> Any:
        """The first event of a kind on a stream; reads until it arrives."""
        while True:
            for event in self.events:
                if isinstance(event, kind) and getattr(event, "stream_id", None) == stream_id:
                    return event
            self.read()

    def read(self) -> None:
        data = self.sock.recv(1 << 16)
        if not data:
            raise EOFError("closed by the proxy")
        self.events += self.h2.receive_data(data)
        self.flush()

    def headers(self, stream_id: int) -> dict[str, str]:
        event = self.wait(h2.events.ResponseReceived, stream_id)
        return {_text(name): _text(value) for name, value in event.headers}

    def status(self, stream_id: int) -> int:
        return int(self.headers(stream_id)[":status"])


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode()
