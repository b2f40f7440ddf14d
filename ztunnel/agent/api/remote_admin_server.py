# SPDX-License-Identifier: Apache-2.0
"""The admin API for `kubectl port-forward`: a TLS port on the node's loopback (decision 0013).

    listen --> publish port and key in the pod's annotation --> accept, MAX_CONNECTIONS at once:
        TLS handshake --> token --> TokenReview --> authenticated: relay to the admin socket
                                                |-> rejected: reason, REJECTION_DELAY_S, close

Every process of the node and every pod on its network can connect. Nothing that a client sends is
trusted before it is authenticated, and the number of connections, their duration and the data
before authentication are limited.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ztunnel.agent.config import Options
from ztunnel.identity import chain
from ztunnel.kube import admin_endpoint
from ztunnel.kube.admin_endpoint import AdminEndpoint
from ztunnel.kube.client.access import Access
from ztunnel.kube.view.cluster_view import ClusterView
from ztunnel.kube.writers.pod_writer import PodWriter
from ztunnel.kube.writers.token_review import TokenReviewer

MAX_CONNECTIONS = 8  # at once; the backlog has the same length
MAX_REVIEWS = 2  # TokenReviews at once, as they occupy threads
AUTH_TIMEOUT_S = 5.0  # for the handshake, and again for the token
MAX_DURATION_S = 60.0  # of a connection
REJECTION_DELAY_S = 2.0  # a rejected connection occupies its slot: limits the rate of reviews
ANNOTATION_INTERVAL_S = 5.0  # between checks of the annotation
CHUNK_BYTES = 1 << 16

log = structlog.get_logger()


@dataclass(frozen=True)
class AnnotationStore:
    """The annotation of the agent's pod. `read` returns it as watched; `write` blocks."""

    read: Callable[[], str]
    write: Callable[[str], object]


class AdminTlsServer:
    """One per agent. `review(token, audience)` blocks; it returns a reason to reject, or ""."""

    def __init__(self, target: Path, review: Callable[[str, str], str]) -> None:
        """`target` is the admin socket. Listens at once. Raises OSError."""
        self._target = target
        self._review = review
        self._tls, key = _identity()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=MAX_CONNECTIONS)
        self._listener.setblocking(False)
        self.endpoint = AdminEndpoint(self._listener.getsockname()[1], key)
        self._connections: set[asyncio.Task[None]] = set()
        self._reviews = asyncio.Semaphore(MAX_REVIEWS)

    async def serve(self) -> None:
        """Accept connections until cancelled."""
        loop, slots = asyncio.get_running_loop(), asyncio.Semaphore(MAX_CONNECTIONS)

        def on_done(task: asyncio.Task[None]) -> None:
            self._connections.discard(task)
            slots.release()

        while True:
            await slots.acquire()
            try:
                sock, _ = await loop.sock_accept(self._listener)
            except OSError as error:  # out of descriptors, or the client has closed already
                slots.release()
                log.warning("remote admin accept failed", error=str(error))
                await asyncio.sleep(REJECTION_DELAY_S)
                continue
            task = asyncio.create_task(self._serve(sock))
            self._connections.add(task)
            task.add_done_callback(on_done)

    async def announce(self, pod: AnnotationStore) -> None:
        """Reconcile the pod's annotation with the port and key, until cancelled."""
        text, last_error = str(self.endpoint), ""
        while True:
            if pod.read() != text:
                try:
                    await asyncio.to_thread(pod.write, text)
                    last_error = ""
                except Exception as error:
                    if str(error) != last_error:
                        last_error = str(error)
                        log.warning("remote admin port not published, will retry", error=last_error)
            await asyncio.sleep(ANNOTATION_INTERVAL_S)

    async def close(self) -> None:
        """Stop listening, and close all connections."""
        self._listener.close()
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, sock: socket.socket) -> None:
        """Serve one connection; its errors close it and affect nothing else."""
        with sock, suppress(OSError, ValueError, EOFError):
            async with asyncio.timeout(MAX_DURATION_S):
                try:
                    await self._authenticate_and_relay(sock)
                except UnauthenticatedError as error:
                    log.warning("remote admin client rejected", reason=str(error))
                    await asyncio.sleep(REJECTION_DELAY_S)

    async def _authenticate_and_relay(self, sock: socket.socket) -> None:
        reader = asyncio.StreamReader(limit=admin_endpoint.MAX_TOKEN_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        loop = asyncio.get_running_loop()
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, sock, ssl=self._tls, ssl_handshake_timeout=AUTH_TIMEOUT_S
            )
        except OSError as error:
            raise UnauthenticatedError("no TLS") from error
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        try:
            await self._authenticate(reader, writer)
            await _relay(self._target, reader, writer)
        finally:
            transport.abort()

    async def _authenticate(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Check the token and send the result. Raises UnauthenticatedError."""
        try:
            async with asyncio.timeout(AUTH_TIMEOUT_S):
                line = await reader.readuntil()
        except (TimeoutError, EOFError, asyncio.LimitOverrunError) as error:
            raise UnauthenticatedError("no token") from error
        token, audience = line.decode("ascii", "replace").strip(), self.endpoint.audience
        if not token:
            raise UnauthenticatedError("no token")
        async with self._reviews:
            rejection = await asyncio.to_thread(self._review, token, audience)
        reply = f"{admin_endpoint.REJECTED}{rejection}" if rejection else admin_endpoint.OK
        writer.write(reply.encode("ascii", "replace")[: admin_endpoint.MAX_REPLY_BYTES - 1] + b"\n")
        await writer.drain()
        if rejection:
            raise UnauthenticatedError(rejection)


class UnauthenticatedError(Exception):
    """The client did not authenticate; the text is the reason."""


async def _relay(target: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy bytes in both directions until one side closes. Raises OSError."""
    responses, requests = await asyncio.open_unix_connection(str(target))
    copies = {
        asyncio.create_task(_copy(reader, requests)),
        asyncio.create_task(_copy(responses, writer)),
    }
    try:
        await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
        with suppress(OSError):
            async with asyncio.timeout(AUTH_TIMEOUT_S):
                await writer.drain()
                writer.close()
                await writer.wait_closed()
    finally:
        for copy in copies:
            copy.cancel()
        await asyncio.gather(*copies, return_exceptions=True)
        requests.close()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while data := await source.read(CHUNK_BYTES):
        target.write(data)
        await target.drain()


def _identity() -> tuple[ssl.SSLContext, str]:
    """A new key, in memory only, and the SHA-256 of its certificate."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, admin_endpoint.ACCOUNT)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=3650))  # longer than the process runs
        .sign(key, hashes.SHA256())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    chain.load(
        context,
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )
    return context, certificate.fingerprint(hashes.SHA256()).hex()


async def serve_remote_admin(access: Access, options: Options, view: ClusterView) -> None:
    """Serve the port and announce it on the agent's own pod, until cancelled.

    Raises AccessError, OSError.
    """
    place = options.namespace, options.pod_name
    with closing(PodWriter(access.client(), options.node)) as writer:
        pod = AnnotationStore(
            read=lambda: view.annotation(*place, admin_endpoint.ANNOTATION),
            write=lambda text: writer.annotate(*place, admin_endpoint.ANNOTATION, text),
        )
        reviewer = TokenReviewer(writer.client, options.namespace)
        server = AdminTlsServer(options.admin_socket, reviewer.refusal)
        try:
            await asyncio.gather(server.serve(), server.announce(pod))
        finally:
            await server.close()
