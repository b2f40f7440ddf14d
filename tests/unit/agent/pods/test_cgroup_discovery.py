# SPDX-License-Identifier: Apache-2.0
"""Pod discovery in directory trees with the layouts of kubelets and runtimes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import pytest

from tests.unit.agent.pods import cgroup_layouts
from ztunnel.agent.pods.cgroup_discovery import CgroupDiscovery, pod_uid_of
from ztunnel.agent.pods.netns_finder import HostNamespaceError

UID = "0f3f6d9e-7c53-4f4e-9d1e-3a0c1f0e2b4d"
UNDERSCORED = UID.replace("-", "_")
STATIC = "3a5c2f1e9b8d7c6a5f4e3d2c1b0a9f8e"
OTHER = "1f3f6d9e-7c53-4f4e-9d1e-3a0c1f0e2b4d"

NAMES = [
    (f"pod{UID}", UID),
    (f"pod{STATIC}", STATIC),
    (f"kubepods-pod{UNDERSCORED}.slice", UID),
    (f"kubepods-burstable-pod{UNDERSCORED}.slice", UID),
    (f"kubepods-besteffort-pod{UNDERSCORED}.slice", UID),
    (f"kubelet-kubepods-burstable-pod{UNDERSCORED}.slice", UID),
    (f"kubepods-burstable-pod{STATIC}.slice", STATIC),
    ("kubepods", None),
    ("kubepods.slice", None),
    ("kubepods-burstable.slice", None),
    ("podman", None),
    ("pod", None),
    (f"pod{UID}.slice", None),
    (f"pod{UID}x", None),
    (f"cri-containerd-{'a' * 64}.scope", None),
    ("system.slice", None),
]

LAB = "kubepods/pod{uid}/pause"
OWN = "kubepods/pod{uid}"  # processes in the pod's own directory


class Host:
    """A /proc and a cgroup tree made of plain files."""

    def __init__(self, top: Path) -> None:
        self.proc, self.cgroup = top / "proc", top / "cgroup"
        self.cgroup.mkdir()
        for name in ("1", "self"):
            self.process(name, "host")
        self.discovery = CgroupDiscovery(self.cgroup, self.proc)

    def process(self, pid: int | str, netns: str, start: int = 100) -> None:
        directory = self.proc / str(pid)
        (directory / "ns").mkdir(parents=True, exist_ok=True)
        namespace = self.proc.parent / f"netns-{netns}"
        namespace.write_text("")
        (directory / "ns/net").unlink(missing_ok=True)
        os.link(namespace, directory / "ns/net")
        fields = " ".join(["S", *["0"] * 18, str(start), "0"])
        (directory / "stat").write_text(f"{pid} (a b) c) {fields}")

    def container(self, path: str, *pids: int) -> Path:
        directory = self.cgroup / path
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
        return directory

    def replay(self, node: Iterable[cgroup_layouts.Process]) -> None:
        """Create the recorded layout of a node; a pod's namespace has its uid as the name."""
        path_of = attrgetter("cgroup2")
        for path, group in groupby(sorted(node, key=path_of), path_of):
            members = list(group)
            self.container(path, *(one.pid for one in members))
            for one in members:
                self.process(one.pid, "host" if one.in_node else one.uid, start=one.pid)

    def inode(self, netns: str) -> tuple[int, int]:
        status = (self.proc.parent / f"netns-{netns}").stat()
        return status.st_dev, status.st_ino


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def _inode(host: Host, uid: str = UID) -> tuple[int, int] | None:
    host.discovery.refresh([uid])
    found = host.discovery.open(uid)
    if found is None:
        return None
    try:
        return found.inode
    finally:
        found.close()


@pytest.mark.parametrize(("name", "uid"), NAMES)
def test_pod_uid_is_parsed_from_cgroup_name(name: str, uid: str | None) -> None:
    assert pod_uid_of(name) == uid


@pytest.mark.parametrize("layout", [LAB, OWN])
def test_netns_is_found_in_lab_and_without_container_cgroups(host: Host, layout: str) -> None:
    host.process(42, "pod")
    host.container(layout.format(uid=UID), 42)
    assert _inode(host) == host.inode("pod")


@pytest.mark.parametrize("layout", cgroup_layouts.NAMES)
def test_every_pod_of_recorded_layout_is_found(host: Host, layout: str) -> None:
    node = cgroup_layouts.processes(layout)
    host.replay(node)
    pods = {one.uid: one for one in node if one.role in cgroup_layouts.CONTAINERS}
    assert {one.pod for one in pods.values()} - {cgroup_layouts.WAITING} == cgroup_layouts.PODS
    for uid, pod in pods.items():
        if pod.in_node:  # the host-network pod; not if the node is seen from outside
            assert pod.pod == cgroup_layouts.HOST_NETWORK
            host.discovery.refresh([uid])
            with pytest.raises(HostNamespaceError):
                host.discovery.open(uid)
        else:
            assert _inode(host, uid) == host.inode(uid), pod


def test_other_pods_and_daemons_are_not_matched(host: Host) -> None:
    host.process(42, "other")
    host.container(f"kubepods/pod{OTHER}/c", 42)
    host.container("system.slice/sshd.service", 42)
    assert _inode(host) is None


def test_pod_is_found_once_it_has_processes(host: Host) -> None:
    assert _inode(host) is None
    host.container(f"kubepods/pod{UID}/pause")
    assert _inode(host) is None
    host.process(42, "pod")
    host.container(f"kubepods/pod{UID}/pause", 42)
    assert _inode(host) == host.inode("pod")


def test_oldest_process_determines_netns(host: Host) -> None:
    host.process(50, "sandbox", start=10)
    host.process(42, "moved", start=20)
    host.container(f"kubepods/pod{UID}/app", 42)
    host.container(f"kubepods/pod{UID}/pause", 50)
    assert _inode(host) == host.inode("sandbox")


def test_recreated_cgroup_is_found(host: Host) -> None:
    host.process(42, "first")
    host.container(f"kubepods/burstable/pod{UID}/c", 42)
    assert _inode(host) == host.inode("first")
    shutil.rmtree(host.cgroup / "kubepods/burstable")
    host.process(43, "second")
    host.container(f"kubepods/besteffort/pod{UID}/c", 43)
    assert _inode(host) == host.inode("second")


def test_exited_process_is_skipped(host: Host) -> None:
    host.process(43, "pod", start=200)
    host.container(f"kubepods/pod{UID}/c", 42, 43)
    assert _inode(host) == host.inode("pod")


def test_reused_pid_is_detected(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """After cgroup.procs is read and before the open, another process gets pid 42."""
    host.process(42, "pod")
    directory = host.container(f"kubepods/pod{UID}/c", 42)
    real_open = os.open

    def open_late(path: os.PathLike[str] | str, flags: int) -> int:
        host.process(42, "stranger", start=100)
        (directory / "cgroup.procs").write_text("")
        return real_open(path, flags)

    host.discovery.refresh([UID])
    monkeypatch.setattr(os, "open", open_late)
    assert host.discovery.open(UID) is None


def test_reused_pid_in_same_pod_is_detected(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.process(42, "pod")
    host.container(f"kubepods/pod{UID}/c", 42)
    real_open = os.open

    def open_late(path: os.PathLike[str] | str, flags: int) -> int:
        host.process(42, "elsewhere", start=900)
        return real_open(path, flags)

    host.discovery.refresh([UID])
    monkeypatch.setattr(os, "open", open_late)
    assert host.discovery.open(UID) is None


def test_no_descriptor_is_left_open(host: Host) -> None:
    host.process(42, "pod")
    host.container(f"kubepods/pod{UID}/c", 42)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        _inode(host)
    assert len(os.listdir("/proc/self/fd")) == before


def test_nodes_own_namespace_is_refused(host: Host) -> None:
    host.process(42, "host")
    host.container(f"kubepods/pod{UID}/c", 42)
    host.discovery.refresh([UID])
    with pytest.raises(HostNamespaceError, match="node's own"):
        host.discovery.open(UID)
