# SPDX-License-Identifier: Apache-2.0
"""Virtual addresses and endpoints of services: the lab's service and endpoint controllers.

Pure: objects in, objects out.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from ztunnel.lab.cluster.scheduler import is_ready, pod_ips
from ztunnel.lab.network import addresses
from ztunnel.lab.objects import Key, Object, Objects, key_of, of_kind

SERVICE_LABEL = "kubernetes.io/service-name"
MANAGED_LABEL = "endpointslice.kubernetes.io/managed-by"
MANAGER = "ztunnel-lab"

Ports = tuple[tuple[str, int, str], ...]  # (name, port at the pod, protocol)


def plan_services(objects: Objects) -> list[Object]:
    """All services with their virtual addresses and defaults filled in."""
    services = [copy.deepcopy(service) for service in of_kind(objects, "Service")]
    taken = set(addresses.DNS_ADDRESSES)
    for service in services:
        taken.update(service["spec"].get("clusterIPs") or [service["spec"].get("clusterIP", "")])
    for service in services:
        _default_ports(service["spec"])
        _assign(service, taken)
    return services


def _default_ports(spec: dict[str, Any]) -> None:
    spec.setdefault("type", "ClusterIP")
    for port in spec.get("ports") or []:
        port.setdefault("protocol", "TCP")
        port.setdefault("targetPort", port["port"])


def _assign(service: Object, taken: set[str]) -> None:
    spec = service["spec"]
    if spec["type"] == "ExternalName" or spec.get("clusterIPs"):
        return
    families = spec.get("ipFamilies") or _families_by_policy(spec)
    if spec.get("clusterIP"):
        ips = [spec["clusterIP"]]
        if ips != ["None"]:
            families = ["IPv6" if addresses.is_ipv6(ips[0]) else "IPv4"]
    else:
        pair = addresses.service_addresses("/".join(key_of(service)[1:]), taken)
        ips = [pair[family == "IPv6"] for family in families]
    taken.update(ips)
    spec |= {
        "clusterIP": ips[0],
        "clusterIPs": ips,
        "ipFamilies": families,
        "ipFamilyPolicy": "SingleStack" if len(families) == 1 else "PreferDualStack",
    }


def _families_by_policy(spec: dict[str, Any]) -> list[str]:
    return ["IPv4"] if spec.get("ipFamilyPolicy") == "SingleStack" else ["IPv4", "IPv6"]


def plan_slices(objects: Objects) -> list[Object]:
    """The EndpointSlices of every service that selects pods, one per family and set of ports."""
    return [piece for service in of_kind(objects, "Service") for piece in _slices(service, objects)]


def stale_slices(objects: Objects, planned: list[Object]) -> list[Key]:
    """Slices the lab wrote earlier that no service needs any more."""
    keep = {key_of(piece) for piece in planned}
    return [
        key_of(piece)
        for piece in of_kind(objects, "EndpointSlice")
        if piece["metadata"].get("labels", {}).get(MANAGED_LABEL) == MANAGER
        and key_of(piece) not in keep
    ]


def _slices(service: Object, objects: Objects) -> Iterator[Object]:
    spec, key = service["spec"], key_of(service)
    selector = spec.get("selector")
    if not selector or spec.get("type") == "ExternalName":
        return
    for family in spec.get("ipFamilies", []):
        groups: dict[Ports, list[Object]] = {}
        for pod in _selected(objects, key.namespace, selector):
            ports = _resolve(spec.get("ports") or [], pod)
            for ip in pod_ips(pod):
                if ports is not None and addresses.is_ipv6(ip) == (family == "IPv6"):
                    entry = _endpoint(pod, ip, bool(spec.get("publishNotReadyAddresses")))
                    groups.setdefault(ports, []).append(entry)
        groups = groups or {_resolve_static(spec.get("ports") or []): []}
        for number, (ports, endpoints) in enumerate(sorted(groups.items(), key=lambda g: g[0])):
            suffix = f"-{number}" if number else ""
            yield _slice(key, f"{key.name}-{family.lower()}{suffix}", family, ports, endpoints)


def _selected(objects: Objects, namespace: str, selector: dict[str, str]) -> Iterator[Object]:
    for pod in of_kind(objects, "Pod"):
        labels = pod["metadata"].get("labels") or {}
        if (
            pod["metadata"]["namespace"] == namespace
            and pod.get("status", {}).get("phase") == "Running"
            and selector.items() <= labels.items()
        ):
            yield pod


def _resolve(ports: list[dict[str, Any]], pod: Object) -> Ports | None:
    """The service's ports at this pod; None when it lacks a port the service names."""
    named = {
        port["name"]: port["containerPort"]
        for container in pod["spec"]["containers"]
        for port in container.get("ports") or []
        if "name" in port
    }
    resolved = []
    for port in ports:
        target = port.get("targetPort", port["port"])
        number = named.get(target) if isinstance(target, str) else target
        if number is None:
            return None
        resolved.append((port.get("name", ""), int(number), port.get("protocol", "TCP")))
    return tuple(resolved)


def _resolve_static(ports: list[dict[str, Any]]) -> Ports:
    """The ports of a service without endpoints: only those that need no pod to resolve."""
    return tuple(
        (port.get("name", ""), port["targetPort"], port.get("protocol", "TCP"))
        for port in ports
        if isinstance(port.get("targetPort"), int)
    )


def _endpoint(pod: Object, ip: str, publish_not_ready: bool) -> Object:
    ready, metadata = is_ready(pod), pod["metadata"]
    entry: Object = {
        "addresses": [ip],
        "conditions": {"ready": ready or publish_not_ready, "serving": ready, "terminating": False},
        "nodeName": pod["spec"]["nodeName"],
        "targetRef": {
            "kind": "Pod",
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "uid": metadata["uid"],
        },
    }
    if pod["spec"].get("hostname"):
        entry["hostname"] = pod["spec"]["hostname"]
    return entry


def _slice(service: Key, name: str, family: str, ports: Ports, endpoints: list[Object]) -> Object:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "namespace": service.namespace,
            "labels": {SERVICE_LABEL: service.name, MANAGED_LABEL: MANAGER},
        },
        "addressType": family,
        "ports": [
            {"name": port_name, "port": number, "protocol": protocol}
            for port_name, number, protocol in ports
        ],
        "endpoints": endpoints,
    }
