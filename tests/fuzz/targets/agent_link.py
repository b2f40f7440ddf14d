# SPDX-License-Identifier: Apache-2.0
"""The agent survives every packet that a worker can send, because a worker may be compromised.

The input is a sequence of packets over a real socket to a session whose handlers are the agent's
own, over fakes of the kernel. No handler raises, an invalid message closes the session, no
descriptor is left open, and the counters remain finite and never decrease.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec

from tests.fuzz.target import Target, rearranged
from tests.support.agent_fakes import FakeDataPath, Namespaces, same_node_bypass, workload
from ztunnel.agent.pods.enroller import Enroller
from ztunnel.agent.pods.registry import PodTable
from ztunnel.agent.traffic.udp_redirect import UdpRedirector
from ztunnel.agent.traffic.udp_routes import UdpRouteTable
from ztunnel.agent.workers.counter_collector import CounterCollector
from ztunnel.agent.workers.handlers import InvalidMessageError, MessageHandlers
from ztunnel.agent.workers.registry import SessionTable
from ztunnel.agent.workers.session import Peer, Session
from ztunnel.ipc.introspection import ConnectionRow, PeerRow, TunnelRow, View
from ztunnel.ipc.messages import (
    ConnectUdpUnsupported,
    CounterReport,
    DnsCounts,
    Draining,
    HeldListeners,
    Hello,
    IntrospectionReply,
    ListenerKind,
    PodReady,
    SameNodeAllowed,
    SeriesCounts,
    SocketRequest,
    ToAgent,
    UdpDropCounts,
    UdpSocketRequest,
)
from ztunnel.mesh.model import SocketAddress
from ztunnel.mesh.policy.engine import PolicyEngine
from ztunnel.telemetry.labels import Reporter, connection_labels
from ztunnel.telemetry.node_counters import NodeCounters, TrafficTotals

MAX_FDS = 3  # with one packet
HERE, THERE = SocketAddress("10.0.0.1", 40000), SocketAddress("10.0.0.2", 80)
_loop = asyncio.new_event_loop()
_encode = msgspec.msgpack.encode


class RecordingHandlers(MessageHandlers):
    """Records the errors of handlers, which the session would only log."""

    def __init__(self, incoming: Any = ToAgent) -> None:
        super().__init__(incoming)
        self.errors: list[Exception] = []

    def handle(self, session: Session, message: msgspec.Struct, fds: list[int]) -> None:
        try:
            super().handle(session, message, fds)
        except InvalidMessageError:
            raise
        except Exception as error:
            self.errors.append(error)


class Agent:
    """The components that handle the messages of workers, with one captured pod of two."""

    def __init__(self, worker: socket.socket, directory: Path) -> None:
        kernel, pods, policies = FakeDataPath(), PodTable(), PolicyEngine()
        self.sessions, self.handlers = SessionTable(), RecordingHandlers()
        namespaces = Namespaces(directory)
        self.enroller = Enroller(kernel, namespaces, pods, self.sessions)
        routes = UdpRouteTable("n1", policies, encrypted=False)
        self.udp = UdpRedirector(kernel.udp, routes, pods, self.sessions, lambda: 0.0)
        self.counters = NodeCounters(TrafficTotals(100))
        self.collector = CounterCollector(self.counters)
        bypass = same_node_bypass(kernel, pods, policies)
        Session.register(self.handlers)
        for each in (self.enroller, self.udp, self.collector, bypass):
            each.register(self.handlers)
        namespaces.start("web-uid", "web")
        pod = workload("web", pod_uid="web-uid", addresses=(HERE.ip,))
        waiting = workload("db", pod_uid="db-uid", addresses=(THERE.ip,))
        self.enroller.want({"web-uid": pod, "db-uid": waiting}, {"web-uid", "db-uid"})
        self.session = Session(
            worker,
            Peer(os.getpid(), 15008),
            self.handlers,
            observers=[self.enroller, self.udp, self.collector],
            on_close=self.sessions.remove,
            on_rejected=self.sessions.count_rejected,
        )
        self.sessions.add(self.session)

    def close(self) -> None:
        self.session.close("end of input")
        self.collector.close()
        self.enroller.close()


def check(octets: bytes) -> None:
    before = len(os.listdir("/proc/self/fd"))
    faults: list[dict[str, Any]] = []
    _loop.set_exception_handler(lambda _, context: faults.append(context))
    with tempfile.TemporaryDirectory(prefix="fuzz-agent-link-") as directory:
        _loop.run_until_complete(_run(octets, Path(directory)))
    assert not faults, faults
    assert len(os.listdir("/proc/self/fd")) == before, "a descriptor was left open"


async def _run(octets: bytes, directory: Path) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    near.setblocking(False)
    far.setblocking(False)
    agent = Agent(near, directory)
    queries = [_loop.create_task(agent.session.query(view)) for view in View]
    await asyncio.sleep(0)
    try:
        for packet, count in packets(octets):
            send(far, packet, count)
            agent.session._read()
            agent.udp.sweep()
            drain(far)
        _check_totals(agent.counters)
        assert not agent.handlers.errors, agent.handlers.errors
    finally:
        agent.close()
        far.close()
        replies = await asyncio.gather(*queries, return_exceptions=True)
    for reply in replies:
        assert isinstance(reply, ConnectionError) or msgspec.json.encode(reply)


def _check_totals(counters: NodeCounters) -> None:
    values = [value for rows in counters.traffic.snapshot().values() for _, value in rows]
    dns = counters.dns
    values += [*dns.outcomes.values(), *dns.buckets, dns.forward_failures]
    values += counters.udp_drops.by_reason.values()
    assert all(isinstance(value, int) and value >= 0 for value in values)
    assert math.isfinite(dns.seconds)
    assert dns.seconds >= 0


def send(sock: socket.socket, packet: bytes, count: int) -> None:
    """Send a packet with descriptors of sockets, and one that is no socket among three."""
    fds = [sock.fileno(), sock.fileno(), 0][:count]
    try:
        socket.send_fds(sock, [packet], fds)
    except (BrokenPipeError, ConnectionResetError):  # the session is closed
        return


def drain(sock: socket.socket) -> None:
    """Read what the agent sends."""
    try:
        while True:
            data, fds, _, _ = socket.recv_fds(sock, 1 << 16, 253)
            for fd in fds:
                os.close(fd)
            if not data:
                return
    except (BlockingIOError, ConnectionResetError):
        return


def packets(octets: bytes) -> Iterator[tuple[bytes, int]]:
    """The packets with the number of their descriptors: a byte, two bytes of length, the rest."""
    at = 0
    while at + 3 <= len(octets):
        end = at + 3 + int.from_bytes(octets[at + 1 : at + 3])
        if octets[at + 3 : end]:
            yield octets[at + 3 : end], octets[at] % (MAX_FDS + 1)
        at = end


def framed(packet: bytes, count: int = 0) -> bytes:
    """A packet as `packets` reads it."""
    return bytes([count]) + len(packet).to_bytes(2) + packet


def _reply(number: int, body: object) -> IntrospectionReply:
    return IntrospectionReply(number, msgspec.Raw(_encode(body)))


LABELS = connection_labels(Reporter.SOURCE, None, None)
MESSAGES: tuple[msgspec.Struct, ...] = (
    Hello(
        version="1",
        pid=1,
        worker=0,
        pods=(HeldListeners("web-uid", 7, (ListenerKind.HBONE4, ListenerKind.INBOUND4)),),
    ),
    PodReady("web-uid"),
    SocketRequest("web-uid", 4, 2, udp=False),
    UdpSocketRequest("web-uid", 0),
    ConnectUdpUnsupported("Kubernetes//Pod/shop/web", "web-uid", HERE, THERE, (b"x",)),
    SameNodeAllowed(
        source_ip=HERE.ip, source_identity="i", pod_uid="web-uid", destination=THERE, revision=0
    ),
    _reply(
        1,
        [
            ConnectionRow(
                id=1,
                direction="outbound",
                source=PeerRow("10.0.0.1:1"),
                destination=PeerRow("10.0.0.2:80", "db", "shop", "i"),
                started=1.5,
            )
        ],
    ),
    _reply(2, [TunnelRow(source="a", peer="b", address="c", workload="d", streams=1, served=2)]),
    _reply(3, {"udp_dropped": 1}),
    CounterReport(
        instance=5,
        seq=1,
        series=(SeriesCounts(LABELS, 2, 1, 0, 10, 20),),
        dns=DnsCounts((1, 0, 0), 0, (1,), 0.5),
        udp_drops=UdpDropCounts((1, 2)),
    ),
    Draining(),
)
# In place of any value of a message.
HOSTILE: tuple[object, ...] = (
    None,
    True,
    -1,
    (1 << 64) - 1,
    float("inf"),
    float("nan"),
    "x",
    "::ffff:1.2.3.4",
    b"\xff",
    [],
    ["x"] * 70,
    {"udp_dropped": "x"},
    "y" * 5000,
)


def variants(value: object) -> Iterator[object]:
    """The value with each of its parts replaced by each of HOSTILE, and each key left out."""
    yield from HOSTILE
    if isinstance(value, dict):
        for key, part in value.items():
            yield {other: each for other, each in value.items() if other != key}
            for hostile in variants(part):
                yield {**value, key: hostile}
    elif isinstance(value, list):
        for index, part in enumerate(value):
            for hostile in variants(part):
                yield [*value[:index], hostile, *value[index + 1 :]]


def _mutate(octets: bytes, chance: random.Random) -> bytes:
    parts = [framed(packet, count) for packet, count in packets(octets)]
    spare = [framed(_encode(chance.choice(MESSAGES)), chance.randrange(MAX_FDS + 1))]
    message = msgspec.msgpack.decode(_encode(chance.choice(MESSAGES)))
    spare.append(framed(_encode(replaced(message, chance)), chance.randrange(MAX_FDS + 1)))
    return b"".join(rearranged(parts, spare, chance))


def replaced(value: object, chance: random.Random) -> object:
    """The value with one part replaced."""
    if isinstance(value, dict) and value and chance.randrange(8):
        key = chance.choice(list(value))
        return {**value, key: replaced(value[key], chance)}
    if isinstance(value, list) and value and chance.randrange(8):
        index = chance.randrange(len(value))
        return [*value[:index], replaced(value[index], chance), *value[index + 1 :]]
    return chance.choice(HOSTILE)


_FIRST = cast("Hello", MESSAGES[0])
TARGET = Target(
    check,
    seeds=(
        framed(_encode(_FIRST), 2) + b"".join(framed(_encode(each)) for each in MESSAGES[1:]),
        framed(_encode(_FIRST), 3),
        framed(b"\x83\xa4type\xb3introspection_reply\xa2id\x01\xa4body" + b"\x91" * 3000),
    ),
    mutate=_mutate,
    words=tuple(str(type(each).__struct_config__.tag).encode() for each in MESSAGES),
    max_len=8192,
)
