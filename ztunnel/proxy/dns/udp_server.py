# SPDX-License-Identifier: Apache-2.0
"""Queries of a pod's apps by UDP, which the kernel brought to 15053 instead of a name server.

    read → of the mesh: answered at once
         → not: to the server that was asked → answered → cut: by TCP, if the client takes more
                                             → silence, refusal → SERVFAIL

Several workers share the socket; the one that reads a query answers it. A client that repeats its
question while it is being asked waits for the same answer.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace

import dns.rcode
import structlog

from ztunnel.dns import message
from ztunnel.dns.message import Question
from ztunnel.mesh.dns_names import DnsAnswer, lookup
from ztunnel.mesh.model import SocketAddress
from ztunnel.mesh.routing.decisions import Passthrough
from ztunnel.mesh.routing.outbound import route
from ztunnel.proxy.context import Context
from ztunnel.proxy.dns.upstream import LARGEST, Asked, DatagramExchange, StreamExchange
from ztunnel.proxy.io.event_loop import ACCEPT
from ztunnel.proxy.local_pod import Pod
from ztunnel.telemetry.dns_counters import Outcome

QUERIES = 32  # read in one turn, so that connections keep their share
MOST = 256  # of one pod under way at a time, TCP connections of clients included

log = structlog.get_logger()
Source = tuple[str, int] | tuple[str, int, int, int]


def looker(context: Context, pod: Pod) -> Callable[[str], DnsAnswer | None] | None:
    """What answers names for a pod; None as long as the mesh is not known whole."""
    mesh = context.mesh
    workload = mesh.workload(pod.workload) if mesh is not None else None
    if mesh is None or workload is None:
        return None
    return lambda name: lookup(mesh, workload.namespace, name)


def plain_way(context: Context, pod: Pod, server: SocketAddress) -> SocketAddress | None:
    """Where to dial a name server in the clear; None when it must not be: the mesh has it."""
    mesh = context.mesh
    workload = mesh.workload(pod.workload) if mesh is not None else None
    if mesh is None or workload is None:
        return None
    match route(mesh, workload, server, context.choose()):
        case Passthrough(address):
            return address
        case _:
            return None


class QueryServer:
    """One of a pod's UDP sockets on 15053 and after."""

    def __init__(self, context: Context, pod: Pod, sock: socket.socket) -> None:
        self.sock = sock
        self._context = context
        self._pod = pod
        self._pending: set[tuple[object, ...]] = set()
        context.loop.register(sock.fileno(), ACCEPT, self)

    def close(self) -> None:
        """Take no more queries; answers to those under way are lost."""
        self._context.loop.close(self.sock)

    def on_ready(self, mask: int) -> None:
        for _ in range(QUERIES):
            try:
                wire, source = self.sock.recvfrom(LARGEST)
            except OSError:  # nothing left, or an ICMP error for a client that has gone
                return
            self._context.tracker.stats.queries += 1
            self._serve(wire, source)

    def on_failure(self, error: Exception) -> None:
        """Keep reading: one bad query must not end the pod's DNS."""

    def reply(self, wire: bytes | None, source: Source) -> None:
        """Send an answer; without one, or when the client's buffer is full, it is lost."""
        try:
            if wire is not None:
                self.sock.sendto(wire, source)
        except OSError as error:
            log.debug("DNS answer lost", pod=self._pod.workload, error=str(error))

    def fail(self, wire: bytes, source: Source) -> None:
        """SERVFAIL: the client may ask another server."""
        self._context.tracker.dns_query_ended(Outcome.FAILED)
        self.reply(message.error_response(wire, dns.rcode.SERVFAIL), source)

    def forget(self, key: tuple[object, ...]) -> None:
        """A question is not under way any more."""
        self._pending.discard(key)

    def _serve(self, wire: bytes, source: Source) -> None:
        context = self._context
        question = message.read_question(wire)
        if question is None:
            return
        look = looker(context, self._pod)
        if look is None:
            self.fail(wire, source)
            return
        answer = message.answer(wire, look, shuffle=context.shuffle)
        if answer is not None:
            context.tracker.dns_query_ended(Outcome.MESH)
            self.reply(answer, source)
            return
        self._forward(wire, source, question)

    def _forward(self, wire: bytes, source: Source, question: Question) -> None:
        try:
            server = self._context.original_dns_server(self.sock, source[1])
        except OSError:  # nobody was asked: it came to our port directly, or its sender has gone
            self._context.tracker.dns_query_ended(Outcome.FAILED)
            return
        forwarded = Forwarded(self._context, self._pod, self, Asked(server, wire, question), source)
        if forwarded.key in self._pending:
            return
        if len(self._pod.dns_queries) >= MOST:
            self.fail(wire, source)
            return
        self._pending.add(forwarded.key)
        forwarded.start()


class Forwarded:
    """One query on its way to the server that was asked."""

    def __init__(
        self, context: Context, pod: Pod, home: QueryServer, asked: Asked, source: Source
    ) -> None:
        self.key = (source[:2], asked.server, asked.question)
        self._context = context
        self._pod = pod
        self._home = home
        self._asked = asked
        self._source = source
        self._asked_at = context.loop.now
        self._cut = b""  # what came by UDP, truncated
        self._exchange: DatagramExchange | StreamExchange | None = None

    def start(self) -> None:
        """Ask; the client gets an answer, whatever happens."""
        self._pod.live.add(self)
        self._pod.dns_queries.add(self)
        exchange = DatagramExchange(self._context.loop, self._pod, self._asked, self._answered)
        self._exchange = exchange
        exchange.start()

    def abort(self, reason: str) -> None:
        """Give up."""
        self._end(None)

    def drain(self) -> None:
        """It ends soon by itself."""

    def _answered(self, wire: bytes | None) -> None:
        if wire is None or not message.is_truncated(wire):
            self._end(wire)
            return
        self._cut = wire
        way = plain_way(self._context, self._pod, self._asked.server)
        if way is None or message.udp_limit(self._asked.wire) <= message.UDP_PAYLOAD_BYTES:
            self._end(wire)  # the client will come by TCP itself
            return
        asked = replace(self._asked, server=way)
        exchange = StreamExchange(self._context.loop, self._pod, asked, self._whole)
        self._exchange = exchange
        exchange.start()

    def _whole(self, wire: bytes | None) -> None:
        fits = wire is not None and len(wire) <= message.udp_limit(self._asked.wire)
        self._end(wire if fits else self._cut)

    def _end(self, wire: bytes | None) -> None:
        exchange, self._exchange = self._exchange, None
        if self not in self._pod.dns_queries:
            return
        self._pod.dns_queries.discard(self)
        self._pod.live.discard(self)
        self._home.forget(self.key)
        if exchange is not None:
            exchange.cancel()
        tracker = self._context.tracker
        if wire is None:
            tracker.counters.dns.count_forward_failure()
            self._home.fail(self._asked.wire, self._source)
            return
        tracker.counters.dns.observe_forward(self._context.loop.now - self._asked_at)
        tracker.dns_query_ended(Outcome.FORWARDED)
        self._home.reply(wire, self._source)
