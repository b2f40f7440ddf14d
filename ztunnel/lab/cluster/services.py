# SPDX-License-Identifier: Apache-2.0
"""The lab's service and EndpointSlice controllers: addresses and endpoints. Pure."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from ztunnel.lab.cluster.external_addresses import set_external_addresses
from ztunnel.lab.cluster.pod_fields import is_ready, is_terminating, pod_ips
from ztunnel.lab.network import addresses
from ztunnel.lab.objects import SERVICE_LABEL, Key, Object, Objects, key_of, of_kind

MANAGED_LABEL = "endpointslice.kubernetes.io/managed-by"
MANAGER = "ztunnel-lab"

Ports = tuple[tuple[str, int, str], ...]  # name, port of the pod, protocol


def plan_services(objects: Objects) -> list[Object]:
    """All services, with addresses and default values."""
    services = [copy.deepcopy(service) for service in of_kind(objects, "Service")]
    used = set(addresses.DNS_ADDRESSES)
    for service in services:
        used.update(service["spec"].get("clusterIPs") or [service["spec"].get("clusterIP", "")])
    for service in services:
        _set_port_defaults(service["spec"])
        _set_cluster_ips(service, used)
    set_external_addresses(services)
    return services


def _set_port_defaults(spec: dict[str, Any]) -> None:
    spec.setdefault("type", "ClusterIP")
    for port in spec.get("ports") or []:
        port.setdefault("protocol", "TCP")
        port.setdefault("targetPort", port["port"])


def _set_cluster_ips(service: Object, used: set[str]) -> None:
    spec = service["spec"]
    if spec["type"] == "ExternalName" or spec.get("clusterIPs"):
        return
    families = spec.get("ipFamilies") or _families_by_policy(spec)
    if spec.get("clusterIP"):
        ips = [spec["clusterIP"]]
        if ips != ["None"]:
            families = ["IPv6" if addresses.is_ipv6(ips[0]) else "IPv4"]
    else:
        pair = addresses.service_addresses("/".join(key_of(service)[1:]), used)
        ips = [pair[family == "IPv6"] for family in families]
    used.update(ips)
    spec |= {
        "clusterIP": ips[0],
        "clusterIPs": ips,
        "ipFamilies": families,
        "ipFamilyPolicy": "SingleStack" if len(families) == 1 else "PreferDualStack",
    }


def _families_by_policy(spec: dict[str, Any]) -> list[str]:
    return ["IPv4"] if spec.get("ipFamilyPolicy") == "SingleStack" else ["IPv4", "IPv6"]


def plan_slices(objects: Objects) -> list[Object]:
    """The EndpointSlices of services with a selector, one per address family and set of ports."""
    services = of_kind(objects, "Service")
    return [endpoint_slice for service in services for endpoint_slice in _slices(service, objects)]


def stale_slices(objects: Objects, planned: list[Object]) -> list[Key]:
    """The EndpointSlices of the lab that are not in the plan."""
    current = {key_of(endpoint_slice) for endpoint_slice in planned}
    return [
        key_of(endpoint_slice)
        for endpoint_slice in of_kind(objects, "EndpointSlice")
        if endpoint_slice["metadata"].get("labels", {}).get(MANAGED_LABEL) == MANAGER
        and key_of(endpoint_slice) not in current
    ]


def _slices(service: Object, objects: Objects) -> Iterator[Object]:
    spec, key = service["spec"], key_of(service)
    selector = spec.get("selector")
    if not selector or spec.get("type") == "ExternalName":
        return
    for family in spec.get("ipFamilies", []):
        groups: dict[Ports, list[Object]] = {}
        for pod in _selected_pods(objects, key.namespace, selector):
            ports = _resolve_ports(spec.get("ports") or [], pod)
            for ip in pod_ips(pod):
                if ports is not None and addresses.is_ipv6(ip) == (family == "IPv6"):
                    entry = _endpoint(pod, ip, bool(spec.get("publishNotReadyAddresses")))
                    groups.setdefault(ports, []).append(entry)
        groups = groups or {_numeric_ports(spec.get("ports") or []): []}
        for number, (ports, endpoints) in enumerate(sorted(groups.items(), key=lambda g: g[0])):
            suffix = f"-{number}" if number else ""
            yield _slice(key, f"{key.name}-{family.lower()}{suffix}", family, ports, endpoints)


def _selected_pods(objects: Objects, namespace: str, selector: dict[str, str]) -> Iterator[Object]:
    for pod in of_kind(objects, "Pod"):
        labels = pod["metadata"].get("labels") or {}
        if (
            pod["metadata"]["namespace"] == namespace
            and pod.get("status", {}).get("phase") == "Running"
            and selector.items() <= labels.items()
        ):
            yield pod


def _resolve_ports(ports: list[dict[str, Any]], pod: Object) -> Ports | None:
    """The service's ports of a pod; None if the pod has no port with a name that is used."""
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


def _numeric_ports(ports: list[dict[str, Any]]) -> Ports:
    """The ports of a service without endpoints: those with a numeric targetPort."""
    return tuple(
        (port.get("name", ""), port["targetPort"], port.get("protocol", "TCP"))
        for port in ports
        if isinstance(port.get("targetPort"), int)
    )


def _endpoint(pod: Object, ip: str, publish_not_ready: bool) -> Object:
    serving, metadata, terminating = is_ready(pod), pod["metadata"], is_terminating(pod)
    entry: Object = {
        "addresses": [ip],
        "conditions": {
            "ready": publish_not_ready or (serving and not terminating),
            "serving": serving,
            "terminating": terminating,
        },
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
