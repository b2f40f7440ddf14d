# SPDX-License-Identifier: Apache-2.0
"""Assigns addresses to Services of type LoadBalancer, as a cloud provider or MetalLB does.

    with LoadBalancer(cluster): ...     # in a thread of the control plane's network namespace

An address of POOL is routed from the outside to one node, whose kube-proxy translates it. With
`externalTrafficPolicy: Local` that is a node that runs a ready endpoint, as a health check of
`healthCheckNodePort` finds. `spec.loadBalancerIP` selects an address; one that is not in POOL or
taken is not assigned. Each Service needs an address of its own.
"""

from __future__ import annotations

import ipaddress
import subprocess
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from tests.support.nodes.cluster_fixture import Nodes
from ztunnel.kube.client.request import MERGE_PATCH, NOT_FOUND, ApiError, send

POOL = ipaddress.IPv4Network("10.98.0.0/24")
INTERVAL_S = 0.3
Json = dict[str, Any]
Key = tuple[str, str]


class LoadBalancer:
    """A thread that polls Services and EndpointSlices."""

    def __init__(self, cluster: Nodes) -> None:
        self._client = cluster.server.client()
        self._nodes = {machine.name: machine.address for machine in cluster.machines}
        self._assigned: dict[Key, str] = {}
        self._routes: dict[str, str] = {}  # address → node
        self._free = [str(address) for address in list(POOL.hosts())[9:]]  # the first are for tests
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load-balancer", daemon=True)

    def __enter__(self) -> LoadBalancer:
        self._thread.start()  # inherits the network namespace of this thread
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        self._thread.join()
        for address in list(self._routes):
            self._route(address, "")
        self._client.close()

    def _run(self) -> None:
        while not self._stopped.wait(INTERVAL_S):
            try:
                self._reconcile()
            except ApiError as error:  # the API server of a test may be restarting
                print(f"load balancer: {error}")

    def _reconcile(self) -> None:
        services = {
            _key(service): service
            for service in send(self._client, "GET", "/api/v1/services")["items"]
            if service["spec"].get("type") == "LoadBalancer"
        }
        for gone in self._assigned.keys() - services.keys():
            self._release(gone)
        nodes = self._nodes_of_endpoints() if services else {}
        for key, service in services.items():
            try:
                self._assign(key, service)
            except ApiError as error:
                if error.status != NOT_FOUND:  # deleted in between
                    raise
            if address := self._assigned.get(key):
                self._route(address, self._node(service, nodes.get(key, [])))

    def _assign(self, key: Key, service: Json) -> None:
        wanted = service["spec"].get("loadBalancerIP") or ""
        current = self._assigned.get(key, "")
        if current and wanted in ("", current):
            address = current
        else:
            self._release(key)
            address = self._take(wanted)
            if address:
                self._assigned[key] = address
        ingress = [{"ip": address, "ipMode": "VIP"}] if address else []
        if (service.get("status", {}).get("loadBalancer") or {}).get("ingress", []) == ingress:
            return
        namespace, name = key
        send(
            self._client,
            "PATCH",
            f"/api/v1/namespaces/{namespace}/services/{name}/status",
            body={"status": {"loadBalancer": {"ingress": ingress or None}}},
            content_type=MERGE_PATCH,
        )

    def _take(self, wanted: str) -> str:
        if not wanted:
            return self._free.pop(0)
        if wanted in self._assigned.values() or ipaddress.ip_address(wanted) not in POOL:
            return ""
        if wanted in self._free:
            self._free.remove(wanted)
        return wanted

    def _release(self, key: Key) -> None:
        if address := self._assigned.pop(key, ""):
            self._route(address, "")
            self._free.append(address)  # at the end: an address is not used again soon

    def _node(self, service: Json, ready: list[str]) -> str:
        """The node that gets the packets; empty if none may."""
        if service["spec"].get("externalTrafficPolicy") == "Local":
            return self._nodes[ready[0]] if ready else ""
        return next(iter(self._nodes.values()))

    def _nodes_of_endpoints(self) -> Mapping[Key, list[str]]:
        found: dict[Key, list[str]] = {}
        slices = send(self._client, "GET", "/apis/discovery.k8s.io/v1/endpointslices")["items"]
        for each in slices:
            metadata = each["metadata"]
            name = (metadata.get("labels") or {}).get("kubernetes.io/service-name", "")
            nodes = found.setdefault((metadata["namespace"], name), [])
            for endpoint in each.get("endpoints") or ():
                node = endpoint.get("nodeName")
                if node in self._nodes and (endpoint.get("conditions") or {}).get("ready"):
                    nodes.append(node)
        return found

    def _route(self, address: str, node: str) -> None:
        if self._routes.get(address, "") == node:
            return
        if node:
            words = f"ip route replace {address}/32 via {node}"
            self._routes[address] = node
        else:
            words = f"ip route del {address}/32"
            del self._routes[address]
        subprocess.run(words.split(), check=True)


def _key(obj: Json) -> Key:
    return obj["metadata"]["namespace"], obj["metadata"]["name"]
