# SPDX-License-Identifier: Apache-2.0
"""Objects of the tests: a server with HTTP probes, a client, services.

Both pods run Python of the image of the mesh, which the nodes have anyway.
"""

from __future__ import annotations

from typing import Any

IMAGE, NEXT = "localhost/ztunnel:test", "localhost/ztunnel:next"
ENVOY_IMAGE = "localhost/ztunnel-envoy:test"
PORT = 8080  # HTTP over TCP, and one datagram per datagram over UDP
GREETING = "hello from the server"
AMBIENT = {"istio.io/dataplane-mode": "ambient"}
_SERVE = f"""
import socket, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{GREETING}")

def datagrams():
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.bind(("", {PORT}))
    while True:
        sock.sendto(b"{GREETING}", sock.recvfrom(100)[1])

threading.Thread(target=datagrams, daemon=True).start()
ThreadingHTTPServer(("", {PORT}), Handler).serve_forever()
"""
_WAIT = "import signal; signal.signal(signal.SIGTERM, lambda *_: exit()); signal.pause()"
# sends `times` requests to the server in its argument; prints a line per answer or error
_ASK = f"""
import select, socket, sys, urllib.request
host, times, way = sys.argv[1], int(sys.argv[2]), sys.argv[3]

def tcp():
    with urllib.request.urlopen(f"http://{{host}}:{PORT}/", timeout=5) as answer:
        return answer.read().decode()

def udp():
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.settimeout(2)
        sock.connect((host, {PORT}))
        sock.send(b"hello")
        return sock.recv(100).decode()

while times:
    times -= 1
    try:
        print(tcp() if way == "tcp" else udp(), flush=True)
    except OSError as error:
        print(repr(error), flush=True)
    if select.select([sys.stdin], [], [], 0.05)[0]:
        break  # the server has stopped
"""
_PROBE = {"httpGet": {"path": "/", "port": PORT}, "periodSeconds": 1, "timeoutSeconds": 5}


def server(name: str, space: str, node: str) -> dict[str, Any]:
    """Answers over TCP and UDP; the kubelet restarts it after three failed liveness probes."""
    probes = {"readinessProbe": _PROBE, "livenessProbe": _PROBE}
    return _pod(name, space, node, {"args": [_SERVE], **probes})


def client(name: str, space: str, node: str) -> dict[str, Any]:
    """A pod to run commands in."""
    return _pod(name, space, node, {"args": [_WAIT]})


def asking(host: str, times: int = 1, *, udp: bool = False) -> list[str]:
    """The command of a client; `times` -1: until stdin ends."""
    return ["python3", "-c", _ASK, host, str(times), "udp" if udp else "tcp"]


def service(name: str, space: str, **spec: Any) -> dict[str, Any]:
    """Selects pods with the label app=`name`; TCP and UDP. `spec`: additional fields."""
    ports = [
        {"name": protocol.lower(), "port": PORT, "protocol": protocol}
        for protocol in ("TCP", "UDP")
    ]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        **metadata(name, space),
        "spec": {"selector": {"app": name}, "ports": ports, **spec},
    }


def namespace(name: str, labels: dict[str, str] | None = None) -> dict[str, Any]:
    """A Namespace."""
    return {"apiVersion": "v1", "kind": "Namespace", **metadata(name, labels=labels or {})}


def _pod(name: str, space: str, node: str, container: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        **metadata(name, space, labels={"app": name}),
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
    """A ServiceAccount; its name is the identity of the pod."""
    return {"apiVersion": "v1", "kind": "ServiceAccount", **metadata(name, space)}


def metadata(name: str, space: str = "", **more: Any) -> dict[str, Any]:
    """The field with that name."""
    return {"metadata": {"name": name, **({"namespace": space} if space else {}), **more}}
