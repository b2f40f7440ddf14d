# SPDX-License-Identifier: Apache-2.0
"""Pods and services inside and outside the mesh, for tests of reachability between them."""

from __future__ import annotations

import json
from functools import partial
from itertools import product
from typing import Any

from tests.support.apiserver.control_plane import wait_until
from tests.support.nodes.cluster_fixture import Nodes
from tests.support.nodes.objects import (
    AMBIENT,
    GREETING,
    account,
    client,
    namespace,
    server,
    service,
)
from tests.support.nodes.pods import ask, is_captured, is_ready

INSIDE, OUTSIDE = "inside", "outside"
SERVERS = {"near": "node-1", "far": "node-2"}  # the clients are on node-1


def create_workloads(cluster: Nodes, timeout_s: float) -> None:
    """In both namespaces: a client, and servers with a service each, all ready and reachable."""
    for space, labels in ((INSIDE, AMBIENT), (OUTSIDE, {})):
        accounts = [account(name, space) for name in ("client", *SERVERS)]
        servers = [server(name, space, node) for name, node in SERVERS.items()]
        services = [service(name, space, type="NodePort") for name in SERVERS]
        pods = [client("client", space, "node-1"), *servers]
        cluster.server.apply(namespace(space, labels), *accounts, *pods, *services)
    for name in ("client", *SERVERS):
        wait_until(
            partial(is_captured, cluster, INSIDE, name), f"{name} captured", timeout_s=timeout_s
        )
        wait_until(
            partial(is_ready, cluster, OUTSIDE, name), f"{name} outside ready", timeout_s=timeout_s
        )
    for space, name in product((INSIDE, OUTSIDE), SERVERS):
        wait_until(partial(_is_answered, cluster, space, name), f"kube-proxy knows {space}/{name}")


def _is_answered(cluster: Nodes, space: str, name: str) -> bool:
    return ask(cluster, OUTSIDE, "client", cluster_ip(cluster, space, name)) == GREETING


def cluster_ip(cluster: Nodes, space: str, name: str) -> str:
    """The cluster IP of a service."""
    return str(_service(cluster, space, name)["clusterIP"])


def node_port(cluster: Nodes, space: str, name: str) -> int:
    """The TCP node port of a service."""
    return int(_service(cluster, space, name)["ports"][0]["nodePort"])


def _service(cluster: Nodes, space: str, name: str) -> dict[str, Any]:
    words = ("get", "service", "-n", space, name, "-o", "jsonpath={.spec}")
    found: dict[str, Any] = json.loads(cluster.server.kubectl(*words))
    return found
