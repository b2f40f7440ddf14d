# SPDX-License-Identifier: Apache-2.0
"""A shop and its callers on a real API server, and helpers to observe them."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.lab.helpers.harness import APPS, addresses, enrolled, named, python_pod
from tests.lab.kubernetes.api_lab import ApiLab
from tests.support.apiserver.objects import ambient
from tests.support.waiting import wait_until
from ztunnel.lab import admin_get
from ztunnel.mesh.enrollment import REDIRECTION_ANNOTATION

MODE = "istio.io/dataplane-mode"
Object = dict[str, Any]


def shop_world() -> list[Object]:
    """Callers in `mesh` (ambient) and `plain`, and a shop in neither."""
    return [
        ambient("mesh"),
        named("Namespace", "plain"),
        named("Namespace", "shop"),
        python_pod("caller", "node1", namespace="mesh"),
        python_pod("caller", "node1", namespace="plain"),
        shop_pod("shop-1"),
        shop_service(),
    ]


def shop_pod(name: str, **annotations: str) -> Object:
    made = python_pod(name, "node2", namespace="shop", script="server.py", annotations=annotations)
    made["metadata"]["labels"] = {"app": "shop"}
    return made


def shop_service() -> Object:
    spec = {"selector": {"app": "shop"}, "ports": [{"port": 7000, "targetPort": 7000}]}
    metadata = {"name": "shop", "namespace": "shop"}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def workload(api: ApiLab, name: str, on: str = "node1") -> Object:
    """A workload in the view of the agent of a node; empty if it is unknown."""
    _, answer = admin_get(api.lab.names, on, "/v1/workloads")
    rows = (answer or {}).get("workloads", ())
    found = (row for row in rows if f"{row['namespace']}/{row['name']}" == name)
    return next(found, {})


def source(api: ApiLab, on: str = "node1") -> Object:
    """The status of the config source, from the admin API of an agent."""
    found: Object = admin_get(api.lab.names, on, "/v1/status")[1]["source"]
    return found


def mark(api: ApiLab, name: str) -> str:
    """The capture annotation of `namespace/name` in the API; empty when it has none."""
    space, _, pod_name = name.partition("/")
    found = json.loads(api.server.kubectl("-n", space, "get", "pod", pod_name, "-o", "json"))
    return str(found["metadata"].get("annotations", {}).get(REDIRECTION_ANNOTATION, ""))


def events(api: ApiLab, space: str, pod_name: str) -> list[Object]:
    words = ("get", "events", "--field-selector", f"involvedObject.name={pod_name}", "-o", "json")
    found: list[Object] = json.loads(api.server.kubectl("-n", space, *words))["items"]
    return found


class RequestLoop:
    """A loop of requests from a pod."""

    def __init__(self, api: ApiLab, space: str, host: str) -> None:
        self._process = api.lab.popen(
            "caller", sys.executable, str(APPS / "loop.py"), host, "7000", namespace=space
        )
        self.result: Object = {}

    def more(self, count: int = 50) -> None:
        """Wait for that many more answers."""
        assert self._process.stdout is not None
        for _ in range(count // 10 + 1):
            assert self._process.stdout.readline().strip().isdigit()

    def end(self) -> None:
        try:
            out, err = self._process.communicate(timeout=30)
        except BaseException:
            self._process.kill()
            raise
        lines = out.splitlines()
        assert lines, err
        self.result = json.loads(lines[-1])


@contextmanager
def requesting(api: ApiLab, *spaces: str) -> Iterator[list[RequestLoop]]:
    """Callers that send requests to the service of the shop; no request may fail."""
    vip = api.lab.get("Service", "shop", "shop")["spec"]["clusterIP"]
    loops = [RequestLoop(api, space, vip) for space in spaces]
    try:
        for loop in loops:
            loop.more()
        yield loops
        for loop in loops:
            loop.more()
    finally:
        for loop in loops:
            loop.end()
    for space, loop in zip(spaces, loops, strict=True):
        said = [line for node in ("node1", "node2") for line in _complaints(api, node)]
        count = loop.result["requests"]
        assert loop.result["failures"] == [], "\n".join([f"{space}, of {count} requests", *said])


def _complaints(api: ApiLab, node: str) -> list[str]:
    """The last warnings and failed connections of the agent and the proxy of a node."""
    lines = [
        line
        for kind in ("agent", "proxy")
        for line in api.lab.log_paths(node, kind, "default")[0].read_text().splitlines()
    ]
    return [line for line in lines if "warning" in line or "error=" in line][-12:]


def set_mode(api: ApiLab, space: str, mode: str) -> None:
    """kubectl label ns; an empty mode removes the label."""
    word = f"{MODE}={mode}" if mode else f"{MODE}-"
    api.server.kubectl("label", "--overwrite", "ns", space, word)


def until_captured(api: ApiLab, name: str, on: str) -> None:
    """Wait until the pod is captured and annotated, and the other node reaches it by HBONE."""
    other = "node1" if on == "node2" else "node2"
    wait_until(lambda: mark(api, name) == "enabled", f"{name} is marked")
    wait_until(
        lambda: workload(api, name, other).get("protocol") == "HBONE", f"{other} knows", timeout_s=5
    )
    assert set(workload(api, name, on)["addresses"]) <= enrolled(api.lab, on)


def until_left(api: ApiLab, name: str, on: str) -> None:
    """Wait until the pod is neither annotated nor captured."""
    address = workload(api, name, on)["addresses"][0]
    wait_until(lambda: mark(api, name) == "", f"{name} is unmarked")
    wait_until(lambda: address not in enrolled(api.lab, on), f"{name} is let go")
    assert workload(api, name, "node1")["protocol"] == "NONE"


def replace_pod(api: ApiLab, old: str, new: Object) -> None:
    """Replace a pod as a rolling update does: start the new one, then drain and stop the other."""
    assert api.lab.apply(new) == []
    api.lab.label("pod", old, {"app": "drained"}, namespace="shop")
    gone = addresses(api.lab, old, "shop")[4]
    for node in ("node1", "node2"):
        wait_until(functools.partial(_is_out, api, node, gone), "endpoints follow")
    assert api.lab.delete("pod", old, "shop") == []


def _is_out(api: ApiLab, node: str, address: str) -> bool:
    return address not in endpoints(api, node)


def endpoints(api: ApiLab, node: str) -> set[str]:
    _, answer = admin_get(api.lab.names, node, "/v1/services")
    shops = [row for row in (answer or {}).get("services", ()) if row["key"] == "shop/shop"]
    return {endpoint["address"] for row in shops for endpoint in row["endpoints"]}
