# SPDX-License-Identifier: Apache-2.0
"""The agent survives every packet that a gateway process can send: it may be compromised.

As in `agent_link`: the input is a sequence of packets to a session whose handlers are the agent's.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from tests.fuzz.target import Target, rearranged
from tests.fuzz.targets.agent_link import (
    MAX_FDS,
    RecordingHandlers,
    drain,
    framed,
    packets,
    replaced,
    send,
)
from tests.support.agent_fakes import FakeDataPath, workload
from ztunnel.agent.gateways.pods import GatewayPods
from ztunnel.agent.gateways.queries import GatewayQueries, GatewayQueryError
from ztunnel.agent.gateways.rejections import RejectedConfig, annotation_value
from ztunnel.agent.pods.netns_finder import NetnsHandle
from ztunnel.agent.pods.pod import Pod
from ztunnel.agent.pods.registry import PodTable
from ztunnel.agent.workers.registry import SessionTable
from ztunnel.agent.workers.session import Peer, Session
from ztunnel.ipc.gateway_messages import (
    FromGateway,
    GatewayHello,
    GatewayListenerKind,
    GatewayRejected,
    GatewayReply,
    GatewayView,
    HeldGatewayListeners,
    RejectedResource,
)
from ztunnel.ipc.messages import SocketRequest

_loop = asyncio.new_event_loop()
_encode = msgspec.msgpack.encode


class Agent:
    """The components that handle the messages, with a gateway pod, and one without namespace."""

    def __init__(self, near: socket.socket, directory: Path) -> None:
        kernel, self.captured, self.sessions = FakeDataPath(), PodTable(), SessionTable()
        self.handlers = RecordingHandlers(FromGateway)
        self.pods = GatewayPods(kernel, self.captured, self.sessions)
        self.rejected, self.queries = RejectedConfig(self.pods), GatewayQueries(self.sessions)
        Session.register(self.handlers)
        for each in (self.pods, self.rejected, self.queries):
            each.register(self.handlers)
        (directory / "netns").touch()
        fd = os.open(directory / "netns", os.O_RDONLY)
        served, waiting = (
            msgspec.structs.replace(workload(name, pod_uid=f"{name}-uid"), gateway="shop/gw")
            for name in ("gw", "late")
        )
        self.captured.put(Pod(served, netns=NetnsHandle(fd, 1), cookie=kernel.cookie(fd)))
        self.captured.put(Pod(waiting))
        self.session = Session(
            near,
            Peer(os.getpid(), 15010),
            self.handlers,
            observers=[self.pods, self.queries],
            on_close=self.sessions.remove,
            on_rejected=self.sessions.count_rejected,
            process="gateway",
        )
        self.sessions.add(self.session)

    def close(self) -> None:
        self.session.close("end of input")
        self.pods.close()
        for pod in self.captured:
            pod.close()


def check(octets: bytes) -> None:
    before = len(os.listdir("/proc/self/fd"))
    faults: list[dict[str, Any]] = []
    _loop.set_exception_handler(lambda _, context: faults.append(context))
    with tempfile.TemporaryDirectory(prefix="fuzz-gateway-link-") as directory:
        _loop.run_until_complete(_run(octets, Path(directory)))
    assert not faults, faults
    assert len(os.listdir("/proc/self/fd")) == before, "a descriptor was left open"


async def _run(octets: bytes, directory: Path) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    near.setblocking(False)
    far.setblocking(False)
    agent = Agent(near, directory)
    query: asyncio.Task[bytes] | None = None
    try:
        for packet, count in packets(octets):
            send(far, packet, count)
            agent.session._read()
            if query is None and agent.session.is_joined:
                query = _loop.create_task(agent.queries.query("gw-uid", GatewayView.XDS))
                await asyncio.sleep(0)
            agent.pods.reconcile()
            drain(far)
        for pod in agent.pods.pods():
            annotation_value(agent.rejected.of_pod(pod.workload.pod_uid))
        assert not agent.handlers.errors, agent.handlers.errors
    finally:
        agent.close()
        far.close()
        replies = await asyncio.gather(*([query] if query else []), return_exceptions=True)
    for reply in replies:
        assert isinstance(reply, bytes | GatewayQueryError), reply


_HELD = (GatewayListenerKind.XDS4, GatewayListenerKind.METRICS4)
MESSAGES: tuple[msgspec.Struct, ...] = (
    GatewayHello(version="1", pid=1, pods=(HeldGatewayListeners("gw-uid", 7, _HELD),)),
    GatewayHello(version="1", pid=1, pods=(HeldGatewayListeners("late-uid", 7, _HELD[:1]),)),
    SocketRequest("gw-uid", 4, 2),
    GatewayRejected("gw-uid", (RejectedResource("t", "n", "m"),)),
    GatewayReply(1, b"{", more=True),
    GatewayReply(1, b"}"),
    GatewayReply(1, error="none"),
)


def _mutate(octets: bytes, chance: random.Random) -> bytes:
    parts = [framed(packet, count) for packet, count in packets(octets)]
    spare = [framed(_encode(chance.choice(MESSAGES)), chance.randrange(MAX_FDS + 1))]
    message = msgspec.msgpack.decode(_encode(chance.choice(MESSAGES)))
    spare.append(framed(_encode(replaced(message, chance)), chance.randrange(MAX_FDS + 1)))
    return b"".join(rearranged(parts, spare, chance))


TARGET = Target(
    check,
    seeds=(
        framed(_encode(MESSAGES[0]), 2) + b"".join(framed(_encode(each)) for each in MESSAGES[2:]),
        framed(_encode(MESSAGES[1]), 1) + framed(_encode(MESSAGES[2])),
        framed(_encode(MESSAGES[0]), 3),
    ),
    mutate=_mutate,
    words=tuple(str(type(each).__struct_config__.tag).encode() for each in MESSAGES),
    max_len=8192,
)
