# SPDX-License-Identifier: Apache-2.0
"""Readiness, as a kubelet finds it out: connections from the node's own address to the pod."""

from __future__ import annotations

import http.client
import socket
import subprocess
from typing import Any

from ztunnel.lab.cluster.scheduler import pod_ips
from ztunnel.lab.names import LabNames
from ztunnel.lab.network import netns
from ztunnel.lab.objects import Object
from ztunnel.lab.runtime import containers
from ztunnel.lab.runtime.images import tcp_ports
from ztunnel.lab.runtime.sandbox import Sandbox

_TIMEOUT = 1.0  # seconds; Kubernetes' timeoutSeconds default


def is_ready(names: LabNames, sandbox: Sandbox, pod: Object, container: Object) -> bool:
    """Whether the container runs and passes its readiness probe.

    Without a probe it must accept TCP on every port it declares: truer than Kubernetes'
    "started is ready", and what a person who waits for the lab means.
    """
    if not containers.is_running(names, sandbox, container["name"]):
        return False
    probe = container.get("readinessProbe") or {}
    if command := (probe.get("exec") or {}).get("command"):
        return _command_succeeds(names, sandbox, pod, container, command)
    ip = pod_ips(pod)[0]
    with netns.inside(names.node_netns(sandbox.node)):
        if get := probe.get("httpGet"):
            return _answers(get.get("host") or ip, _port(container, get["port"]), get)
        if tcp := probe.get("tcpSocket"):
            return _accepts(tcp.get("host") or ip, _port(container, tcp["port"]))
        return all(_accepts(ip, port) for port in tcp_ports(container))


def _accepts(ip: str, port: int) -> bool:
    try:
        with socket.create_connection((ip, port), timeout=_TIMEOUT):
            return True
    except OSError:
        return False


def _answers(ip: str, port: int, get: dict[str, Any]) -> bool:
    connection = http.client.HTTPConnection(ip, port, timeout=_TIMEOUT)
    headers = {entry["name"]: entry["value"] for entry in get.get("httpHeaders") or []}
    try:
        connection.request("GET", get.get("path", "/"), headers=headers)
        return 200 <= connection.getresponse().status < 400
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _command_succeeds(
    names: LabNames, sandbox: Sandbox, pod: Object, container: Object, command: list[str]
) -> bool:
    argv = containers.exec_argv(names, sandbox, pod, container, command)
    try:
        done = subprocess.run(
            argv,
            env=containers.exec_environment(pod, container),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def _port(container: Object, port: int | str) -> int:
    named = {entry.get("name"): entry["containerPort"] for entry in container.get("ports") or []}
    return int(named.get(port, port))
