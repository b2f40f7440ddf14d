# SPDX-License-Identifier: Apache-2.0
"""Pod discovery by CRI; a gRPC server on a unix socket stands for containerd.

tests/node asks a real one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support.waiting import wait_until
from tests.unit.agent.pods import cgroup_layouts
from tests.unit.agent.pods.test_cgroup_discovery import Host
from ztunnel.agent.pods import cri_client, cri_sandbox
from ztunnel.agent.pods.cgroup_discovery import CgroupDiscovery
from ztunnel.agent.pods.cri_discovery import AUTO, NONE, CriDiscovery, runtime_dialer
from ztunnel.agent.pods.cri_sandbox import CriError, namespace_of

UID = "25c175cb-e804-4dff-9fbf-147b0b3ef84f"
SANDBOX = "88a688b57c9508e8f582bc996c2cba24c1a5330402c3da53999ba389b8b85fd3"
Answer = Callable[[Any], Any]


class FakeRuntime:
    """Serves CRI's two calls; `pods` is uid to (sandbox id, verbose info)."""

    def __init__(self, socket: Path) -> None:
        self.pods: dict[str, tuple[str, str]] = {}
        self.broken = False
        self.asked: list[str] = []
        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        self._server.add_generic_rpc_handlers((_Handlers(self),))
        self._server.add_insecure_port(f"unix://{socket}")
        self._server.start()

    def list(self, request: Any) -> Any:
        assert request.HasField("filter")
        items = [
            {"id": sandbox, "metadata": {"uid": uid}} for uid, (sandbox, _) in self.pods.items()
        ]
        return cri_client._message("ListPodSandboxResponse", {"items": items})

    def status(self, request: Any) -> Any:
        assert request.verbose
        self.asked.append(request.pod_sandbox_id)
        info = next(info for sandbox, info in self.pods.values() if sandbox == self.asked[-1])
        return cri_client._message(
            "PodSandboxStatusResponse", {"info": [{"key": "info", "value": info}]}
        )

    def stop(self) -> None:
        self._server.stop(0).wait()


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    def __init__(self, fake: FakeRuntime) -> None:
        self._fake = fake

    def service(self, details: Any) -> Any:
        name = details.method.removeprefix("/runtime.v1.RuntimeService/")
        answer: Answer = {"ListPodSandbox": self._fake.list, "PodSandboxStatus": self._fake.status}[
            name
        ]

        def serve(request: Any, context: Any) -> Any:
            if self._fake.broken:
                context.abort(grpc.StatusCode.UNAVAILABLE, "it is restarted")
            return answer(request)

        return grpc.unary_unary_rpc_method_handler(
            serve,
            request_deserializer=cri_client._CLASSES[f"{name}Request"].FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )


class World:
    """A host made of files, its runtime, and the discovery under test."""

    def __init__(self, top: Path) -> None:
        self.host = Host(top)
        self.root = top / "root"
        (self.root / "run/crio").mkdir(parents=True)
        self.socket = self.root / "run/crio/crio.sock"
        self.runtime = FakeRuntime(self.socket)
        self.answered = threading.Event()
        self.finder = CriDiscovery(
            runtime_dialer(AUTO, self.root),
            CgroupDiscovery(self.host.cgroup, self.host.proc),
            self.answered.set,
            host=self.root,
            proc=self.host.proc,
        )

    def pod(self, pid: int, netns: str, sandbox: str = SANDBOX) -> None:
        """Add a pod with sandbox process `pid`, which is not in the cgroup tree."""
        self.host.process(pid, netns)
        group = f"0::/kubepods/pod{UID}/{sandbox}\n"
        (self.host.proc / str(pid) / "cgroup").write_text(group)
        self.runtime.pods[UID] = (sandbox, f'{{"pid": {pid}}}')

    def ask(self) -> None:
        """Refresh, and wait until the runtime has been polled."""
        self.answered.clear()
        self.finder.refresh([UID])
        assert self.answered.wait(20)

    def inode(self) -> tuple[int, int] | None:
        found = self.finder.open(UID)
        if found is None:
            return None
        try:
            return found.inode
        finally:
            found.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.finder.close()
    made.runtime.stop()


def test_netns_is_opened_by_sandbox_process(world: World) -> None:
    world.pod(42, "pod")
    world.ask()
    assert world.inode() == world.host.inode("pod")
    assert world.finder.view() == {"responds": True, "error": "", "pods": 1}


def test_new_pod_waits_for_runtime_response(world: World) -> None:
    world.host.process(41, "guessed")
    world.host.container(f"kubepods/pod{UID}/c", 41)
    assert world.finder.open(UID) is None
    world.pod(42, "pod")
    world.ask()
    assert world.inode() == world.host.inode("pod")


def test_pod_unknown_to_runtime_is_found_by_cgroup(world: World) -> None:
    world.host.process(41, "by cgroup")
    world.host.container(f"kubepods/pod{UID}/c", 41)
    world.ask()
    world.finder.refresh([UID])
    assert world.inode() == world.host.inode("by cgroup")


def test_reused_pid_is_rejected(world: World) -> None:
    world.pod(42, "pod")
    world.ask()
    world.host.process(42, "stranger")
    (world.host.proc / "42/cgroup").write_text("0::/system.slice/sshd.service\n")
    assert world.inode() is None


def test_new_sandbox_of_same_pod_is_found(world: World) -> None:
    world.pod(42, "first")
    world.ask()
    assert world.inode() == world.host.inode("first")
    (world.host.proc / "42/stat").unlink()
    world.pod(43, "second", "f" * 64)
    assert world.inode() is None  # not the old one

    def found() -> bool:
        world.finder.refresh([UID])
        return world.inode() == world.host.inode("second")

    wait_until(found, "the new sandbox to be found", timeout_s=20)


def test_pods_stay_found_while_runtime_is_unavailable(world: World) -> None:
    world.pod(42, "pod")
    world.ask()
    world.runtime.broken = True
    other = UID.replace("2", "3")
    world.host.process(41, "other")
    world.host.container(f"kubepods/pod{other}/c", 41)
    world.answered.clear()
    world.finder.refresh([UID, other])
    assert world.answered.wait(20)
    assert world.inode() == world.host.inode("pod")
    world.finder.refresh([UID, other])
    found = world.finder.open(other)
    assert found is not None
    found.close()
    view = world.finder.view()
    assert view["responds"] is False
    assert "it is restarted" in str(view["error"])


def test_known_pods_are_not_polled_again(world: World) -> None:
    world.pod(42, "pod")
    world.ask()
    other = UID.replace("2", "3")
    world.answered.clear()
    world.finder.refresh([UID, other])  # one is missing: the runtime is polled again
    assert world.answered.wait(20)
    assert world.runtime.asked == [SANDBOX]


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ('{"pid": 7}', ("", 7)),
        ('{"pid": -7}', ("", 0)),
        ('{"runtimeSpec": null}', ("", 0)),
        (
            '{"runtimeSpec": {"linux": {"namespaces": [{"type": "pid"}, '
            '{"type": "network", "path": "/run/netns/x"}]}}}',
            ("/run/netns/x", 0),
        ),
    ],
)
def test_verbose_status_is_parsed(info: str, expected: tuple[str, int]) -> None:
    assert namespace_of(info) == expected


@pytest.mark.parametrize(
    "layout", [name for name in cgroup_layouts.NAMES if cgroup_layouts.cri_data(name)]
)
def test_recorded_status_of_real_runtimes_is_parsed(layout: str) -> None:
    """containerd reports a pid and binds the namespace; CRI-O only binds the namespace."""
    groups = {one.pid: one.cgroups for one in cgroup_layouts.processes(layout)}
    recorded = cgroup_layouts.cri_data(layout)
    assert recorded.keys() == cgroup_layouts.PODS | {cgroup_layouts.WAITING}
    for pod, answer in recorded.items():
        netns, pid = namespace_of(answer.info)
        assert answer.leads_to == ("pod" if pod != cgroup_layouts.HOST_NETWORK else _host(layout))
        assert netns.startswith("/var/run/netns/") or answer.leads_to == "none"
        assert bool(pid) == (not layout.startswith("crio"))
        assert not pid or answer.sandbox in groups[pid]


def _host(layout: str) -> str:
    return "node" if layout.startswith("crio") else "none"


@pytest.mark.parametrize(
    "info", ["", "[]", "null", '{"pid": "x"}', '{"runtimeSpec": [1]}', "[" * 99999]
)
def test_unexpected_sandbox_status_is_an_error(info: str) -> None:
    with pytest.raises(CriError):
        namespace_of(info)


def test_path_without_netns_is_rejected(world: World) -> None:
    """An unbound namespace leaves a regular file at its path."""
    world.runtime.pods[UID] = (SANDBOX, _spec("/var/run/netns/pod"))
    (world.root / "run/netns").mkdir()
    (world.root / "run/netns/pod").write_text("")
    world.ask()
    assert world.inode() is None


def _spec(path: str) -> str:
    space = f'{{"type": "network", "path": "{path}"}}'
    return f'{{"runtimeSpec": {{"linux": {{"namespaces": [{space}]}}}}}}'


def test_missing_or_disabled_runtime_is_reported(tmp_path: Path) -> None:
    with pytest.raises(CriError, match="no container runtime socket found"):
        runtime_dialer(AUTO, tmp_path)()
    with pytest.raises(CriError, match="disabled by"):
        runtime_dialer(NONE, tmp_path)()


def test_regular_file_is_not_a_runtime_socket(tmp_path: Path) -> None:
    (tmp_path / "run/containerd").mkdir(parents=True)
    (tmp_path / "run/containerd/containerd.sock").write_text("")
    with pytest.raises(CriError):
        cri_sandbox.find_socket(tmp_path)
