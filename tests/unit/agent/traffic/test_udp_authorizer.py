# SPDX-License-Identifier: Apache-2.0
"""Native UDP to captured pods: authorization by identity, and the log of denied flows."""

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

HOST = "127.0.0.1"  # the address of the test's pod
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
        self.delivered: list[bytes] = []
        self.counted: list[SeriesCounts] = []
        self.known: dict[str, Workload] = {}
        self.authorizer = UdpAuthorizer(
            self.entry,
            self.policies,
            self.pods,
            self.known.get,
            logs=LogSettings(),
            mode=mode,
            on_denied=self.counted.append,
        )
        monkeypatch.setattr(
            udp_admission_maps, "deliver", lambda _, data, *__: self.delivered.append(bytes(data))
        )

    @property
    def at(self) -> SocketAddress:
        return SocketAddress(*self.entry.judges[HOST].getsockname())

    async def receives(self, sock: socket.socket, *payloads: bytes) -> None:
        """Send datagrams, and wait until they are authorized."""
        before = self.authorizer.allowed + self.authorizer.denied
        for payload in payloads:
            sock.sendto(payload, (self.at.ip, self.at.port))
        async with asyncio.timeout(5):
            while self.authorizer.allowed + self.authorizer.denied < before + len(payloads):
                await asyncio.sleep(0)


def client() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((HOST, 0))
    return sock


async def test_pod_without_applicable_policy_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Agent(monkeypatch)
    agent.authorizer.begin_epoch()
    assert agent.entry.opened == {HOST}
    agent.policies.put(STRICT)
    agent.authorizer.begin_epoch()
    assert agent.entry.opened == set()
    assert agent.entry.published == 2
    agent.authorizer.close()


async def test_strict_mode_denies_plaintext_with_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Agent(monkeypatch)
    agent.policies.put(STRICT)
    agent.authorizer.begin_epoch()
    with structlog.testing.capture_logs() as lines, client() as sock:
        source = SocketAddress(*sock.getsockname())
        agent.known[HOST] = workload("stranger")
        await agent.receives(sock, b"hello")
    assert agent.entry.verdicts == [UdpDecision(0, HOST, agent.at, False)]
    assert agent.delivered == []
    assert [count.failed for count in agent.counted] == [1]
    assert "udp" in agent.counted[0].labels
    line = lines[0]
    assert line["event"] == "denied"
    assert (line["src.addr"], line["src.workload"]) == (str(source), "stranger")
    assert (line["dst.workload"], line["policy"]) == ("web", "PeerAuthentication shop/default")
    agent.authorizer.close()


@pytest.mark.parametrize("mode", list(SameNode))
async def test_local_sender_is_identified_by_netns(
    monkeypatch: pytest.MonkeyPatch, mode: SameNode
) -> None:
    """With `encrypt`, a namespace does not prove an identity."""

    agent = Agent(monkeypatch, mode)
    near = pod("near", 8, HOST)
    agent.pods.put(near)
    agent.policies.put(STRICT)
    agent.authorizer.pod_captured(agent.web)
    with client() as sock:
        agent.entry.speakers[SocketAddress(*sock.getsockname())] = 8
        with structlog.testing.capture_logs() as lines:
            await agent.receives(sock, b"hello")
    allowed = mode is SameNode.DIRECT
    assert [line["event"] for line in lines] == ["udp flow allowed" if allowed else "denied"]
    assert lines[0].get("src.identity") == (near.workload.identity if allowed else None)
    assert agent.entry.verdicts == [UdpDecision(8, HOST, agent.at, allowed)]
    assert agent.delivered == ([b"hello"] if allowed else [])
    agent.authorizer.close()


async def test_sender_with_address_of_other_pod_is_not_trusted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent = Agent(monkeypatch)
    agent.pods.put(pod("near", 8, "10.1.0.8"))
    agent.policies.put(STRICT)
    agent.authorizer.pod_captured(agent.web)
    with client() as sock:
        agent.entry.speakers[SocketAddress(*sock.getsockname())] = 8
        await agent.receives(sock, b"hello")
    assert [verdict.allowed for verdict in agent.entry.verdicts] == [False]
    agent.authorizer.close()


async def test_datagrams_are_read_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Agent(monkeypatch)
    agent.authorizer.pod_captured(agent.web)
    with client() as sock:
        await agent.receives(sock, *(b"%d" % number for number in range(2 * BATCH + 1)))
    assert len(agent.delivered) == 2 * BATCH + 1
    agent.authorizer.close()


async def test_authorizer_sockets_are_closed_with_their_pod(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent = Agent(monkeypatch)
    agent.authorizer.reconcile()
    sock = agent.entry.judges[HOST]
    agent.pods.remove(agent.web.uid)
    agent.authorizer.begin_epoch()
    assert sock.fileno() == -1
