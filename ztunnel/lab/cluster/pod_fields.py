# SPDX-License-Identifier: Apache-2.0
"""Accessors for the fields of a Pod."""

from __future__ import annotations

from ztunnel.lab.objects import Object


def is_ready(pod: Object) -> bool:
    """Whether the condition Ready is true."""
    conditions = pod.get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def is_terminating(pod: Object) -> bool:
    """Whether the pod is being deleted: its containers are about to stop."""
    return "deletionTimestamp" in pod["metadata"]


def is_host_network(pod: Object) -> bool:
    """Whether the pod shares its node's network namespace."""
    return bool(pod["spec"].get("hostNetwork"))


def pod_ips(pod: Object) -> list[str]:
    """The pod's addresses, IPv4 first; empty until it is scheduled."""
    return [entry["ip"] for entry in pod.get("status", {}).get("podIPs", [])]
