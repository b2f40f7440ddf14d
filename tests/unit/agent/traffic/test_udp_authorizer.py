# SPDX-License-Identifier: Apache-2.0
"""Native UDP into captured pods: who is let in by which identity, and what is said of the rest."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest
import structlog

from tests.support.agent_fakes import FakeUdpEntry, workload
from ztunnel.agent.config import SameNode
from ztunnel.agent.log_settings import LogSettings
from ztunnel.agent.pods.pod import Pod, PodState
from ztunnel.agent.pods.registry import PodTable
from ztunnel.agent.traffic.udp_authorizer import BATCH, UdpAuthorizer
from ztunnel.datapath import udp_admission_maps
from ztunnel.datapath.udp_admission_maps import UdpDecision
from ztunnel.ipc.messages import SeriesCounts
from ztunnel.mesh.model import SocketAddress, Workload
from ztunnel.mesh.policy.engine import PolicyEngine
from ztunnel.mesh.policy.model import Level, MtlsMode, PeerAuthentication, Selection

HOST = "127.0.0.1"  # the test's pod has it: loopback stands in for the pod's namespace
STRICT = PeerAuthentication(
    namespace="shop",
    name="default",
    level=Level.NAMESPACE,
    selection=Selection(namespace="shop"),
    mode=MtlsMode.STRICT,
)


def pod(name: str, cookie: int, *addresses: str) -> Pod:
    made = Pod(workload(name, addresses=addresses), state=PodState.CAPTURED, cookie=cookie)
    made.netns = cast("Any", SimpleNamespace(fd=-1, close=lambda: None))
    return made


class Agent:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, mode: SameNode = SameNode.DIRECT) -> None:
        self.entry, self.policies = FakeUdpEntry(), PolicyEngine()
        self.web = pod("web", 7, HOST)
        self.pods = PodTable([self.web])
        self.brought: list[bytes] = []
        self.counted: list[SeriesCounts] = []
        self.known: dict[str, Workload] = {}
        self.judge = UdpAuthorizer(
            self.entry,
            self.policies,
            self.pods,
            self.known.get,
            logs=LogSettings(),
            mode=mode,
            on_denied=self.counted.append,
        )
        monkeypatch.setattr(
            udp_admission_maps, "deliver", lambda _, data, *__: self.brought.append(bytes(data))
        )

    @property
    def at(self) -> SocketAddress:
        return SocketAddress(*self.entry.judges[HOST].getsockname())

    async def hears(self, sock: socket.socket, *payloads: bytes) -> None:
        """The datagrams arrive, and are judged."""
        before = self.judge.allowed + self.judge.denied
        for payload in payloads:
            sock.sendto(payload, (self.at.ip, self.at.port))
        async with asyncio.timeout(5):
            while self.judge.allowed + self.judge.denied < before + len(payloads):
                await asyncio.sleep(0)


def client() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((HOST, 0))
    return sock


async def test_pod_without_applicable_policy_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Agent(monkeypatch)
    agent.judge.begin_epoch()
    assert agent.entry.opened == {HOST}
    agent.policies.put(STRICT)
    agent.judge.begin_epoch()
    assert agent.entry.opened == set()
    assert agent.entry.published == 2
    agent.judge.close()


async def test_strict_mode_denies_plaintext_with_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Agent(monkeypatch)
    agent.policies.put(STRICT)
    agent.judge.begin_epoch()
    with structlog.testing.capture_logs() as lines, client() as sock:
        source = SocketAddress(*sock.getsockname())
        agent.known[HOST] = workload("stranger")
        await agent.hears(sock, b"hello")
    assert agent.entry.verdicts == [UdpDecision(0, HOST, agent.at, False)]
    assert agent.brought == []
    assert [count.failed for count in agent.counted] == [1]
    assert "udp" in agent.counted[0].labels
    line = lines[0]
    assert line["event"] == "denied"
    assert (line["src.addr"], line["src.workload"]) == (str(source), "stranger")
    assert (line["dst.workload"], line["policy"]) == ("web", "PeerAuthentication shop/default")
    agent.judge.close()


@pytest.mark.parametrize("mode", list(SameNode))
async def test_local_sender_is_identified_by_netns(
    monkeypatch: pytest.MonkeyPatch, mode: SameNode
) -> None:
    """Not where traffic inside the node is to be encrypted: who comes so has proven nothing."""

    agent = Agent(monkeypatch, mode)
    near = pod("near", 8, HOST)
    agent.pods.put(near)
    agent.policies.put(STRICT)
    agent.judge.pod_captured(agent.web)
    with client() as sock:
        agent.entry.speakers[SocketAddress(*sock.getsockname())] = 8
        with structlog.testing.capture_logs() as lines:
            await agent.hears(sock, b"hello")
    allowed = mode is SameNode.DIRECT
    assert [line["event"] for line in lines] == ["udp flow allowed" if allowed else "denied"]
    assert lines[0].get("src.identity") == (near.workload.identity if allowed else None)
    assert agent.entry.verdicts == [UdpDecision(8, HOST, agent.at, allowed)]
    assert agent.brought == ([b"hello"] if allowed else [])
    agent.judge.close()


async def test_sender_with_address_of_other_pod_is_not_trusted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent = Agent(monkeypatch)
    agent.pods.put(pod("near", 8, "10.1.0.8"))
    agent.policies.put(STRICT)
    agent.judge.pod_captured(agent.web)
    with client() as sock:
        agent.entry.speakers[SocketAddress(*sock.getsockname())] = 8
        await agent.hears(sock, b"hello")
    assert [verdict.allowed for verdict in agent.entry.verdicts] == [False]
    agent.judge.close()


async def test_datagrams_are_read_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Agent(monkeypatch)
    agent.judge.pod_captured(agent.web)
    with client() as sock:
        await agent.hears(sock, *(b"%d" % number for number in range(2 * BATCH + 1)))
    assert len(agent.brought) == 2 * BATCH + 1
    agent.judge.close()


async def test_authorizer_sockets_are_closed_with_their_pod(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent = Agent(monkeypatch)
    agent.judge.reconcile()
    sock = agent.entry.judges[HOST]
    agent.pods.remove(agent.web.uid)
    agent.judge.begin_epoch()
    assert sock.fileno() == -1
