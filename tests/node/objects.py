# SPDX-License-Identifier: Apache-2.0
"""Pods that real kubelets run: a server that is probed over HTTP, and a client.

Both are Python of the mesh's own image, which the nodes have anyway.
"""

from __future__ import annotations

from typing import Any

from tests.node.conftest import IMAGE

PORT = 8080
GREETING = "hello from the server"
_SERVE = f"""
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{GREETING}")

ThreadingHTTPServer(("", {PORT}), Handler).serve_forever()
"""
_WAIT = "import signal; signal.signal(signal.SIGTERM, lambda *_: exit()); signal.pause()"
# asks its argument's server, `times` times; a line for each answer, which may be an error
_ASK = f"""
import sys, time, urllib.request
address, times = sys.argv[1], int(sys.argv[2])
while times:
    times -= 1
    try:
        with urllib.request.urlopen(f"http://{{address}}:{PORT}/", timeout=5) as answer:
            print(answer.read().decode(), flush=True)
    except OSError as error:
        print(repr(error), flush=True)
    time.sleep(0.05)
"""
_PROBE = {"httpGet": {"path": "/", "port": PORT}, "periodSeconds": 1}


def server(name: str, space: str, node: str) -> dict[str, Any]:
    """A web server; the kubelet restarts it when its liveness probe fails thrice."""
    probes = {"readinessProbe": _PROBE, "livenessProbe": _PROBE}
    return _pod(name, space, node, {"args": [_SERVE], **probes})


def client(name: str, space: str, node: str) -> dict[str, Any]:
    """Something to run commands in."""
    return _pod(name, space, node, {"args": [_WAIT]})


def asking(address: str, times: int = 1) -> list[str]:
    """What is run in a client; `times` -1 is for ever."""
    return ["python3", "-c", _ASK, address, str(times)]


def _pod(name: str, space: str, node: str, container: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": space, "labels": {"app": name}},
        "spec": {
            "nodeName": node,
            "serviceAccountName": name,
            "terminationGracePeriodSeconds": 1,
            "containers": [
                {"name": name, "image": IMAGE, "command": ["python3", "-c"], **container}
            ],
        },
    }


def account(name: str, space: str) -> dict[str, Any]:
    """A ServiceAccount, whose name is the pod's identity."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": name, "namespace": space},
    }
