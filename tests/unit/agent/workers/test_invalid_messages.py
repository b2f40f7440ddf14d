# SPDX-License-Identifier: Apache-2.0
"""A compromised worker can close its own session, and affect nothing else."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import get_args

import msgspec
import pytest
import structlog

from tests.fuzz.targets import agent_link
from tests.support.agent_fakes import EnrollerNode, FakeDataPath, FakeWorker, Namespaces, workload
from tests.support.waiting import wait_until_async
from tests.unit.agent.workers.test_session import hub
from ztunnel.agent.pods.listeners import MAX_OFFERED_NAMESPACES
from ztunnel.agent.workers import registry
from ztunnel.ipc.introspection import View
from ztunnel.ipc.messages import (
    HeldListeners,
    IntrospectionReply,
    ListenerKind,
    PodReady,
    ToAgent,
)

DEEP = b"\x91" * 100_000 + b"\xc0"  # arrays in arrays
INVALID = {
    "no MessagePack": b"\xc1",
    "array": b"\x90",
    "without a tag": b"\x80",
    "unknown tag": msgspec.msgpack.encode({"type": "x"}),
    "message to the worker": msgspec.msgpack.encode({"type": "counter_ack", "seq": 1}),
    "deep body": b"\x83\xa4type\xb3introspection_reply\xa2id\x01\xa4body" + DEEP,
    "deep unknown field": b"\x83\xa4type\xa9pod_ready\xa7pod_uid\xa1a\xa1x" + DEEP,
    "array of 4 billion": b"\x82\xa4type\xaecounter_report\xa6series\xdd\xff\xff\xff\xff",
    "invalid UTF-8": b"\x82\xa4type\xa9pod_ready\xa7pod_uid\xa2\xff\xfe",
    "trailing octets": msgspec.msgpack.encode({"type": "draining"}) + b"x",
    "negative count": msgspec.msgpack.encode(
        {"type": "counter_report", "instance": 1, "seq": 1, "series": [[["a"], -1]]}
    ),
    "infinite time": msgspec.msgpack.encode(
        {
            "type": "counter_report",
            "instance": 1,
            "seq": 1,
            "series": [],
            "dns": [[], 0, [], float("inf")],
        }
    ),
    "text as drops": msgspec.msgpack.encode(
        {"type": "counter_report", "instance": 1, "seq": 1, "series": [], "udp_drops": [["x"]]}
    ),
    "port": msgspec.msgpack.encode({"type": "udp_socket_request", "pod_uid": "p", "port": 70000}),
    "family": msgspec.msgpack.encode(
        {"type": "socket_request", "pod_uid": "p", "family": 5, "count": 1}
    ),
    "address": msgspec.msgpack.encode(
        {
            "type": "same_node_allowed",
            "source_ip": "nonsense",
            "source_identity": "i",
            "pod_uid": "p",
            "destination": {"ip": "10.0.0.1", "port": 1},
            "revision": 1,
        }
    ),
}


@pytest.mark.parametrize("name", INVALID)
async def test_invalid_message_closes_only_its_session(tmp_path: Path, name: str) -> None:
    async with hub(tmp_path) as (workers, recorder, path):
        good, bad = FakeWorker(path, worker=1).greet(), FakeWorker(path, worker=2).greet()
        await wait_until_async(lambda: len(workers.sessions) == 2)
        with structlog.testing.capture_logs() as lines:
            bad.sock.send(INVALID[name])
            await wait_until_async(lambda: bad.ended)
        assert [line["worker"] for line in lines if line["event"] == "worker message rejected"] == [
            2
        ]
        assert workers.registry.rejected_messages == 1
        assert [session.worker for session in workers.sessions] == [1]
        good.channel.send(PodReady("p"))
        await wait_until_async(lambda: ("ready", "p") in recorder.events)
        good.close()


@pytest.mark.parametrize("view", View)
@pytest.mark.parametrize(
    "body",
    [
        {"udp_dropped": "x"},
        {"udp_dropped": -1},
        {"udp_dropped": 1.5},
        ["x"],
        [{"worker": 1}],
        [{"id": 1, "direction": "outbound"}],
        None,
        7,
    ],
    ids=str,
)
async def test_invalid_reply_ends_query_and_session(
    tmp_path: Path, view: View, body: object
) -> None:
    async with hub(tmp_path) as (workers, _, path):
        worker = FakeWorker(path).greet()
        worker.answers = lambda number, _: IntrospectionReply(
            number, msgspec.Raw(msgspec.msgpack.encode(body))
        )
        await wait_until_async(lambda: len(workers.sessions) == 1)
        async with asyncio.timeout(5):
            (reply,) = await workers.query(view, timeout_s=60)
        assert reply.body is None
        await wait_until_async(lambda: worker.ended)
        assert workers.registry.rejected_messages == 1


@pytest.mark.parametrize("kind", get_args(ToAgent), ids=lambda kind: kind.__name__)
def test_no_value_in_any_field_of_any_message_raises(kind: type[msgspec.Struct]) -> None:
    samples = [each for each in agent_link.MESSAGES if type(each) is kind]
    assert samples
    for sample in samples:
        message = msgspec.msgpack.decode(msgspec.msgpack.encode(sample))
        for variant in agent_link.variants(message):
            try:
                packet = msgspec.msgpack.encode(variant)
            except OverflowError:
                continue
            agent_link.check(agent_link.framed(packet, 2))


async def test_sessions_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "MAX_SESSIONS", 2)
    async with hub(tmp_path) as (workers, _, path):
        accepted = [FakeWorker(path, worker=number).greet() for number in range(2)]
        await wait_until_async(lambda: len(workers.sessions) == 2)
        refused = FakeWorker(path, worker=2)
        await wait_until_async(lambda: refused.ended)
        assert [session.worker for session in workers.sessions] == [0, 1]
        for worker in accepted:
            worker.close()


async def test_offered_listeners_do_not_use_up_descriptors(tmp_path: Path) -> None:
    made = EnrollerNode(FakeDataPath(), Namespaces(tmp_path), tmp_path / "agent.sock")
    made.server.start()
    pod = workload()  # has no namespace yet, so no offer can be verified
    made.enroller.want({pod.pod_uid: pod}, {pod.pod_uid})
    worker = FakeWorker(tmp_path / "agent.sock").greet()
    await wait_until_async(lambda: len(made.sessions.sessions) == 1)
    with socket.socket(socket.AF_UNIX) as sock:
        for cookie in range(20):
            held = HeldListeners(pod.pod_uid, cookie, (ListenerKind.HBONE4,))
            worker.channel.send(worker.hello(held), [sock.fileno()])
        known = made.pods.get(pod.pod_uid)
        assert known is not None
        await wait_until_async(lambda: 19 in known.offered)
        assert len(known.offered) == MAX_OFFERED_NAMESPACES
    worker.close()
    made.server.close()
    made.enroller.close()


async def test_descriptor_that_is_not_a_socket_is_rejected_and_closed(tmp_path: Path) -> None:
    made = EnrollerNode(FakeDataPath(), Namespaces(tmp_path), tmp_path / "agent.sock")
    made.server.start()
    worker = FakeWorker(tmp_path / "agent.sock").greet()
    await wait_until_async(lambda: len(made.sessions.sessions) == 1)
    before = len(os.listdir("/proc/self/fd"))
    read, write = os.pipe()
    held = HeldListeners("p", 1, (ListenerKind.HBONE4,))
    worker.channel.send(worker.hello(held), [read])
    os.close(read)
    os.close(write)
    await wait_until_async(lambda: worker.ended)
    assert made.sessions.rejected_messages == 1
    assert len(os.listdir("/proc/self/fd")) == before - 2  # both ends of the session
    made.server.close()
    made.enroller.close()
