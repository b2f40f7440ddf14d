# SPDX-License-Identifier: Apache-2.0
"""Readiness probes, from the node's address like a kubelet's."""

from __future__ import annotations

import http.client
import socket
import subprocess
from typing import Any

from ztunnel.lab.cluster.pod_fields import pod_ips
from ztunnel.lab.names import LabNames
from ztunnel.lab.network import netns
from ztunnel.lab.objects import Object
from ztunnel.lab.runtime import containers
from ztunnel.lab.runtime.images import tcp_ports
from ztunnel.lab.runtime.sandbox import Sandbox

_TIMEOUT_S = 1.0  # the default of Kubernetes's timeoutSeconds


def is_ready(names: LabNames, sandbox: Sandbox, pod: Object, container: Object) -> bool:
    """Whether the container runs and passes its readiness probe.

    Without a probe, it must accept connections on all its TCP ports. In Kubernetes it would be
    ready at once, but users of the lab wait for ready pods to connect to them.
    """
    if not containers.is_running(names, sandbox, container["name"]):
        return False
    probe = container.get("readinessProbe") or {}
    if command := (probe.get("exec") or {}).get("command"):
        return _exec_succeeds(names, sandbox, pod, container, command)
    ip = pod_ips(pod)[0]
    with netns.inside(names.node_netns(sandbox.node)):
        if get := probe.get("httpGet"):
            return _http_succeeds(get.get("host") or ip, _port_number(container, get["port"]), get)
        if tcp := probe.get("tcpSocket"):
            return _tcp_succeeds(tcp.get("host") or ip, _port_number(container, tcp["port"]))
        return all(_tcp_succeeds(ip, port) for port in tcp_ports(container))


def _tcp_succeeds(ip: str, port: int) -> bool:
    try:
        with socket.create_connection((ip, port), timeout=_TIMEOUT_S):
            return True
    except OSError:
        return False


def _http_succeeds(ip: str, port: int, get: dict[str, Any]) -> bool:
    connection = http.client.HTTPConnection(ip, port, timeout=_TIMEOUT_S)
    headers = {entry["name"]: entry["value"] for entry in get.get("httpHeaders") or []}
    try:
        connection.request("GET", get.get("path", "/"), headers=headers)
        return 200 <= connection.getresponse().status < 400
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _exec_succeeds(
    names: LabNames, sandbox: Sandbox, pod: Object, container: Object, command: list[str]
) -> bool:
    argv = containers.exec_argv(names, sandbox, pod, container, command)
    try:
        process = subprocess.run(
            argv,
            env=containers.exec_environment(pod, container),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return process.returncode == 0


def _port_number(container: Object, port: int | str) -> int:
    by_name = {entry.get("name"): entry["containerPort"] for entry in container.get("ports") or []}
    return int(by_name.get(port, port))
