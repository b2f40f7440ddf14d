# SPDX-License-Identifier: Apache-2.0
"""Kubernetes objects as controllers and kubelets write them."""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]
AMBIENT = {"istio.io/dataplane-mode": "ambient"}


def namespace(name: str, **labels: str) -> Object:
    metadata = {"name": name, "labels": labels}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}


def ambient(name: str) -> Object:
    """An enrolled namespace."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": AMBIENT}}


def node(name: str, *addresses: str) -> Object:
    status = {"addresses": [{"type": "InternalIP", "address": ip} for ip in addresses]}
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "status": status}


def account(name: str, space: str) -> Object:
    metadata = {"name": name, "namespace": space}
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}


def pod(
    name: str,
    space: str,
    ip: str,
    *,
    on: str = "n1",
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    host_network: bool = False,
) -> Object:
    """A running, ready pod."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": space,
            "labels": {"app": name} | (labels or {}),
            "annotations": annotations or {},
        },
        "spec": {
            "nodeName": on,
            "hostNetwork": host_network,
            "serviceAccountName": name,
            "containers": [{"name": "app", "image": "nginx", "ports": [{"containerPort": 80}]}],
        },
        "status": {
            "phase": "Running",
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def service(name: str, space: str, port: int = 80) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": space},
        "spec": {"selector": {"app": name}, "ports": [{"port": port, "protocol": "TCP"}]},
    }


def endpoints(name: str, space: str, *pods: tuple[str, str], port: int = 80) -> Object:
    """The EndpointSlice of a service; `pods`: (name, IP)."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{name}-1",
            "namespace": space,
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4",
        "ports": [{"name": "", "port": port, "protocol": "TCP"}],
        "endpoints": [
            {
                "addresses": [ip],
                "conditions": {"ready": True},
                "targetRef": {"kind": "Pod", "name": pod_name, "namespace": space},
            }
            for pod_name, ip in pods
        ],
    }
