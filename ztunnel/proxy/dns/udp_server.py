# SPDX-License-Identifier: Apache-2.0
"""Serves the UDP DNS queries of a pod, which the kernel redirects to port 15053 and up.

    query → for a name of the mesh: answered immediately
          → otherwise forwarded to the original name server
                → response
                → truncated response: repeated by TCP, if the client accepts more
                → timeout or error: SERVFAIL

Workers share the socket; the one that reads a query answers it. A query that is repeated while it
is pending is not forwarded again.
"""

from __future__ import annotations

import socket
from dataclasses import replace

import dns.rcode
import structlog

from ztunnel.dns import message
from ztunnel.dns.message import Question
from ztunnel.mesh.model import SocketAddress
from ztunnel.mesh.routing.decisions import Passthrough
from ztunnel.mesh.routing.outbound import route
from ztunnel.proxy.context import Context
from ztunnel.proxy.dns.responses import name_lookup, remember, shown
from ztunnel.proxy.dns.upstream import (
    MAX_MESSAGE_BYTES,
    DatagramExchange,
    DnsQuery,
    StreamExchange,
)
from ztunnel.proxy.io.event_loop import ACCEPT
from ztunnel.proxy.local_pod import Pod
from ztunnel.telemetry.dns_counters import Outcome

MAX_QUERIES_PER_TURN = 32  # limits the delay of connections
MAX_PENDING_QUERIES = 256  # of one pod, including its DNS connections by TCP

log = structlog.get_logger()
ClientAddress = tuple[str, int] | tuple[str, int, int, int]


def passthrough_address(context: Context, pod: Pod, server: SocketAddress) -> SocketAddress | None:
    """The address to reach a name server in plaintext; None if it must be reached otherwise."""
    mesh = context.mesh
    workload = mesh.workload(pod.workload) if mesh is not None else None
    if mesh is None or workload is None:
        return None
    match route(mesh, workload, server, context.choose()):
        case Passthrough(address):
            return address
        case _:
            return None


class DnsUdpServer:
    """One of a pod's UDP sockets on port 15053 and up."""

    def __init__(self, context: Context, pod: Pod, sock: socket.socket) -> None:
        self.sock = sock
        self._context = context
        self._pod = pod
        self._pending: set[tuple[object, ...]] = set()
        context.loop.register(sock.fileno(), ACCEPT, self)

    def close(self) -> None:
        """Read no more queries. Responses to pending ones are lost."""
        self._context.loop.close(self.sock)

    def on_ready(self, mask: int) -> None:
        for _ in range(MAX_QUERIES_PER_TURN):
            try:
                wire, client = self.sock.recvfrom(MAX_MESSAGE_BYTES)
            except OSError:  # no more queries, or an ICMP error about a former client
                return
            self._context.tracker.stats.queries += 1
            self._serve(wire, client)

    def on_failure(self, error: Exception) -> None:
        """Keep reading: one query must not stop the pod's DNS."""

    def reply(self, wire: bytes | None, client: ClientAddress) -> None:
        """Send a response. It is lost if the client's buffer is full."""
        try:
            if wire is not None:
                self.sock.sendto(wire, client)
        except OSError as error:
            log.debug("DNS response lost", pod=self._pod.workload, error=str(error))

    def fail(self, wire: bytes, client: ClientAddress) -> None:
        """Send SERVFAIL, so that the client can query another name server."""
        self._context.tracker.dns_query_ended(Outcome.FAILED)
        self.reply(message.error_response(wire, dns.rcode.SERVFAIL), client)

    def remove_pending(self, key: tuple[object, ...]) -> None:
        """A forwarded query ended."""
        self._pending.discard(key)

    def _serve(self, wire: bytes, client: ClientAddress) -> None:
        context = self._context
        question = message.read_question(wire)
        if question is None:
            return
        lookup_name = name_lookup(context, self._pod)
        if lookup_name is None:
            self.fail(wire, client)
            return
        answer = message.answer(wire, lookup_name, shuffle=context.shuffle)
        if answer is not None:
            context.tracker.dns_query_ended(Outcome.MESH)
            remember(context, self._pod, question.name, answer)
            self.reply(answer, client)
            return
        self._forward(wire, client, question)

    def _forward(self, wire: bytes, client: ClientAddress, question: Question) -> None:
        try:
            server = self._context.original_dns_server(self.sock, client[1])
        except OSError:  # not redirected but sent to this port, or the sender's socket is closed
            self._context.tracker.dns_query_ended(Outcome.FAILED)
            return
        query = DnsQuery(server, wire, question)
        forwarded = ForwardedQuery(self._context, self._pod, self, query, client)
        if forwarded.key in self._pending:
            return
        if len(self._pod.dns_queries) >= MAX_PENDING_QUERIES:
            self.fail(wire, client)
            return
        self._pending.add(forwarded.key)
        forwarded.start()


class ForwardedQuery:
    """One query that is forwarded to its original name server."""

    def __init__(
        self,
        context: Context,
        pod: Pod,
        server: DnsUdpServer,
        query: DnsQuery,
        client: ClientAddress,
    ) -> None:
        self.key = (client[:2], query.server, query.question)
        self._context = context
        self._pod = pod
        self._server = server
        self._query = query
        self._client = client
        self._started_at = context.loop.now
        self._truncated = b""  # the response by UDP, if it is truncated
        self._exchange: DatagramExchange | StreamExchange | None = None

    def start(self) -> None:
        """Forward the query. In every case the client gets a response."""
        self._pod.live.add(self)
        self._pod.dns_queries.add(self)
        exchange = DatagramExchange(self._context.loop, self._pod, self._query, self._on_response)
        self._exchange = exchange
        exchange.start()

    def abort(self, reason: str) -> None:
        """Stop, and send SERVFAIL."""
        self._finish(None)

    def drain(self) -> None:
        """Draining waits for it: it ends within seconds."""

    def _on_response(self, wire: bytes | None) -> None:
        if wire is None or not message.is_truncated(wire):
            self._finish(wire)
            return
        self._truncated = wire
        address = passthrough_address(self._context, self._pod, self._query.server)
        if address is None or message.udp_limit(self._query.wire) <= message.UDP_PAYLOAD_BYTES:
            self._finish(wire)  # the client repeats the query by TCP
            return
        query = replace(self._query, server=address)
        exchange = StreamExchange(self._context.loop, self._pod, query, self._on_tcp_response)
        self._exchange = exchange
        exchange.start()

    def _on_tcp_response(self, wire: bytes | None) -> None:
        fits = wire is not None and len(wire) <= message.udp_limit(self._query.wire)
        self._finish(wire if fits else self._truncated)

    def _finish(self, wire: bytes | None) -> None:
        exchange, self._exchange = self._exchange, None
        if self not in self._pod.dns_queries:
            return
        self._pod.dns_queries.discard(self)
        self._pod.live.discard(self)
        self._server.remove_pending(self.key)
        if exchange is not None:
            exchange.cancel()
        tracker = self._context.tracker
        name = self._query.question.name
        if wire is not None:
            wire = shown(self._context, self._pod, name, wire)
        if wire is None:
            tracker.counters.dns.count_forward_failure()
            self._server.fail(self._query.wire, self._client)
            return
        tracker.counters.dns.observe_forward(self._context.loop.now - self._started_at)
        tracker.dns_query_ended(Outcome.FORWARDED)
        remember(self._context, self._pod, name, wire)
        self._server.reply(wire, self._client)
