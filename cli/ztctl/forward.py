# SPDX-License-Identifier: Apache-2.0
"""The admin sockets of a cluster's agents, here: as `kubectl port-forward`, for unix sockets.

    ztctl ── <directory>/admin.sock ── exec stream of the API server ── `ztctl relay` in the pod
                                                                         ── /run/ztunnel/admin.sock

The admin API listens on a socket that only root of the node may open, and on no TCP port; so the
way in is the right to exec in the agent's pod, which the API server judges and audits.
May import kubernetes, urllib3 and this package.
"""

from __future__ import annotations

import select
import socket
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import ApiException
from kubernetes.stream import stream
from kubernetes.stream.ws_client import ERROR_CHANNEL, STDERR_CHANNEL, STDOUT_CHANNEL
from urllib3.exceptions import HTTPError

from ztctl import admin
from ztctl.admin import SOCKET
from ztctl.cluster import Cluster
from ztctl.errors import CommandError, NothingThereError
from ztctl.installation import Installation
from ztunnel.kube.access import Access
from ztunnel.kube.signing import NAMESPACE

AGENTS = "app.kubernetes.io/name=ztunnel-agent"
PATIENCE = 30.0  # seconds: a process is started in the pod for each question
COMMAND = ["ztctl", "relay"]
_BUFFER = 1 << 16
_TURN = 0.5  # seconds until an end that nothing told of is noticed


def installations(access: Access, node: str | None) -> list[Installation]:
    """One for each node's agent, its admin socket forwarded. Raises CommandError."""
    cluster = Cluster(access.kubeconfig, access.context)
    try:
        path = f"/api/v1/namespaces/{NAMESPACE}/pods"
        pods = cluster.list(path, labelSelector=AGENTS, fieldSelector="status.phase=Running")
    finally:
        cluster.close()
    on = {pod["spec"]["nodeName"]: pod["metadata"]["name"] for pod in pods}
    if not on:
        raise NothingThereError(
            f"{cluster.url} runs no agent in {NAMESPACE}; install the mesh: ztctl install"
        )
    if node is not None and node not in on:
        raise CommandError(f"no agent runs on node {node!r}; there are {', '.join(sorted(on))}")
    names = [node] if node is not None else sorted(on)
    root = Path(_keep(tempfile.TemporaryDirectory(prefix="ztctl-")).name)  # mode 0700
    return [_forwarded(access, root, number, name, on[name]) for number, name in enumerate(names)]


def _forwarded(access: Access, root: Path, number: int, node: str, pod: str) -> Installation:
    run_dir = root / str(number)  # short: a socket's path has 107 characters
    run_dir.mkdir()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(run_dir / SOCKET))
    listener.listen(8)
    admin.far[run_dir] = PATIENCE
    accept = partial(_accept, listener, partial(_dial, access, pod))
    threading.Thread(target=accept, daemon=True).start()
    return Installation(node, run_dir, run_dir / "maps-are-on-the-node", pod=pod)


_kept: list[Any] = []


def _keep(directory: tempfile.TemporaryDirectory[str]) -> tempfile.TemporaryDirectory[str]:
    """It is removed when the process ends."""
    _kept.append(directory)
    return directory


def _accept(listener: socket.socket, dial: Callable[[], Any]) -> None:
    while True:
        here, _ = listener.accept()
        threading.Thread(target=_serve, args=(here, dial), daemon=True).start()


def _serve(here: socket.socket, dial: Callable[[], Any]) -> None:
    """One connection. What goes wrong before an answer is told as an answer."""
    with here:
        try:
            there = dial()
        except (ApiException, HTTPError, OSError) as error:
            reason = getattr(error, "reason", None) or error
            here.sendall(_complaint(" ".join(str(reason).split())))
            return
        try:
            complaint = _pump(here, there)
            if complaint:
                here.sendall(_complaint(complaint))
        except OSError:
            return  # ztctl has what it wanted
        finally:
            there.close()


def _pump(here: socket.socket, there: Any) -> str:
    """Bytes both ways until one side ends; what the pod complained of, if it never answered."""
    answered, complaint = False, ""
    while True:
        readable, _, _ = select.select([here, there.sock.sock], [], [], _TURN)
        if here in readable:
            asked = here.recv(_BUFFER)
            if not asked:
                return ""
            there.write_stdin(asked)
        if there.sock.sock in readable:
            there.update(timeout=0)
        ended = not there.is_open()  # asked before reading, which takes in more
        answer = there.read_channel(STDOUT_CHANNEL)
        if answer:
            here.sendall(answer)
            answered = True
        complaint += there.read_channel(STDERR_CHANNEL).decode(errors="replace")
        if ended:
            status = there.read_channel(ERROR_CHANNEL).decode(errors="replace")
            return "" if answered else " ".join((complaint or status or "no answer").split())


def _dial(access: Access, pod: str) -> Any:
    """A connection to the relay in a pod. Raises ApiException."""
    api = access.client()  # one each: the library changes it while it dials
    return stream(
        client.CoreV1Api(api).connect_get_namespaced_pod_exec,
        pod,
        NAMESPACE,
        container="agent",
        command=COMMAND,
        stdin=True,
        stdout=True,
        stderr=True,
        tty=False,
        binary=True,
        _preload_content=False,
    )


def _complaint(text: str) -> bytes:
    """An HTTP answer that `admin` shows."""
    body = f"no way to the agent in its pod: {text}\n".encode()
    head = f"HTTP/1.1 502 Bad Gateway\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body
