# SPDX-License-Identifier: Apache-2.0
"""Enrollment: order of steps, failing closed, adoption, and no state for re-created pods."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from tests.support.agent_fakes import (
    EnrollerNode,
    FakeDataPath,
    FakeWorker,
    Namespaces,
    workload,
)
from tests.support.waiting import wait_until_async
from ztunnel.agent.pods import enroller
from ztunnel.agent.pods.pod import Pod, PodError, PodState, RetryReason
from ztunnel.ipc.messages import (
    HeldListeners,
    ListenerKind,
    PodAdded,
    PodReady,
    PodRemoved,
    SocketRequest,
    Sockets,
)
from ztunnel.mesh.model import Workload


class Node:
    """An enroller with its workers and a fake kernel."""

    def __init__(self, tmp_path: Path, kernel: FakeDataPath) -> None:
        self.kernel = kernel
        self.namespaces = Namespaces(tmp_path)
        self.path = tmp_path / "agent.sock"
        made = EnrollerNode(kernel, self.namespaces, self.path)
        self.enroller, self.pods = made.enroller, made.pods
        self.sessions, self.server = made.sessions, made.server
        self.server.start()

    def want(self, *pods: Workload, present: tuple[Workload, ...] = ()) -> None:
        self.enroller.want(
            {pod.pod_uid: pod for pod in pods}, {pod.pod_uid for pod in (*pods, *present)}
        )

    def pod(self, pod: Workload) -> Pod:
        found = self.pods.get(pod.pod_uid)
        assert found is not None
        return found

    def state(self, pod: Workload) -> PodState:
        return self.pod(pod).state

    def error(self, pod: Workload) -> PodError | None:
        return self.pod(pod).error

    def reason(self, pod: Workload) -> RetryReason | None:
        error = self.error(pod)
        return error.reason if error else None

    async def captured(self, pod: Workload) -> None:
        await wait_until_async(lambda: self.state(pod) is PodState.CAPTURED, "captured")

    async def capture(self) -> tuple[Workload, int]:
        """A captured pod, and the cookie of its namespace."""
        pod = workload()
        cookie = self.namespaces.start(pod.pod_uid, "a")
        self.want(pod)
        await self.captured(pod)
        return pod, cookie

    async def worker(self, *, ready: bool = True, number: int = 0) -> FakeWorker:
        before = len(self.sessions.sessions)
        made = FakeWorker(self.path, ready=ready, worker=number).greet()
        await wait_until_async(lambda: len(self.sessions.sessions) > before, "worker joins")
        return made


@asynccontextmanager
async def node(tmp_path: Path, kernel: FakeDataPath | None = None) -> AsyncIterator[Node]:
    made = Node(tmp_path, kernel or FakeDataPath())
    try:
        yield made
    finally:
        made.server.close()
        made.enroller.close()


async def test_kernel_redirects_only_after_a_worker_is_ready(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        worker = await n.worker(ready=False)
        pod = workload()
        cookie = n.namespaces.start(pod.pod_uid, "a")
        n.want(pod)
        await wait_until_async(lambda: bool(worker.of(PodAdded)))
        assert n.kernel.journal == [("listen", cookie)]
        worker.channel.send(PodReady(pod.pod_uid))
        await wait_until_async(lambda: len(n.kernel.journal) > 1)
        assert n.kernel.journal[1:] == [("enroll", cookie, pod.addresses)]
        assert set(n.kernel.steered) == set(pod.addresses)
        worker.close()


async def test_worker_gets_all_listeners_and_pod_identity(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        worker = await n.worker()
        pod, cookie = await n.capture()
        added = worker.of(PodAdded)[0]
        assert isinstance(added, PodAdded)
        assert (added.identity, added.netns_cookie) == (pod.identity, cookie)
        assert set(worker.listeners[pod.pod_uid]) == set(ListenerKind)
        worker.close()


async def test_pod_is_captured_after_timeout_without_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enroller, "READY_TIMEOUT_S", 0.05)

    async with node(tmp_path) as n:
        pod, cookie = await n.capture()
        assert cookie in n.kernel.pods
        assert n.kernel.steered == {}  # no listener: refused, not sent in plaintext
        worker = await n.worker()
        await wait_until_async(lambda: pod.pod_uid in worker.listeners)
        assert set(n.kernel.steered) == set(pod.addresses)
        worker.close()


async def test_unenrollment_changes_kernel_before_workers(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        worker = await n.worker()
        pod, cookie = await n.capture()
        n.want(present=(pod,))
        assert n.kernel.journal[-1] == ("unenroll", cookie)
        assert n.kernel.steered == {}
        await wait_until_async(lambda: bool(worker.of(PodRemoved)))
        assert worker.of(PodRemoved) == [PodRemoved(pod.pod_uid, gone=False)]
        worker.close()


async def test_deleted_pod_leaves_no_state(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        worker = await n.worker()
        pod, _ = await n.capture()
        held = n.pod(pod)
        n.want()
        assert held.netns is None
        assert held.listeners == {}
        assert (n.kernel.pods, n.kernel.links, n.kernel.steered) == ({}, set(), {})
        await wait_until_async(lambda: bool(worker.of(PodRemoved)))
        assert worker.of(PodRemoved) == [PodRemoved(pod.pod_uid, gone=True)]
        worker.close()


async def test_recreated_pod_inherits_nothing_of_its_namesake(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        worker = await n.worker()
        first = workload("db")
        old = n.namespaces.start(first.pod_uid, "a")
        n.want(first)
        await n.captured(first)
        second = workload("db", addresses=first.addresses)
        new = n.namespaces.start(second.pod_uid, "b")
        n.want(second)
        await n.captured(second)
        assert n.kernel.pods == {new: second.addresses}
        assert n.kernel.links == {new}
        assert old not in n.kernel.pods
        holder = n.pod(second)
        assert n.kernel.steered == dict(holder.inbound_listeners())
        await wait_until_async(lambda: bool(worker.of(PodRemoved)))
        assert worker.of(PodRemoved) == [PodRemoved(first.pod_uid, gone=True)]
        worker.close()


async def test_restarted_sandbox_is_captured_again(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        worker = await n.worker()
        pod, _ = await n.capture()
        new = n.namespaces.start(pod.pod_uid, "b")
        n.enroller.recheck()
        await n.captured(pod)
        assert set(n.kernel.pods) == {new}
        await wait_until_async(lambda: len(worker.of(PodAdded)) == 2)
        worker.close()


async def test_pod_without_processes_is_released(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        worker = await n.worker()
        pod, _ = await n.capture()
        n.namespaces.stop(pod.pod_uid)
        n.enroller.recheck()
        assert n.kernel.pods == {}
        assert n.state(pod) is PodState.PENDING
        assert n.reason(pod) is RetryReason.NETNS_NOT_FOUND
        worker.close()


async def test_pod_is_captured_when_its_namespace_appears(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        worker = await n.worker()
        pod = workload()
        n.want(pod)
        assert not n.enroller.is_settled
        n.namespaces.start(pod.pod_uid, "a")
        n.enroller.advance()
        await n.captured(pod)
        assert n.enroller.is_settled
        worker.close()


async def test_nodes_own_namespace_is_never_captured(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        pod = workload()
        n.namespaces.host.add(pod.pod_uid)
        n.want(pod)
        assert n.kernel.journal == []
        assert n.reason(pod) is RetryReason.HOST_NETNS
        assert "own network namespace" in str(n.error(pod))


async def test_changed_address_reaches_kernel_and_workers(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        worker = await n.worker()
        pod, cookie = await n.capture()
        moved = workload(pod.name, pod_uid=pod.pod_uid)
        n.want(moved)
        assert n.kernel.pods == {cookie: moved.addresses}
        assert set(n.kernel.steered) == set(moved.addresses)
        await wait_until_async(lambda: len(worker.of(PodAdded)) == 2)
        second = worker.of(PodAdded)[1]
        assert isinstance(second, PodAdded)
        assert (second.addresses, second.listeners) == (moved.addresses, ())
        worker.close()


async def test_label_change_does_not_affect_capture(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        worker = await n.worker()
        pod, _ = await n.capture()
        before = list(n.kernel.journal)
        n.want(msgspec.structs.replace(pod, labels={"version": "2"}))
        assert n.kernel.journal == before
        worker.close()


async def test_port_in_use_is_reported_and_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enroller, "READY_TIMEOUT_S", 0.02)

    async with node(tmp_path) as n:
        worker = await n.worker()
        pod = workload()
        cookie = n.namespaces.start(pod.pod_uid, "a")
        n.kernel.port_taken.add(cookie)
        n.want(pod)
        await n.captured(pod)
        assert n.reason(pod) is RetryReason.PORT_IN_USE
        assert "15008" in str(n.error(pod))
        assert cookie in n.kernel.pods  # fails closed
        n.kernel.port_taken.clear()
        n.enroller.advance()
        assert n.error(pod) is None
        await wait_until_async(lambda: pod.pod_uid in worker.listeners)
        worker.close()


async def test_kernel_error_of_one_pod_is_retried(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        worker = await n.worker()
        pod = workload()
        cookie = n.namespaces.start(pod.pod_uid, "a")
        n.kernel.broken = True
        n.want(pod)
        await wait_until_async(lambda: "No space left" in str(n.error(pod)))
        n.kernel.broken = False
        n.enroller.advance()
        assert n.error(pod) is None
        assert cookie in n.kernel.pods
        worker.close()


async def test_removal_of_kernel_entry_is_retried(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        worker = await n.worker()
        pod, other = workload(), workload("other")
        cookie = n.namespaces.start(pod.pod_uid, "a")
        n.want(pod)
        await n.captured(pod)
        n.kernel.broken = True
        n.want(other)
        assert not n.enroller.is_settled
        n.kernel.broken = False
        n.enroller.advance()
        assert cookie not in n.kernel.pods
        worker.close()


async def test_last_worker_closes_listeners_but_not_redirect(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        first, second = await n.worker(number=1), await n.worker(number=2)
        pod, cookie = await n.capture()
        first.close()
        await wait_until_async(lambda: len(n.sessions.sessions) == 1)
        held = n.pod(pod)
        listeners = list(held.listeners.values())
        assert all(sock.fileno() >= 0 for sock in listeners)
        second.close()
        await wait_until_async(lambda: not n.sessions.sessions)
        assert all(sock.fileno() < 0 for sock in listeners)
        assert cookie in n.kernel.pods
        third = await n.worker(number=3)
        await wait_until_async(lambda: pod.pod_uid in third.listeners)
        third.close()


async def test_sockets_are_sent_in_batches_and_closed_by_agent(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        worker = await n.worker()
        pod, _ = await n.capture()
        worker.channel.send(SocketRequest(pod.pod_uid, 6, 100))
        worker.channel.send(SocketRequest("stranger", 4, 16))
        await wait_until_async(lambda: len(worker.stock) == 100)
        assert len(worker.of(Sockets)) == 2
        worker.channel.send(SocketRequest(pod.pod_uid, 4, -5))
        await wait_until_async(lambda: worker.ended)
        assert n.kernel.made == 100


async def test_socket_request_is_bounded(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        worker = await n.worker()
        pod, _ = await n.capture()
        worker.channel.send(SocketRequest(pod.pod_uid, 4, 1_000_000))
        await wait_until_async(lambda: len(worker.stock) == enroller.MAX_SOCKETS)
        worker.close()


# After a restart of the agent


def _pinned(cookie: int, pod: Workload) -> FakeDataPath:
    kernel = FakeDataPath()
    kernel.pods[cookie] = pod.addresses
    kernel.links.add(cookie)
    return kernel


def _held(pod: Workload, cookie: int) -> tuple[HeldListeners, list[socket.socket]]:
    socks = []
    for _ in ListenerKind:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind("")
        sock.listen(1)
        socks.append(sock)
    return HeldListeners(pod.pod_uid, cookie, tuple(ListenerKind)), socks


async def test_restarted_agent_leaves_pinned_entries_untouched(tmp_path: Path) -> None:
    pod = workload()
    cookie = Namespaces(tmp_path).start(pod.pod_uid, "a")
    async with node(tmp_path, _pinned(cookie, pod)) as n:
        n.namespaces.start(pod.pod_uid, "a")
        n.want(pod)
        assert n.state(pod) is PodState.CAPTURED
        assert n.kernel.journal == []
        assert n.enroller.is_settled


async def test_restarted_agent_adopts_listeners_from_worker(tmp_path: Path) -> None:
    pod = workload()
    cookie = Namespaces(tmp_path).start(pod.pod_uid, "a")
    async with node(tmp_path, _pinned(cookie, pod)) as n:
        n.namespaces.start(pod.pod_uid, "a")
        n.want(pod)
        worker = FakeWorker(n.path)
        held, socks = _held(pod, cookie)
        worker.greet((worker.hello(held), [sock.fileno() for sock in socks]))
        await wait_until_async(lambda: bool(worker.of(PodAdded)))
        added = worker.of(PodAdded)[0]
        assert isinstance(added, PodAdded)
        assert added.listeners == ()
        assert ("listen", cookie) not in n.kernel.journal
        assert set(n.pod(pod).listeners) == set(ListenerKind)
        names = {sock.getsockname() for sock in socks}
        assert {sock.getsockname() for sock in n.kernel.steered.values()} <= names
        second = await n.worker(number=2)
        await wait_until_async(lambda: pod.pod_uid in second.listeners)
        taken = {sock.getsockname() for sock in second.listeners[pod.pod_uid].values()}
        assert taken == names
        for sock in socks:
            sock.close()
        worker.close()
        second.close()


async def test_worker_that_joined_before_listener_holder_gets_listeners(
    tmp_path: Path,
) -> None:
    pod = workload()
    cookie = Namespaces(tmp_path).start(pod.pod_uid, "a")
    async with node(tmp_path, _pinned(cookie, pod)) as n:
        n.namespaces.start(pod.pod_uid, "a")
        n.kernel.port_taken.add(cookie)  # by the listeners that the older worker holds
        n.want(pod)
        newer = await n.worker(number=2)
        await wait_until_async(lambda: bool(newer.of(PodAdded)))
        assert n.reason(pod) is RetryReason.PORT_IN_USE
        assert "15008" in str(n.error(pod))
        older = FakeWorker(n.path)
        held, socks = _held(pod, cookie)
        older.greet((older.hello(held), [sock.fileno() for sock in socks]))
        await wait_until_async(
            lambda: set(newer.listeners.get(pod.pod_uid, ())) == set(ListenerKind)
        )
        assert n.error(pod) is None
        for sock in socks:
            sock.close()
        newer.close()
        older.close()


async def test_listeners_offered_before_namespace_is_known_are_adopted(
    tmp_path: Path,
) -> None:
    pod = workload()
    cookie = Namespaces(tmp_path).start(pod.pod_uid, "a")
    async with node(tmp_path, _pinned(cookie, pod)) as n:
        n.want(pod)
        worker = FakeWorker(n.path)
        held, socks = _held(pod, cookie)
        worker.greet((worker.hello(held), [sock.fileno() for sock in socks]))
        await wait_until_async(lambda: bool(n.sessions.sessions))
        assert cookie in n.kernel.pods  # not removed: it may be the entry of this pod
        n.namespaces.start(pod.pod_uid, "a")
        n.enroller.advance()
        assert set(n.pod(pod).listeners) == set(ListenerKind)
        await wait_until_async(lambda: bool(worker.of(PodAdded)))
        assert worker.of(PodRemoved) == []
        for sock in socks:
            sock.close()
        worker.close()


async def test_listeners_of_former_namespace_are_closed(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        pod = workload()
        cookie = n.namespaces.start(pod.pod_uid, "b")
        n.want(pod)
        worker = FakeWorker(n.path)
        held, socks = _held(pod, cookie + 1)
        worker.greet((worker.hello(held), [sock.fileno() for sock in socks]))
        await n.captured(pod)
        assert worker.of(PodRemoved) == [PodRemoved(pod.pod_uid, gone=True)]
        assert set(worker.listeners[pod.pod_uid]) == set(ListenerKind)
        assert ("listen", cookie) in n.kernel.journal
        for sock in socks:
            sock.close()
        worker.close()


async def test_worker_with_invalid_listeners_starts_the_pod_anew(tmp_path: Path) -> None:
    """Its other sockets in the pod belong to the same, removed data path."""
    async with node(tmp_path) as n:
        pod = workload()
        cookie = n.namespaces.start(pod.pod_uid, "a")
        n.want(pod)
        worker = FakeWorker(n.path)
        fakes = [socket.socket(socket.AF_UNIX) for _ in ListenerKind]
        held = HeldListeners(pod.pod_uid, cookie, tuple(ListenerKind))
        worker.greet((worker.hello(held), [sock.fileno() for sock in fakes]))
        await n.captured(pod)
        changes = [m for m in worker.messages if isinstance(m, PodAdded | PodRemoved)]
        assert changes[0] == PodRemoved(pod.pod_uid, gone=False)
        assert isinstance(changes[1], PodAdded)
        assert set(changes[1].listeners) == set(ListenerKind)
        for sock in fakes:
            sock.close()
        worker.close()


async def test_socket_that_is_no_listener_is_replaced(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        pod = workload()
        cookie = n.namespaces.start(pod.pod_uid, "a")
        n.want(pod)
        worker = FakeWorker(n.path)
        fakes = [socket.socket(socket.AF_UNIX) for _ in ListenerKind]
        held = HeldListeners(pod.pod_uid, cookie, tuple(ListenerKind))
        worker.greet((worker.hello(held), [sock.fileno() for sock in fakes]))
        await n.captured(pod)
        assert set(worker.listeners[pod.pod_uid]) == set(ListenerKind)
        for sock in fakes:
            sock.close()
        worker.close()


async def test_pods_deleted_during_agent_restart_are_removed_from_worker(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        gone, opted_out = workload("gone"), workload("out")
        n.want(present=(opted_out,))
        worker = FakeWorker(n.path)
        (one, socks1), (two, socks2) = _held(gone, 5), _held(opted_out, 6)
        fds = [sock.fileno() for sock in (*socks1, *socks2)]
        worker.greet((worker.hello(one, two), fds))
        await wait_until_async(lambda: len(worker.of(PodRemoved)) == 2)
        assert worker.of(PodRemoved) == [
            PodRemoved(gone.pod_uid, gone=True),
            PodRemoved(opted_out.pod_uid, gone=False),
        ]
        for sock in (*socks1, *socks2):
            sock.close()
        worker.close()


async def test_restarted_agent_removes_stale_kernel_entries(tmp_path: Path) -> None:
    stale = workload("stale")
    kernel = _pinned(4242, stale)
    kernel.links.add(777)  # a link whose map entry is gone
    async with node(tmp_path, kernel) as n:
        n.want()
        assert (n.kernel.pods, n.kernel.links) == ({}, set())


async def test_kernel_entry_of_recreated_pod_is_removed(tmp_path: Path) -> None:
    pod = workload()
    async with node(tmp_path, _pinned(4242, pod)) as n:
        worker = await n.worker()
        new = n.namespaces.start(pod.pod_uid, "b")
        n.want(pod)
        await n.captured(pod)
        n.enroller.advance()
        assert set(n.kernel.pods) == {new}
        worker.close()


async def test_missing_link_of_adopted_pod_is_attached(tmp_path: Path) -> None:
    pod = workload()
    cookie = Namespaces(tmp_path).start(pod.pod_uid, "a")
    kernel = _pinned(cookie, pod)
    kernel.links.clear()
    async with node(tmp_path, kernel) as n:
        n.namespaces.start(pod.pod_uid, "a")
        n.want(pod)
        assert n.kernel.links == {cookie}
        assert n.error(pod) is None


async def test_stopped_agent_does_not_change_kernel_state(tmp_path: Path) -> None:
    kernel = FakeDataPath()
    async with node(tmp_path, kernel) as n:
        worker = await n.worker()
        _pod, cookie = await n.capture()
        worker.close()
    assert set(kernel.pods) == {cookie}
    assert kernel.links == {cookie}
