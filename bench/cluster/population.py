# SPDX-License-Identifier: Apache-2.0
"""The objects of a large cluster, and connections that write them to a real API server.

A pod has about 3 kB of JSON, like small pods in practice.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import queue
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from tests.support.apiserver.objects import AMBIENT, endpoints, node, pod, service
from tests.support.apiserver.server import ApiServer
from ztunnel.mesh.enrollment import REDIRECTION_ANNOTATION, REDIRECTION_ENABLED

SPACES = 50  # namespaces
BEHIND = 10  # pods per service
WRITERS = 8


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Writers:
    """Threads that write to the API server as cluster-admin, each on its own connection."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        self._work: queue.SimpleQueue[tuple[str, str, Any] | None] = queue.SimpleQueue()
        self._count = itertools.count(1)
        self.done = 0
        self.failures: list[str] = []
        self.threads = [threading.Thread(target=self._run, daemon=True) for _ in range(WRITERS)]
        for thread in self.threads:
            thread.start()

    def put(self, method: str, path: str, body: Any) -> None:
        self._work.put((method, path, body))

    def wait(self, what: str, total: int) -> None:
        """Wait until everything is written; log progress."""
        output = time.monotonic()
        while self.done < total:
            if self.failures:
                raise SystemExit(f"{what}: {self.failures[0]}")
            time.sleep(0.2)
            if time.monotonic() - output > 10:
                output = time.monotonic()
                log(f"scale: {what}: {self.done} of {total} writes")

    def close(self) -> None:
        for _ in self.threads:
            self._work.put(None)
        for thread in self.threads:
            thread.join(30)

    def _run(self) -> None:
        connection = connect(self._server)
        while (item := self._work.get()) is not None:
            output = write(connection, *item)
            if output:
                self.failures.append(output)
            self.done = next(self._count)
        connection.close()


def connect(server: ApiServer) -> http.client.HTTPSConnection:
    context: ssl.SSLContext = server.tls()
    connection = http.client.HTTPSConnection("127.0.0.1", server.port, context=context, timeout=60)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def write(connection: http.client.HTTPSConnection, method: str, path: str, body: Any) -> str:
    """Return an empty string, or the error of the server. Repeating a POST is not an error."""
    kind = "merge-patch+json" if method == "PATCH" else "json"
    headers = {"Content-Type": f"application/{kind}"}
    connection.request(method, path, json.dumps(body), headers)
    answer = connection.getresponse()
    text = answer.read()
    if answer.status in (200, 201, 409):
        return ""
    return f"{method} {path}: {answer.status} {text[:300].decode(errors='replace')}"


def space_of(number: int) -> str:
    return f"space-{number % SPACES}"


def populate(server: ApiServer, writers: Writers, args: argparse.Namespace) -> None:
    """Create the whole cluster.

    Each pod has its own service account, which is the worst case.
    """
    total = 0
    for number in range(SPACES):
        name = f"space-{number}"
        body = {"metadata": {"name": name, "labels": AMBIENT}}
        writers.put("POST", "/api/v1/namespaces", body)
        total += 1
    writers.wait("namespaces", total)
    for number in range(args.nodes):
        writers.put("POST", "/api/v1/nodes", node(f"node-{number}"))
    for number in range(args.pods):
        space, account = f"/api/v1/namespaces/{space_of(number)}", {"name": pod_name(number)}
        writers.put("POST", f"{space}/serviceaccounts", {"metadata": account})
        writers.put("POST", f"{space}/pods", stuffed(number, args))
    for number in range(args.services):
        space = space_of(number)
        names = [(pod_name(each), ip_of(each)) for each in behind(number, args.pods)]
        slices = f"/apis/discovery.k8s.io/v1/namespaces/{space}/endpointslices"
        writers.put("POST", f"/api/v1/namespaces/{space}/services", service(f"s-{number}", space))
        writers.put("POST", slices, endpoints(f"s-{number}", space, *names))
    total += args.nodes + 2 * args.pods + 2 * args.services
    writers.wait("nodes, accounts, pods, services, endpoints", total)
    for number in range(args.pods):
        status = {"status": pod("", "", ip_of(number))["status"]}
        writers.put("PATCH", f"{pod_path(number)}/status", status)
    writers.wait("pods' statuses", total + args.pods)


def behind(number: int, pods: int) -> Iterator[int]:
    """The pods of a service, all in its namespace."""
    first = number % SPACES + SPACES * BEHIND * (number // SPACES)
    return (each % pods for each in range(first, first + SPACES * BEHIND, SPACES))


def pod_name(number: int) -> str:
    return f"app-{number}"


def pod_path(number: int) -> str:
    return f"/api/v1/namespaces/{space_of(number)}/pods/{pod_name(number)}"


def ip_of(number: int) -> str:
    return f"10.{100 + number // 62500}.{number // 250 % 250}.{number % 250 + 1}"


def stuffed(number: int, args: argparse.Namespace) -> dict[str, Any]:
    on = f"node-{number % args.nodes}"
    made = pod(pod_name(number), space_of(number), ip_of(number), on=on)
    del made["status"]
    made["metadata"]["labels"] |= {
        "app.kubernetes.io/name": f"app-{number % 100}",
        "app.kubernetes.io/part-of": "bench",
        "pod-template-hash": "5d9f7c5b6",
        "version": "v1",
    }
    made["metadata"]["annotations"] = {
        "kubectl.kubernetes.io/last-applied-configuration": "x" * 800,
        REDIRECTION_ANNOTATION: REDIRECTION_ENABLED,  # as written by the agent of its node
    }
    container = made["spec"]["containers"][0]
    container["env"] = [{"name": f"SETTING_{each}", "value": "value"} for each in range(12)]
    container["resources"] = {"requests": {"cpu": "10m", "memory": "32Mi"}}
    return made
