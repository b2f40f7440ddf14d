# SPDX-License-Identifier: Apache-2.0
"""A client outside the cluster, services of type NodePort and LoadBalancer, and Secret volumes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.waiting import wait_until
from ztunnel.lab import Lab
from ztunnel.lab.network.addresses import EXTERNAL_ADDRESSES
from ztunnel.lab.objects import Object

MOUNT = "/etc/ztunnel/lab-test"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    made = Lab(f"x{os.getpid() % 100000}", mesh=False)
    try:
        assert made.up([]) == []
        assert made.apply(web("node2")) == []
        yield made
    finally:
        made.down()


def web(node: str) -> Object:
    container = {"name": "web", "image": "nginx", "ports": [{"containerPort": 80}]}
    spec = {"nodeSelector": {"kubernetes.io/hostname": node}, "containers": [container]}
    return obj("Pod", "web", spec=spec, labels={"app": "web"})


def service(policy: str) -> Object:
    port = {"port": 8080, "targetPort": 80, "nodePort": 30080}
    spec = {
        "type": "LoadBalancer",
        "externalTrafficPolicy": policy,
        "selector": {"app": "web"},
        "ports": [port],
    }
    return obj("Service", "web", spec=spec)


def obj(kind: str, name: str, labels: dict[str, str] | None = None, **parts: Any) -> Object:
    metadata = {"name": name, "namespace": "default", "labels": labels or {}}
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata, **parts}


def client_seen_by_web(lab: Lab, host: str, port: int) -> str:
    """The address of the machine outside as the pod sees it; empty if it is refused."""
    host = f"[{host}]" if ":" in host else host
    done = lab.external_exec("curl", "-sSg", "--max-time", "3", f"http://{host}:{port}/whoami")
    return str(json.loads(done.stdout)["client"]) if done.returncode == 0 else ""


@pytest.mark.parametrize("family", [0, 1])
def test_local_policy_preserves_the_address_of_the_client(lab: Lab, family: int) -> None:
    assert lab.apply(service("Local")) == []
    ingress = lab.get("Service", "web")["status"]["loadBalancer"]["ingress"]
    balancer = ingress[family]["ip"]
    node1, node2 = (("172.30.0.1", "fd00:30::1")[family], ("172.30.0.2", "fd00:30::2")[family])
    for _ in range(4):  # whatever the load balancer selects
        assert client_seen_by_web(lab, balancer, 8080) == EXTERNAL_ADDRESSES[family]
    assert client_seen_by_web(lab, node2, 30080) == EXTERNAL_ADDRESSES[family]
    assert client_seen_by_web(lab, node1, 30080) == ""  # it has no endpoint


@pytest.mark.parametrize("family", [0, 1])
def test_cluster_policy_reaches_the_pods_of_other_nodes(lab: Lab, family: int) -> None:
    assert lab.apply(service("Cluster")) == []
    ingress = lab.get("Service", "web")["status"]["loadBalancer"]["ingress"]
    node1 = ("172.30.0.1", "fd00:30::1")[family]
    assert client_seen_by_web(lab, node1, 30080) == node1
    seen = {client_seen_by_web(lab, ingress[family]["ip"], 8080) for _ in range(4)}
    assert seen == {("172.30.0.1", "fd00:30::1")[family], ("172.30.0.2", "fd00:30::2")[family]}


def test_client_outside_has_no_route_to_pods(lab: Lab) -> None:
    assert client_seen_by_web(lab, lab.pod("web")["status"]["podIP"], 80) == ""


def test_balancer_without_endpoints_refuses(lab: Lab) -> None:
    unselected = service("Local")
    unselected["metadata"]["name"] = "unselected"
    unselected["spec"] |= {"selector": {"app": "none"}, "ports": [{"port": 80}]}
    assert lab.apply(unselected) == []
    ip = lab.get("Service", "unselected")["status"]["loadBalancer"]["ingress"][0]["ip"]
    done = lab.external_exec("curl", "-sS", "--max-time", "3", f"http://{ip}")
    assert done.returncode == 7  # refused, not 28: timed out


def test_secret_is_mounted_and_renewed_while_the_pod_runs(lab: Lab) -> None:
    tls = obj("Secret", "tls", stringData={"tls.crt": "first"})
    reader = obj(
        "Pod",
        "reader",
        spec={
            "securityContext": {"runAsUser": 4711},
            "volumes": [{"name": "tls", "secret": {"secretName": "tls"}}],
            "containers": [
                {
                    "name": "c",
                    "image": "debian",
                    "volumeMounts": [{"name": "tls", "mountPath": MOUNT}],
                }
            ],
        },
    )
    problems = lab.apply(reader)
    assert any("Secret 'tls' of volume 'tls' does not exist" in each for each in problems)
    assert lab.apply(tls) == []
    assert lab.exec("reader", "cat", f"{MOUNT}/tls.crt").stdout == "first"
    assert lab.apply({**tls, "stringData": {"tls.crt": "second"}}) == []
    wait_until(lambda: lab.exec("reader", "cat", f"{MOUNT}/tls.crt").stdout == "second")
    assert not Path(MOUNT).exists()  # on the machine
