# SPDX-License-Identifier: Apache-2.0
"""The enroller on the real kernel: enroll, unenroll, restart without interruption."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.bpf.netns_fixture import PEER4, POD4, POD6, BpfNode
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
    """Pod discovery that finds the node's pod for every UID."""

    def __init__(self, node: BpfNode) -> None:
        self._node = node

    def refresh(self, wanted: Iterable[str]) -> None:
        pass

    def open(self, pod_uid: str) -> NetnsHandle | None:
        return NetnsHandle(os.dup(self._node.pod), os.getpid())

    def is_in_use(self, netns: NetnsHandle) -> bool:
        return True


class RealAgent:
    """The enroller and its worker sessions on the node's pins."""

    def __init__(self, node: BpfNode, path: Path) -> None:
        self.kernel = KernelDataPath(node.pin_dir)
        self.path = path
        made = EnrollerNode(self.kernel, OnePod(node), path)
        self.enroller, self.sessions, self.server = made.enroller, made.sessions, made.server

    def want(self, *pods: Workload) -> None:
        self.enroller.want({pod.pod_uid: pod for pod in pods}, {pod.pod_uid for pod in pods})
        self.server.start()

    def end(self) -> None:
        self.server.close()
        self.enroller.close()
        self.kernel.close()


@pytest.fixture
def bare(fresh_node: BpfNode) -> BpfNode:
    """A node whose pod is not enrolled."""
    fresh_node.close_listeners()
    kernel = KernelDataPath(fresh_node.pin_dir)
    kernel.unenroll(fresh_node.cookie)
    kernel.close()
    return fresh_node


def _pod() -> Workload:
    return workload("node", pod_uid="node-uid", addresses=(POD4, POD6))


def _dials(node: BpfNode) -> bool:
    """Whether a listener in the pod receives an app's outbound connection."""
    with node.app_socket() as app:
        app.settimeout(1)
        try:
            app.connect(ELSEWHERE)
        except OSError:
            return False
    return True


def _reached(node: BpfNode) -> bool:
    """Whether a connection from the peer to the pod succeeds."""
    with node.peer_socket() as peer:
        peer.settimeout(1)
        try:
            peer.connect((POD4, 8080))
        except OSError:
            return False
    return True


async def test_pod_is_captured_gets_sockets_and_is_released(bare: BpfNode, tmp_path: Path) -> None:
    agent = RealAgent(bare, tmp_path / "agent.sock")
    try:
        agent.want(_pod())
        worker = FakeWorker(agent.path).greet()
        await wait_until_async(lambda: bare.cookie in agent.kernel.enrolled())
        assert set(worker.listeners["node-uid"]) == set(ListenerKind)
        assert _dials(bare)
        assert _reached(bare)
        worker.channel.send(SocketRequest("node-uid", 4, 4))
        await wait_until_async(lambda: len(worker.stock) == 4)
        assert all(bare.maps.socket_role(sock).name == "PROXY" for sock in worker.stock)
        agent.enroller.want({}, {"node-uid"})
        assert agent.kernel.enrolled() == {}
        assert agent.kernel.attached() == set()
        assert not _reached(bare)  # nothing listens on 8080 or intercepts it
        await wait_until_async(lambda: bool(worker.of(PodRemoved)))
        worker.close()
    finally:
        agent.end()


async def test_connections_are_refused_without_worker(bare: BpfNode, tmp_path: Path) -> None:
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
            assert not _reached(bare)  # although the app listens on this port
    finally:
        agent.end()


async def test_restarted_agent_adopts_listeners_without_interruption(
    bare: BpfNode, tmp_path: Path
) -> None:
    first = RealAgent(bare, tmp_path / "first.sock")
    first.want(_pod())
    worker = FakeWorker(first.path).greet()
    await wait_until_async(lambda: bare.cookie in first.kernel.enrolled())
    held = worker.listeners.pop("node-uid")  # they outlive the session, as in a proxy
    first.end()
    assert _dials(bare)
    assert _reached(bare)
    second = RealAgent(bare, tmp_path / "second.sock")
    try:
        second.want(_pod())
        assert _dials(bare)
        assert _reached(bare)
        again = FakeWorker(second.path)
        cookie = HeldListeners("node-uid", bare.cookie, tuple(held))
        again.greet((again.hello(cookie), [sock.fileno() for sock in held.values()]))
        await wait_until_async(lambda: bool(again.of(PodAdded)))
        assert _dials(bare)
        assert _reached(bare)
        for sock in held.values():
            sock.close()
        assert _dials(bare)  # the agent's copies remain open for the next worker
        assert _reached(bare)
        again.close()
    finally:
        second.end()
    assert not _dials(bare)


def test_only_listeners_of_the_pod_are_adopted(bare: BpfNode) -> None:
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


def test_replacing_a_listener_with_itself_drops_no_connection(bare: BpfNode) -> None:
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


def test_node_addresses_exclude_loopback_and_link_local(node: BpfNode) -> None:
    with netns.entered(node.peer):
        found = rtnetlink.reachable_addresses()
    assert PEER4 in found
    assert not [ip for ip in found if ip.startswith(("127.", "fe80:")) or ip == "::1"]
