# SPDX-License-Identifier: Apache-2.0
"""The same-node bypass: validation of reports, order of revocation, events of connections."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog

from tests.support.agent_fakes import FakeDataPath, FakeWorker, same_node_bypass, workload
from tests.support.waiting import wait_until_async
from tests.unit.agent.test_agent import Agent, agent, namespace, pod
from ztunnel.agent.config import SameNode
from ztunnel.agent.log_settings import LogSettings
from ztunnel.agent.pods.netns_finder import NetnsHandle
from ztunnel.agent.pods.pod import Pod, PodError, PodState, RetryReason
from ztunnel.agent.pods.registry import PodTable
from ztunnel.agent.traffic import same_node, same_node_events
from ztunnel.agent.traffic.same_node import SameNodeBypass, validate
from ztunnel.agent.traffic.same_node_events import SameNodeEvents
from ztunnel.datapath.bpf.layout import CloseReason, SameNodeState
from ztunnel.datapath.bpf.ring_buffer import ConnectionEvent
from ztunnel.datapath.same_node_maps import BypassEntry, SameNodeConnection
from ztunnel.ipc.messages import SameNodeAllowed
from ztunnel.mesh.model import GatewayPort, SocketAddress
from ztunnel.telemetry.access_log_filter import BURST_S
from ztunnel.telemetry.log_drop_counters import LogDropReason, log_drops

REVISION = 7


def captured(name: str, ip: str, cookie: int) -> Pod:
    made = workload(name, pod_uid=f"{name}-uid", addresses=(ip,), account=name)
    return Pod(made, PodState.CAPTURED, None, cookie=cookie)


A, B = captured("a", "10.244.1.2", 11), captured("b", "10.244.1.3", 12)
REPORT = SameNodeAllowed(
    source_ip="10.244.1.2",
    source_identity=A.workload.identity,
    pod_uid="b-uid",
    destination=SocketAddress("10.244.1.3", 8080),
    revision=REVISION,
)


def test_valid_report_justifies_bypass_entry() -> None:
    expected = BypassEntry(11, SocketAddress("10.244.1.3", 8080), 12)
    assert validate(REPORT, [A, B], REVISION, SameNode.DIRECT) == expected


@pytest.mark.parametrize(
    "mismatch",
    [
        {"source_ip": "10.244.2.9"},  # no pod of this node
        {"source_ip": "10.244.1.3"},  # the destination itself
        {"source_identity": B.workload.identity},
        {"pod_uid": "c-uid"},
        {"pod_uid": "a-uid"},
        {"destination": SocketAddress("10.244.1.2", 8080)},
        {"destination": SocketAddress("10.244.1.3", 15001)},
        {"destination": SocketAddress("10.244.1.3", 15006)},
        {"destination": SocketAddress("10.244.1.3", 15008)},
        {"revision": REVISION - 1},
        {"revision": REVISION + 1},
    ],
    ids=str,
)
def test_report_with_any_mismatch_is_rejected(mismatch: dict[str, Any]) -> None:
    report = msgspec.structs.replace(REPORT, **mismatch)
    assert isinstance(validate(report, [A, B], REVISION, SameNode.DIRECT), str)


def test_only_the_waypoint_of_a_pod_may_bypass_the_proxy() -> None:
    behind = msgspec.structs.replace(B.workload, waypoint="default/waypoint")
    target = Pod(behind, PodState.CAPTURED, None, cookie=12)
    reason = "connections to the destination pass waypoint default/waypoint"
    assert validate(REPORT, [A, target], REVISION, SameNode.DIRECT) == reason
    other = msgspec.structs.replace(A.workload, gateway="default/other")
    source = Pod(other, PodState.CAPTURED, None, cookie=11)
    assert validate(REPORT, [source, target], REVISION, SameNode.DIRECT) == reason
    gateway = msgspec.structs.replace(A.workload, gateway="default/waypoint")
    source = Pod(gateway, PodState.CAPTURED, None, cookie=11)
    assert isinstance(validate(REPORT, [source, target], REVISION, SameNode.DIRECT), BypassEntry)
    ingress = msgspec.structs.replace(other, gateway_ports=(GatewayPort(80),))
    source = Pod(ingress, PodState.CAPTURED, None, cookie=11)
    assert isinstance(validate(REPORT, [source, target], REVISION, SameNode.DIRECT), BypassEntry)


@pytest.mark.parametrize("state", [PodState.PENDING, PodState.STARTING])
def test_report_about_uncaptured_pod_is_rejected(state: PodState) -> None:
    late = captured("b", "10.244.1.3", 12)
    late.state = state
    assert isinstance(validate(REPORT, [A, late], REVISION, SameNode.DIRECT), str)
    late.state = PodState.CAPTURED
    late.capture_error = PodError(RetryReason.NOT_REDIRECTED, "not in the kernel yet")
    assert isinstance(validate(REPORT, [A, late], REVISION, SameNode.DIRECT), str)


def test_encrypt_mode_rejects_all_reports() -> None:
    assert isinstance(validate(REPORT, [A, B], REVISION, SameNode.ENCRYPT), str)


# The order of steps in an agent


async def _pair(a: Agent) -> FakeWorker:
    """An agent with two pods that a worker serves, and a bypass entry between them."""
    for name in ("web", "db"):
        a.namespaces.start(f"{name}-uid", name)
    a.say(namespace(), pod("web", 2), pod("db", 3), pod("far", 9, node="n2"))
    a.enroller.advance()
    await wait_until_async(lambda: len(a.store.current()) == 2)
    worker = FakeWorker(a.options.agent_socket).greet()
    await wait_until_async(a.is_serving, "readiness")
    await _allow_bypass(a, worker)
    return worker


async def _allow_bypass(a: Agent, worker: FakeWorker) -> None:
    worker.channel.send(_report(a))
    await wait_until_async(lambda: bool(a.kernel.given), "a bypass entry")


def _report(a: Agent, **other: Any) -> SameNodeAllowed:
    report = SameNodeAllowed(
        source_ip="10.244.1.2",
        source_identity="spiffe://cluster.local/ns/shop/sa/web",
        pod_uid="db-uid",
        destination=SocketAddress("10.244.1.3", 80),
        revision=a.view.revision,
    )
    return msgspec.structs.replace(report, **other)


async def test_local_change_revokes_bypass_before_it_is_applied(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        worker = await _pair(a)
        heard: list[int] = []
        a.kernel.on_revoke = lambda: heard.append(a.probe.revision)
        for change in (
            {"uid": "another"},  # re-created under its name
            {"serviceAccountName": "other"},
            {"hostNetwork": True},
            {},
        ):
            a.kernel.given.append(BypassEntry(1, SocketAddress("10.244.1.3", 80), 2))
            before = a.probe.revision
            heard.clear()
            a.say(pod("db", 3, **change))
            assert heard[0] == before
            assert a.kernel.given == []
        a.kernel.given.append(BypassEntry(1, SocketAddress("10.244.1.3", 80), 2))
        a.view.delete("Pod", "shop", "db")
        a.publish()
        assert a.kernel.given == []
        worker.close()


async def test_change_on_other_node_revokes_nothing(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        worker = await _pair(a)
        before = a.kernel.revocations
        a.say(pod("far", 9, node="n2", uid="another"), pod("further", 10, node="n3"))
        assert a.kernel.revocations == before
        assert a.kernel.given
        worker.close()


async def test_pod_that_moves_to_or_from_node_counts_as_local(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        worker = await _pair(a)
        a.say(pod("far", 9, node="n1"))
        assert a.kernel.given == []
        await _allow_bypass(a, worker)
        a.say(pod("far", 9, node="n2"))
        assert a.kernel.given == []
        worker.close()


async def test_unenrollment_revokes_bypass(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        worker = await _pair(a)
        a.say(namespace(mode=""))
        assert a.kernel.given == []
        worker.channel.send(_report(a))
        await asyncio.sleep(0.05)
        assert a.kernel.given == []
        worker.close()


async def test_last_worker_leaving_revokes_bypass(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        worker = await _pair(a)
        second = FakeWorker(a.options.agent_socket, worker=1).greet()
        await wait_until_async(lambda: len(a.sessions.sessions) == 2)
        second.close()
        await wait_until_async(lambda: len(a.sessions.sessions) == 1)
        assert a.kernel.given
        worker.close()
        await wait_until_async(lambda: not a.sessions.sessions)
        assert a.kernel.given == []


async def test_report_of_old_revision_or_unserved_pod_is_rejected(
    tmp_path: Path,
) -> None:
    async with agent(tmp_path) as a:
        worker = await _pair(a)
        a.kernel.given.clear()
        worker.channel.send(_report(a, revision=a.view.revision - 1))
        worker.channel.send(_report(a, pod_uid="other-uid"))
        mute = FakeWorker(a.options.agent_socket, ready=False, worker=1).greet()
        await wait_until_async(lambda: len(a.sessions.sessions) == 2)
        mute.channel.send(_report(a))
        await wait_until_async(lambda: a.same_node.stats.reports_rejected == 1)
        assert a.kernel.given == []
        mute.close()
        worker.close()


async def test_status_has_mode_and_bypass_entries(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        worker = await _pair(a)
        _, status = await a.get("/v1/status")
        assert status["same_node"]["mode"] == "direct"
        assert status["same_node"]["bypass_entries"] == 1
        a.same_node.renew()
        assert a.kernel.lease == same_node.LEASE_S
        worker.close()


# Events and lists of connections


def _entry(source: int = 11, target: int = 12) -> SameNodeConnection:
    return SameNodeConnection(
        source=SocketAddress("10.244.1.2", 40000),
        destination=SocketAddress("10.244.1.3", 80),
        netns_cookie=source,
        destination_cookie=target,
        epoch=1,
        owner=99,
        start_ns=0,
        state=SameNodeState.ESTABLISHED,
    )


def _ended(port: int = 40000, close_reason: CloseReason = CloseReason.ORDERLY) -> ConnectionEvent:
    return ConnectionEvent(
        source=SocketAddress("10.244.1.2", port),
        destination=SocketAddress("10.244.1.3", 80),
        netns_cookie=11,
        destination_cookie=12,
        owner=99,
        duration=0.25,
        sent=10,
        received=1000,
        srtt_us=40,
        retransmits=1,
        close_reason=close_reason,
    )


def read(kernel: FakeDataPath, bypass: SameNodeBypass, *pods: Pod) -> None:
    """Process the kernel's events in an agent with these pods."""
    SameNodeEvents(kernel, bypass, PodTable(pods), logs=LogSettings()).read()


def _traffic(kernel: FakeDataPath) -> SameNodeBypass:
    return same_node_bypass(kernel, PodTable([A, B]))


def test_closed_connection_is_logged_like_the_proxys() -> None:
    kernel = FakeDataPath()
    traffic = _traffic(kernel)
    kernel.events = [_ended(), _ended(close_reason=CloseReason.RESET)]
    with structlog.testing.capture_logs() as lines:
        read(kernel, traffic, A, B)
    assert [line["event"] for line in lines] == ["connection", "connection"]
    first = lines[0]
    assert first["same_node"] is True
    assert first["direction"] == "outbound"
    assert (first["src.addr"], first["dst.addr"]) == ("10.244.1.2:40000", "10.244.1.3:80")
    assert (first["src.workload"], first["dst.workload"]) == ("a", "b")
    assert first["src.identity"] == A.workload.identity
    assert first["dst.identity"] == B.workload.identity
    assert (first["bytes_sent"], first["bytes_recv"], first["duration"]) == (10, 1000, "250ms")
    assert "error" not in first
    assert lines[1]["error"] == "connection reset"
    assert (traffic.stats.closed, traffic.stats.failed) == (2, 1)
    assert (traffic.stats.sent, traffic.stats.received) == (20, 2000)


def test_excess_close_events_are_summarized() -> None:
    kernel = FakeDataPath()
    traffic = _traffic(kernel)
    kernel.events = [_ended(port) for port in range(1000, 6000)]
    with structlog.testing.capture_logs() as lines:
        read(kernel, traffic, A, B)
    assert len(lines) == same_node_events.MAX_LOG_LINES + 1
    assert sum(line.get("connections", 1) for line in lines) == 5000
    assert sum(line["bytes_recv"] for line in lines) == 5_000_000
    assert traffic.stats.closed == 5000


def test_connection_of_deleted_pod_is_logged_with_its_name() -> None:
    kernel = FakeDataPath()
    pods = PodTable([A, B])
    traffic = same_node_bypass(kernel, pods)
    assert traffic.connections() == []
    kernel.events = [_ended()]
    pods.remove(A.uid)
    pods.remove(B.uid)
    with structlog.testing.capture_logs() as lines:
        read(kernel, traffic)
    assert lines[0]["src.workload"] == "a"


def test_bypassed_connections_have_the_rows_of_workers() -> None:
    kernel = FakeDataPath()
    kernel.connections = [_entry()]
    row = _traffic(kernel).connections()[0]
    assert row["source"]["address"] == "10.244.1.2:40000"
    assert row["destination"]["identity"] == B.workload.identity
    assert row["same_node"] is True


def test_capture_terminates_earlier_bypassed_connections(tmp_path: Path) -> None:
    kernel = FakeDataPath()
    a = captured("a", "10.244.1.2", 11)
    a.netns = NetnsHandle(os.open(tmp_path, os.O_RDONLY), 1)
    traffic = same_node_bypass(kernel, PodTable([a, B]))
    kernel.connections = [_entry(), _entry(13, 14)]
    traffic.pod_captured(B)
    assert kernel.terminated == [_entry()]
    kernel.events = [_ended(close_reason=CloseReason.UNEXPECTED_PEER)]
    read(kernel, traffic)
    assert kernel.terminated[1:] == [_ended(close_reason=CloseReason.UNEXPECTED_PEER)]
    assert traffic.stats.closed == 0
    a.close()


def test_pair_with_unexpected_peer_is_quarantined() -> None:
    kernel = FakeDataPath()
    pods = PodTable([A, B])
    traffic = same_node_bypass(kernel, pods)
    traffic.set_revision(REVISION)
    traffic.allow(REPORT)
    assert kernel.given
    kernel.events = [_ended(close_reason=CloseReason.UNEXPECTED_PEER)]
    read(kernel, traffic)
    assert kernel.given == []
    traffic.allow(REPORT)
    assert kernel.given == []
    pods.put(captured("b", "10.244.1.3", 20))  # the pod in a new namespace
    traffic.allow(REPORT)
    assert kernel.given


def test_close_events_beyond_the_rate_limit_are_not_logged() -> None:
    kernel = FakeDataPath()
    traffic = _traffic(kernel)
    kernel.events = [_ended(port) for port in range(1000, 1090)]
    before = log_drops.by_reason[LogDropReason.RATE_LIMIT]
    logs = LogSettings(access_lines_per_s=2)
    with structlog.testing.capture_logs() as lines:
        SameNodeEvents(kernel, traffic, PodTable([A, B]), logs=logs).read()
    assert len(lines) == 2 * BURST_S
    assert log_drops.by_reason[LogDropReason.RATE_LIMIT] - before == 90 - 2 * BURST_S
