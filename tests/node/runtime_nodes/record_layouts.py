# SPDX-License-Identifier: Apache-2.0
"""Run real nodes and record their pods: cgroups of processes, and the answers of the runtime.

    # scripts/layouts runs it
    python -m tests.node.runtime_nodes.record_layouts DIRECTORY crio-systemd-hybrid ...

A name is RUNTIME-DRIVER-HIERARCHY for a node in its own namespaces. With -vm the machine is the
node, and RUNTIME kind is a node in a container of the machine, recorded from both views.
crio_in_pods is CRI-O with its monitors in the cgroups of the pods. The README of
tests/unit/agent/pods/layouts describes the format of the files and how each was recorded.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.node.runtime_nodes import node as nodes
from tests.node.runtime_nodes.node import Node, Process
from tests.node.runtime_nodes.pods import PODS, name_of
from tests.node.runtime_nodes.runtimes import CONTAINERD, CRIO, CRIO_IN_PODS
from tests.support.apiserver.control_plane import wait_until
from tests.support.apiserver.server import assets
from tests.support.nodes.kubelet_node import PREFIX
from ztunnel.agent.pods import cri_client
from ztunnel.agent.pods.cri_sandbox import CriError

TIMEOUT_S = float(os.environ.get("LAYOUT_TIMEOUT_S", "400"))  # seconds; a machine may be emulated
_MONITORS = {"conmon", "containerd-shim"}  # container monitors, not always in the cgroup of a pod


def capture(name: str) -> dict[str, str]:
    """The files of a layout, by name."""
    kind, driver, hierarchy, *place = name.split("-")
    is_v2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    assert hierarchy == ("v2" if is_v2 else "hybrid"), f"this machine is not for {name}"
    runtime = {"crio": CRIO, "crio_in_pods": CRIO_IN_PODS}.get(kind, CONTAINERD)
    start = nodes.kind if kind == "kind" else nodes.in_place if place else nodes.apart
    with (
        tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as scratch,
        start(Path(scratch), runtime, driver) as node,
    ):
        try:
            reported = wait_until(
                lambda: node.runs() and _reported(node), f"pods of {name}", timeout_s=TIMEOUT_S
            )
        except AssertionError as error:
            raise AssertionError(f"{error}\n{node.logs()}") from error
        files = {f"{name}.txt": _text(name, node, reported), f"{name}.json": _json(node, reported)}
        if kind == "kind":
            outside = Node(runtime, node.directory, [], Path("/"))
            files[f"{name}-outside.txt"] = _text(f"{name}-outside", outside, reported)
    return files


# -- the container runtime ------------------------------------------------------------------------


def _reported(node: Node) -> dict[str, dict[str, Any]]:
    """Answers by pod UID; empty until the runtime knows all pods."""
    socket = node.root / node.runtime.socket.relative_to("/")
    with closing(cri_client.CriClient(socket)) as client:
        try:
            found = {uid: _status(client, one) for uid, one in client.sandboxes().items()}
        except CriError:
            return {}
    return found if len(found) == len(PODS) else {}


def _status(client: cri_client.CriClient, sandbox: str) -> dict[str, Any]:
    """The sandbox, and its verbose status on namespaces, processes and cgroups."""
    asked = cri_client._message(
        "PodSandboxStatusRequest", {"pod_sandbox_id": sandbox, "verbose": True}
    )
    answer = cri_client._call(client._status, asked)
    info = json.loads(next(pair.value for pair in answer.info if pair.key == "info"))
    linux = info["runtimeSpec"]["linux"]
    kept: dict[str, Any] = {
        "runtimeSpec": {"linux": {key: linux[key] for key in ("cgroupsPath", "namespaces")}}
    }
    if "pid" in info:
        kept["pid"] = info["pid"]
    return {"sandbox": sandbox, "info": kept}


def _json(node: Node, reported: Mapping[str, dict[str, Any]]) -> str:
    every = node.processes()
    lines = []
    for uid in sorted(reported):
        led = {"leads_to": _namespace_owner(node, reported[uid]["info"], every, uid)}
        lines.append(f'"{uid}": {json.dumps({**reported[uid], **led})}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _namespace_owner(
    node: Node, info: Mapping[str, Any], every: Mapping[int, Process], uid: str
) -> str:
    """The owner of the namespace at the path of the runtime: the pod, the node, another, none."""
    spaces = info["runtimeSpec"]["linux"]["namespaces"]
    path = next((one.get("path") for one in spaces if one["type"] == "network"), None)
    if not path:
        return "none"
    found = node.run("stat", "--dereference", "--format", "net:[%i]", path).strip()
    if found == every[1].netns:
        return "node"
    own = {one.netns for one in every.values() if one.is_of(uid) and one.netns != every[1].netns}
    return "pod" if own <= {found} else "another"


# -- the processes --------------------------------------------------------------------------------


def _text(name: str, node: Node, uids: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in _lines(name, node, list(uids)))


def _lines(name: str, node: Node, uids: list[str]) -> Iterator[str]:
    yield f"# {name}: {_provenance(node)}"
    every = node.processes()
    for process in sorted(every.values(), key=lambda one: one.pid):
        uid = next((uid for uid in uids if process.is_of(uid)), "-")
        if uid != "-" or process.role in _MONITORS:
            pod = "-" if uid == "-" else name_of(uid)
            net = "node" if process.netns == every[1].netns else "pod"
            yield f"[{pod} {uid} {process.role} {net} {process.pid}]"
            yield process.cgroup


def _provenance(node: Node) -> str:
    words = (
        (str(assets() / "kubelet"), "--version"),
        (shutil.which(node.runtime.name) or f"{node.directory}/bin/crio", "--version"),
        ("runc", "--version"),
        ("systemd", "--version"),
    )
    said = [subprocess.run(each, stdout=subprocess.PIPE, text=True, check=True) for each in words]
    versions = ", ".join(" ".join(done.stdout.splitlines()[0].split()[:3]) for done in said)
    return f"{versions}, Linux {platform.release()}"


if __name__ == "__main__":
    cri_client.CALL_TIMEOUT_S = 30.0  # of a machine that may be emulated
    for argument in sys.argv[2:]:
        for file, text in capture(argument).items():
            Path(sys.argv[1], file).write_text(text)
