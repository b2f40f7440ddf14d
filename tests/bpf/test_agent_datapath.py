# SPDX-License-Identifier: Apache-2.0
"""The agent's reconciler on the real kernel: capture, release, restart without a gap."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.bpf.netns_fixture import PEER4, POD4, POD6, Pocket
from tests.support.agent_fakes import EnrollerNode, FakeWorker, workload
from tests.support.waiting import wait_until_async
from ztunnel.agent.datapath import KernelDataPath
from ztunnel.agent.pods.netns_finder import NetnsHandle
from ztunnel.datapath import netns
from ztunnel.datapath.netlink import rtnetlink
from ztunnel.ipc.messages import HeldListeners, ListenerKind, PodAdded, PodRemoved, SocketRequest
from ztunnel.mesh.model import Workload

ELSEWHERE = ("203.0.113.9", 80)


class OnePod:
    """Finds the pocket's pod, whatever is asked for."""

    def __init__(self, pocket: Pocket) -> None:
        self._pocket = pocket

    def refresh(self, wanted: Iterable[str]) -> None:
        pass

    def open(self, pod_uid: str) -> NetnsHandle | None:
        return NetnsHandle(os.dup(self._pocket.pod), os.getpid())


class RealAgent:
    """The reconciler and its worker sessions over the pocket's pins."""

    def __init__(self, pocket: Pocket, path: Path) -> None:
        self.kernel = KernelDataPath(pocket.pin_dir)
        self.path = path
        made = EnrollerNode(self.kernel, OnePod(pocket), path)
        self.enroller, self.sessions, self.server = made.enroller, made.sessions, made.server

    def want(self, *pods: Workload) -> None:
        self.enroller.want({pod.pod_uid: pod for pod in pods}, {pod.pod_uid for pod in pods})
        self.server.start()

    def end(self) -> None:
        self.server.close()
        self.enroller.close()
        self.kernel.close()


@pytest.fixture
def bare(fresh_pocket: Pocket) -> Pocket:
    """A pocket whose pod is not enrolled."""
    fresh_pocket.close_listeners()
    kernel = KernelDataPath(fresh_pocket.pin_dir)
    kernel.unenroll(fresh_pocket.cookie)
    kernel.close()
    return fresh_pocket


def _pod() -> Workload:
    return workload("pocket", pod_uid="pocket-uid", addresses=(POD4, POD6))


def _dials(pocket: Pocket) -> bool:
    """Whether an app's connection to anywhere is taken by a listener in the pod."""
    with pocket.app_socket() as app:
        app.settimeout(1)
        try:
            app.connect(ELSEWHERE)
        except OSError:
            return False
    return True


def _reached(pocket: Pocket) -> bool:
    """Whether the neighbour's connection to the pod is taken."""
    with pocket.peer_socket() as peer:
        peer.settimeout(1)
        try:
            peer.connect((POD4, 8080))
        except OSError:
            return False
    return True


async def test_pod_is_captured_served_and_released(bare: Pocket, tmp_path: Path) -> None:
    agent = RealAgent(bare, tmp_path / "agent.sock")
    try:
        agent.want(_pod())
        worker = FakeWorker(agent.path).greet()
        await wait_until_async(lambda: bare.cookie in agent.kernel.enrolled())
        assert set(worker.listeners["pocket-uid"]) == set(ListenerKind)
        assert _dials(bare)
        assert _reached(bare)
        worker.channel.send(SocketRequest("pocket-uid", 4, 4))
        await wait_until_async(lambda: len(worker.stock) == 4)
        assert all(bare.maps.socket_role(sock).name == "PROXY" for sock in worker.stock)
        agent.enroller.want({}, {"pocket-uid"})
        assert agent.kernel.enrolled() == {}
        assert agent.kernel.attached() == set()
        assert not _reached(bare)  # nothing listens on 8080, and nobody steals it
        await wait_until_async(lambda: bool(worker.of(PodRemoved)))
        worker.close()
    finally:
        agent.end()


async def test_without_worker_connections_are_refused(bare: Pocket, tmp_path: Path) -> None:
    agent = RealAgent(bare, tmp_path / "agent.sock")
    try:
        with netns.entered(bare.pod):
            app = socket.create_server((POD4, 8080))
        with app:
            agent.want(_pod())
            worker = FakeWorker(agent.path).greet()
            await wait_until_async(lambda: bare.cookie in agent.kernel.enrolled())
            assert _reached(bare)
            worker.close()
            await wait_until_async(lambda: not agent.sessions.sessions)
            assert not _dials(bare)
            assert not _reached(bare)  # although the app listens there
    finally:
        agent.end()


async def test_agent_dies_and_the_next_takes_over_without_a_gap(
    bare: Pocket, tmp_path: Path
) -> None:
    first = RealAgent(bare, tmp_path / "first.sock")
    first.want(_pod())
    worker = FakeWorker(first.path).greet()
    await wait_until_async(lambda: bare.cookie in first.kernel.enrolled())
    held = worker.listeners.pop("pocket-uid")  # they survive the session, as in a proxy
    first.end()
    assert _dials(bare)
    assert _reached(bare)
    second = RealAgent(bare, tmp_path / "second.sock")
    try:
        second.want(_pod())
        assert _dials(bare)
        assert _reached(bare)
        again = FakeWorker(second.path)
        cookie = HeldListeners("pocket-uid", bare.cookie, tuple(held))
        again.greet((again.hello(cookie), [sock.fileno() for sock in held.values()]))
        await wait_until_async(lambda: bool(again.of(PodAdded)))
        assert _dials(bare)
        assert _reached(bare)
        for sock in held.values():
            sock.close()
        assert _dials(bare)  # the agent's copies keep them open for the next worker
        assert _reached(bare)
        again.close()
    finally:
        second.end()
    assert not _dials(bare)


def test_only_the_pods_own_listeners_are_adopted(bare: Pocket) -> None:
    kernel = KernelDataPath(bare.pin_dir)
    listeners = kernel.listeners(bare.pod, ipv6=True)
    try:
        for kind, sock in listeners.items():
            assert kernel.is_listener(sock, kind, bare.cookie)
            assert not kernel.is_listener(sock, kind, bare.cookie + 1)
        assert not kernel.is_listener(
            listeners[ListenerKind.INBOUND4], ListenerKind.HBONE4, bare.cookie
        )
        assert not kernel.is_listener(
            listeners[ListenerKind.INBOUND4], ListenerKind.INBOUND6, bare.cookie
        )
        with bare.app_socket() as idle:
            assert not kernel.is_listener(idle, ListenerKind.OUTBOUND4, bare.cookie)
        with socket.socket(socket.AF_UNIX) as other:
            assert not kernel.is_listener(other, ListenerKind.OUTBOUND4, bare.cookie)
    finally:
        for sock in listeners.values():
            sock.close()
        kernel.close()


def test_setting_the_same_listener_again_loses_no_connection(bare: Pocket) -> None:
    kernel = KernelDataPath(bare.pin_dir)
    listeners = kernel.listeners(bare.pod, ipv6=True)
    try:
        kernel.set_listener(POD4, listeners[ListenerKind.INBOUND4])
        kernel.enroll(bare.pod, bare.cookie, (POD4, POD6))
        for _ in range(200):
            kernel.set_listener(POD4, listeners[ListenerKind.INBOUND4])
            assert _reached(bare)
            with suppress(BlockingIOError):
                listeners[ListenerKind.INBOUND4].accept()[0].close()
    finally:
        for sock in listeners.values():
            sock.close()
        kernel.close()


def test_nodes_addresses_are_those_that_reach_beyond_a_link(pocket: Pocket) -> None:
    with netns.entered(pocket.peer):
        found = rtnetlink.reachable_addresses()
    assert PEER4 in found
    assert not [ip for ip in found if ip.startswith(("127.", "fe80:")) or ip == "::1"]
