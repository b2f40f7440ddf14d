# SPDX-License-Identifier: Apache-2.0
"""An error is not a proof that a pod is gone: its traffic would leave in plaintext."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.descriptors import no_descriptors
from tests.unit.agent.pods.test_cgroup_discovery import UID, Host
from tests.unit.agent.pods.test_enroller import node
from ztunnel.agent.pods.cri_discovery import CriDiscovery
from ztunnel.agent.pods.cri_sandbox import CriError, CriRuntime, Sandbox
from ztunnel.agent.pods.netns_finder import NetnsHandle, ProcFs
from ztunnel.agent.pods.pod import PodState

UNKNOWN = [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EACCES, errno.EINTR]
unknown = pytest.mark.parametrize("number", UNKNOWN, ids=errno.errorcode.get)


def failing(number: int) -> Any:
    def fail(*_: object, **__: object) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.fixture
def host(tmp_path: Path) -> Host:
    made = Host(tmp_path)
    made.process(42, "pod")
    made.container(f"kubepods/pod{UID}/pause", 42)
    made.discovery.refresh([UID])
    return made


def close(handle: NetnsHandle | None) -> None:
    assert handle is not None
    handle.close()


def test_discovery_without_descriptors_raises_and_recovers(host: Host) -> None:
    close(host.discovery.open(UID))
    other = UID.replace("0", "9")
    with no_descriptors():
        with pytest.raises(OSError, match="Too many open files"):
            host.discovery.open(UID)
        with pytest.raises(OSError, match="Too many open files"):
            host.discovery.refresh([other])  # walks the tree
    close(host.discovery.open(UID))


@unknown
@pytest.mark.parametrize("call", ["open", "read_text", "stat"])
def test_no_error_of_any_call_means_gone(
    host: Host, number: int, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = ProcFs(host.proc)
    with monkeypatch.context() as patch:
        patch.setattr(Path if call == "read_text" else os, call, failing(number))
        with pytest.raises(OSError, match=os.strerror(number)):
            processes.open(42, lambda _: True)
    close(processes.open(42, lambda _: True))


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ESRCH])
def test_exited_process_is_gone(host: Host, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", failing(number))
    assert ProcFs(host.proc).open(42, lambda _: True) is None


def test_process_that_exits_while_its_namespace_is_opened_is_gone(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Any:  # the kernel finds no task: EACCES
        (host.proc / "42/stat").unlink()
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", fail)
    assert ProcFs(host.proc).open(42, lambda _: True) is None


@unknown
def test_error_of_a_bound_path_does_not_mean_gone(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "open", failing(number))
    with pytest.raises(OSError, match=os.strerror(number)):
        ProcFs().open_path(tmp_path / "netns")


def test_process_proves_the_namespace_if_the_path_fails(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:

    def dial() -> CriRuntime:
        raise CriError("no runtime")

    discovery = CriDiscovery(dial, host.discovery, host=host.proc, proc=host.proc)
    try:
        (host.proc / "42/cgroup").write_text("0::/kubepods/sandbox-id\n")
        discovery._sandboxes[UID] = Sandbox("sandbox-id", UID, "/run/netns/x", 42)
        monkeypatch.setattr(discovery._processes, "open_path", failing(errno.EMFILE))
        close(discovery.open(UID))
        (host.proc / "42/stat").unlink()
        with pytest.raises(OSError, match="Too many open files"):
            discovery.open(UID)
    finally:
        discovery.close()


def test_namespace_is_in_use_while_a_process_is_in_it(host: Host) -> None:
    held = host.discovery.open(UID)
    assert held is not None
    assert host.discovery.is_in_use(held)
    host.process(42, "other")
    assert not host.discovery.is_in_use(held)
    with no_descriptors(), pytest.raises(OSError, match="Too many open files"):
        host.discovery.is_in_use(held)
    held.close()


def test_real_processes_use_their_namespace() -> None:
    """In a namespace of a real process, until it exits."""
    command = ["unshare", "--net", sys.executable, "-c", "print(flush=True); input()"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdin is not None
    process.stdout.readline()
    held = ProcFs().open(process.pid, lambda _: True)
    assert held is not None
    assert ProcFs().is_in_use(held)
    process.communicate(b"\n")
    assert not ProcFs().is_in_use(held)
    held.close()


# In the enroller


@unknown
async def test_captured_pod_remains_captured_while_discovery_fails(
    tmp_path: Path, number: int
) -> None:
    async with node(tmp_path) as n:
        worker = await n.worker()
        pod, cookie = await n.capture()
        n.namespaces.error = number
        for _ in range(3):
            n.enroller.recheck()
            n.want(pod)
        assert n.state(pod) is PodState.CAPTURED
        assert n.pod(pod).cookie == cookie
        assert "unenroll" not in [entry[0] for entry in n.kernel.journal]
        assert cookie in n.kernel.pods
        n.namespaces.error = 0
        n.enroller.recheck()
        assert n.state(pod) is PodState.CAPTURED
        worker.close()


async def test_pod_without_process_is_released_once_its_namespace_is_unused(
    tmp_path: Path,
) -> None:
    async with node(tmp_path) as n:
        worker = await n.worker()
        pod, cookie = await n.capture()
        held = n.pod(pod).netns
        assert held is not None
        n.namespaces.used.add(held.inode)
        n.namespaces.stop(pod.pod_uid)
        n.enroller.recheck()
        assert cookie in n.kernel.pods
        n.namespaces.used.clear()
        n.enroller.recheck()
        assert cookie not in n.kernel.pods
        worker.close()
