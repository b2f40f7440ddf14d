# SPDX-License-Identifier: Apache-2.0
"""TLS handshakes with a server on 127.0.0.1."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Handshake:
    """`subject`: the common name of the server's certificate. `data`: what it sent first."""

    subject: str
    serial: int
    alpn: str | None
    version: str | None
    data: bytes


def client_context(
    alpn: tuple[str, ...] = (), certificate: Path | None = None, authority: str = ""
) -> ssl.SSLContext:
    """A client; `certificate`: PEM with a key. `authority`: PEM, empty to verify nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if authority:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=authority)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if certificate is not None:
        context.load_cert_chain(certificate)
    return context


def handshake(
    port: int,
    name: str | None,
    context: ssl.SSLContext | None = None,
    *,
    send: bytes = b"",
    receive: int = 1024,
) -> Handshake:
    """Connect with SNI `name`, send, and receive once. Raises OSError (SSLError, reset)."""
    context = context or client_context()
    with (
        socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as plain,
        context.wrap_socket(plain, server_hostname=name) as tls,
    ):
        if send:
            tls.sendall(send)
        data = tls.recv(receive) if receive else b""
        der = tls.getpeercert(True)
        assert der is not None
        leaf = x509.load_der_x509_certificate(der)
        common = leaf.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        subject = str(common[0].value) if common else ""
        return Handshake(
            subject, leaf.serial_number, tls.selected_alpn_protocol(), tls.version(), data
        )
