# SPDX-License-Identifier: Apache-2.0
"""The admin API for port-forward: a port on the node's loopback that asks for proof (0013).

    listen ──▶ key and port on our own pod ──▶ per connection, WAYS at once:
        TLS ── token ── reviewed? ──▶ bytes to and from the admin socket
                          \\──▶ no: why, PENALTY, closed

Every process of the node and every pod on its network can dial here, so nothing is believed and
everything is bounded: how many, for how long, how much before the proof.
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

WAYS = 8  # connections at once; more wait in a backlog as long
REVIEWS = 2  # of tokens at once: the threads are not ours alone
PROOF_TIME = 5.0  # seconds for the handshake, and again for the token
LIFE = 60.0  # seconds that a connection lasts at most
PENALTY = 2.0  # seconds that a refused one keeps its place: so few reviews can be provoked
AGAIN = 5.0  # seconds between looks whether our pod says what it should
_CHUNK = 1 << 16

log = structlog.get_logger()


@dataclass(frozen=True)
class AnnotationStore:
    """The agent's. `said` is the annotation as the watch shows it; `say` writes it, blocking."""

    said: Callable[[], str]
    say: Callable[[str], object]


class Door:
    """One per agent. `refusal(token, audience)` blocks, and is empty for a token that opens."""

    def __init__(self, target: Path, refusal: Callable[[str, str], str]) -> None:
        """`target` is the admin socket. Listens at once. Raises OSError."""
        self._target = target
        self._refusal = refusal
        self._tls, key = _identity()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=WAYS)
        self._listener.setblocking(False)
        self.doorway = AdminEndpoint(self._listener.getsockname()[1], key)
        self._talks: set[asyncio.Task[None]] = set()
        self._reviews = asyncio.Semaphore(REVIEWS)

    async def serve(self) -> None:
        """Take connections until cancelled."""
        loop, room = asyncio.get_running_loop(), asyncio.Semaphore(WAYS)

        def over(talk: asyncio.Task[None]) -> None:
            self._talks.discard(talk)
            room.release()

        while True:
            await room.acquire()
            try:
                sock, _ = await loop.sock_accept(self._listener)
            except OSError as error:  # out of descriptors, or the dialler is gone already
                room.release()
                log.warning("admin port", error=str(error))
                await asyncio.sleep(PENALTY)
                continue
            talk = asyncio.create_task(self._talk(sock))
            self._talks.add(talk)
            talk.add_done_callback(over)

    async def announce(self, pod: AnnotationStore) -> None:
        """Keep our pod's annotation true, until cancelled."""
        text, complaint = str(self.doorway), ""
        while True:
            if pod.said() != text:
                try:
                    await asyncio.to_thread(pod.say, text)
                    complaint = ""
                except Exception as error:
                    if str(error) != complaint:
                        complaint = str(error)
                        log.warning("admin port not announced", error=complaint, note="tried again")
            await asyncio.sleep(AGAIN)

    async def close(self) -> None:
        """Stop listening, and end what is under way."""
        self._listener.close()
        talks = list(self._talks)
        for talk in talks:
            talk.cancel()
        await asyncio.gather(*talks, return_exceptions=True)

    async def _talk(self, sock: socket.socket) -> None:
        """One connection. Whatever a stranger does ends it, and nothing else."""
        with sock, suppress(OSError, ValueError, EOFError):
            async with asyncio.timeout(LIFE):
                try:
                    await self._hear(sock)
                except UnauthenticatedError as stranger:
                    log.warning("admin port: refused", reason=str(stranger))
                    await asyncio.sleep(PENALTY)

    async def _hear(self, sock: socket.socket) -> None:
        reader = asyncio.StreamReader(limit=admin_endpoint.MAX_TOKEN_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        loop = asyncio.get_running_loop()
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, sock, ssl=self._tls, ssl_handshake_timeout=PROOF_TIME
            )
        except OSError as error:
            raise UnauthenticatedError("no TLS") from error
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        try:
            await self._prove(reader, writer)
            await _carry(self._target, reader, writer)
        finally:
            transport.abort()

    async def _prove(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Raises _StrangerError, who has been told why."""
        try:
            async with asyncio.timeout(PROOF_TIME):
                line = await reader.readuntil()
        except (TimeoutError, EOFError, asyncio.LimitOverrunError) as error:
            raise UnauthenticatedError("no token") from error
        token, audience = line.decode("ascii", "replace").strip(), self.doorway.audience
        if not token:
            raise UnauthenticatedError("no token")
        async with self._reviews:
            refusal = await asyncio.to_thread(self._refusal, token, audience)
        answer = f"{admin_endpoint.REJECTED}{refusal}" if refusal else admin_endpoint.OK
        writer.write(
            answer.encode("ascii", "replace")[: admin_endpoint.MAX_REPLY_BYTES - 1] + b"\n"
        )
        await writer.drain()
        if refusal:
            raise UnauthenticatedError(refusal)


class UnauthenticatedError(Exception):
    """Somebody who proved nothing."""


async def _carry(target: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Bytes both ways until one side ends. Raises OSError."""
    answers, questions = await asyncio.open_unix_connection(str(target))
    ways = {
        asyncio.create_task(_copy(reader, questions)),
        asyncio.create_task(_copy(answers, writer)),
    }
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        with suppress(OSError):
            async with asyncio.timeout(PROOF_TIME):
                await writer.drain()
                writer.close()
                await writer.wait_closed()
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        questions.close()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while data := await source.read(_CHUNK):
        target.write(data)
        await target.drain()


def _identity() -> tuple[ssl.SSLContext, str]:
    """A key of our own, in memory only, and the SHA-256 by which others know it."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, admin_endpoint.ACCOUNT)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=3650))  # it lasts as long as this process
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
            said=lambda: view.annotation(*place, admin_endpoint.ANNOTATION),
            say=lambda text: writer.annotate(*place, admin_endpoint.ANNOTATION, text),
        )
        reviewer = TokenReviewer(writer.client, options.namespace)
        door = Door(options.admin_socket, reviewer.refusal)
        try:
            await asyncio.gather(door.serve(), door.announce(pod))
        finally:
            await door.close()
