# SPDX-License-Identifier: Apache-2.0
"""Kubernetes objects for the tests, as an API server shows them."""

from __future__ import annotations

from typing import Any

from ztunnel.kube.objects.fields import Object

AMBIENT = {"istio.io/dataplane-mode": "ambient"}


def namespace(name: str = "default", labels: dict[str, str] | None = None) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": labels or {}},
    }


def node(name: str, *ips: str) -> Object:
    entries = [{"type": "InternalIP", "address": ip} for ip in ips]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name},
        "status": {"addresses": [*entries, {"type": "Hostname", "address": name}]},
    }


def pod(
    name: str = "web",
    *ips: str,
    namespace: str = "default",
    uid: str = "",
    node: str = "node1",
    phase: str = "Running",
    ready: bool = True,
    labels: dict[str, Any] | None = None,
    annotations: dict[str, str] | None = None,
    owners: list[Object] | None = None,
    **spec: Any,
) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": uid or f"uid-{namespace}-{name}",
            "labels": labels or {},
            "annotations": annotations or {},
            "ownerReferences": owners or [],
        },
        "spec": {"nodeName": node, "containers": [{"name": "c"}], **spec},
        "status": {
            "phase": phase,
            "podIPs": [{"ip": ip} for ip in ips],
            "conditions": [{"type": "Ready", "status": str(ready)}],
        },
    }


def service(name: str = "web", *vips: str, namespace: str = "default", **spec: Any) -> Object:
    ports = [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"clusterIPs": list(vips), "ports": ports, **spec},
    }


def endpoint(ip: str, pod_name: str = "", ready: bool | None = True) -> Object:
    entry: Object = {"addresses": [ip], "conditions": {"ready": ready}}
    if pod_name:
        entry["targetRef"] = {"kind": "Pod", "namespace": "default", "name": pod_name}
    return entry


def endpoint_slice(
    name: str,
    service: str,
    *endpoints: Object,
    namespace: str = "default",
    port: int | None = 8080,
    port_name: str = "http",
    family: str = "IPv4",
) -> Object:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": family,
        "ports": [{"name": port_name, "port": port, "protocol": "TCP"}],
        "endpoints": list(endpoints),
    }


def gateway(
    name: str = "waypoint",
    *,
    namespace: str = "default",
    traffic: str = "",
    allowed: Object | None = None,
) -> Object:
    """A waypoint. `traffic`: istio.io/waypoint-for; `allowed`: allowedRoutes.namespaces."""
    listener: Object = {"name": "mesh", "port": 15008, "protocol": "HBONE"}
    if allowed is not None:
        listener["allowedRoutes"] = {"namespaces": allowed}
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"istio.io/waypoint-for": traffic} if traffic else {},
        },
        "spec": {"gatewayClassName": "istio-waypoint", "listeners": [listener]},
    }
