# SPDX-License-Identifier: Apache-2.0
"""Overlays of a Gateway's resources: the ConfigMap that `spec.infrastructure.parametersRef` names.

Its keys are Istio's: `deployment`, `service`, `serviceAccount`, `horizontalPodAutoscaler` and
`podDisruptionBudget`, and `daemonSet`. Each holds YAML that is merged as by `kubectl patch`:
mappings by key, lists of named items by name, null deletes. Only fields that cannot change what a
gateway pod runs are honoured: the right to create a Gateway must not include the right to run other
containers or mount other volumes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

import yaml

from ztunnel.kube.objects.yaml_errors import YAML_ERRORS
from ztunnel.l7.deployment.settings import Json

MAX_OVERLAY_BYTES = 64 * 1024  # of one key
_MAX_DEPTH = 32
_ANY: None = None
_METADATA = {"labels": _ANY, "annotations": _ANY}
# The field by which items of a list are merged (kubernetes, patchMergeKey); others are replaced.
_MERGE_KEYS = {
    "containers": "name",
    "imagePullSecrets": "name",
    "ports": "port",
    "topologySpreadConstraints": "topologyKey",
}
_Tree = Mapping[str, Any]


class OverlayKey(StrEnum):
    """Keys of the ConfigMap, and of which kind the object is."""

    DEPLOYMENT = "deployment"
    DAEMON_SET = "daemonSet"
    SERVICE = "service"
    SERVICE_ACCOUNT = "serviceAccount"
    AUTOSCALER = "horizontalPodAutoscaler"
    DISRUPTION_BUDGET = "podDisruptionBudget"


_POD: _Tree = {
    "affinity": _ANY,
    "containers": {"name": _ANY, "imagePullPolicy": _ANY, "resources": _ANY},
    "imagePullSecrets": _ANY,
    "nodeSelector": _ANY,
    "priorityClassName": _ANY,
    "runtimeClassName": _ANY,
    "schedulerName": _ANY,
    "terminationGracePeriodSeconds": _ANY,
    "tolerations": _ANY,
    "topologySpreadConstraints": _ANY,
}
_ALLOWED: dict[OverlayKey, _Tree] = {
    OverlayKey.DAEMON_SET: {
        "metadata": _METADATA,
        "spec": {
            "minReadySeconds": _ANY,
            "revisionHistoryLimit": _ANY,
            "template": {"metadata": _METADATA, "spec": _POD},
            "updateStrategy": _ANY,
        },
    },
    OverlayKey.DEPLOYMENT: {
        "metadata": _METADATA,
        "spec": {
            "minReadySeconds": _ANY,
            "progressDeadlineSeconds": _ANY,
            "replicas": _ANY,
            "revisionHistoryLimit": _ANY,
            "strategy": _ANY,
            "template": {"metadata": _METADATA, "spec": _POD},
        },
    },
    OverlayKey.SERVICE: {
        "metadata": _METADATA,
        "spec": {
            "internalTrafficPolicy": _ANY,
            "ipFamilies": _ANY,
            "ipFamilyPolicy": _ANY,
            "trafficDistribution": _ANY,
        },
    },
    OverlayKey.SERVICE_ACCOUNT: {"metadata": _METADATA},
    OverlayKey.AUTOSCALER: {
        "metadata": _METADATA,
        "spec": {"behavior": _ANY, "maxReplicas": _ANY, "metrics": _ANY, "minReplicas": _ANY},
    },
    OverlayKey.DISRUPTION_BUDGET: {
        "metadata": _METADATA,
        "spec": {"maxUnavailable": _ANY, "minAvailable": _ANY, "unhealthyPodEvictionPolicy": _ANY},
    },
}
# Of the Service of an ingress gateway. `externalIPs` is not among them: with it, the author of a
# Gateway could capture the traffic of other pods to any address (CVE-2020-8554).
_INGRESS_SERVICE: _Tree = {
    "metadata": _METADATA,
    "spec": {
        "allocateLoadBalancerNodePorts": _ANY,
        "externalTrafficPolicy": _ANY,
        "healthCheckNodePort": _ANY,
        "internalTrafficPolicy": _ANY,
        "ipFamilies": _ANY,
        "ipFamilyPolicy": _ANY,
        "loadBalancerClass": _ANY,
        "loadBalancerSourceRanges": _ANY,
        "ports": {"port": _ANY, "nodePort": _ANY},
        "sessionAffinity": _ANY,
        "sessionAffinityConfig": _ANY,
        "trafficDistribution": _ANY,
    },
}


class OverlayError(ValueError):
    """An overlay is not usable at all."""


def parse_overlay(text: str) -> Json:
    """Read the YAML of one key. Raises OverlayError."""
    if len(text.encode()) > MAX_OVERLAY_BYTES:
        raise OverlayError(f"has more than {MAX_OVERLAY_BYTES} bytes")
    try:
        found = yaml.load(text, _Loader)
    except YAML_ERRORS as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OverlayError(f"is not YAML: {line}") from error
    if not isinstance(found, dict | None):
        raise OverlayError("is not a mapping")
    if _depth(found) > _MAX_DEPTH:
        raise OverlayError(f"is nested deeper than {_MAX_DEPTH} levels")
    return found or {}


def restrict(
    key: OverlayKey, overlay: Json, drop: Callable[[str], None], *, is_ingress: bool = False
) -> Json:
    """Return the honoured part of an overlay; `drop` receives the path of each other field."""
    allowed = honoured_fields(key, is_ingress=is_ingress)
    ignored = {"apiVersion", "kind"}
    rest = {name: value for name, value in overlay.items() if name not in ignored}
    return _restricted(rest, allowed, "", drop)


def honoured_fields(key: OverlayKey, *, is_ingress: bool) -> Mapping[str, Any]:
    """The fields as nested mappings; None stands for all values of a field."""
    return _INGRESS_SERVICE if is_ingress and key is OverlayKey.SERVICE else _ALLOWED[key]


def merge(base: Json, overlay: Json) -> Json:
    """Merge an overlay into an object, which is not modified."""
    merged = dict(base)
    for name, value in overlay.items():
        before = merged.get(name)
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, dict):
            merged[name] = merge(before if isinstance(before, dict) else {}, value)
        elif isinstance(value, list) and name in _MERGE_KEYS and isinstance(before, list):
            merged[name] = _merge_items(before, value, _MERGE_KEYS[name])
        else:
            merged[name] = value
    return merged


class _Loader(yaml.SafeLoader):
    """Without aliases, which make a small text a huge object."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases are not supported")
        return super().compose_node(parent, index)


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return 0


def _restricted(overlay: Json, allowed: _Tree, path: str, drop: Callable[[str], None]) -> Json:
    found: Json = {}
    for name, value in overlay.items():
        where = f"{path}.{name}" if path else str(name)
        if name not in allowed:
            drop(where)
            continue
        inner = allowed[name]
        if inner is None:
            found[name] = value
        elif isinstance(value, dict):
            found[name] = _restricted(value, inner, where, drop)
        elif isinstance(value, list) and name in _MERGE_KEYS:
            found[name] = [
                _restricted(item, inner, f"{where}[{number}]", drop)
                for number, item in enumerate(value)
                if isinstance(item, dict)
            ]
        else:
            drop(where)
    return found


def _merge_items(before: list[Any], overlay: list[Any], key: str) -> list[Any]:
    merged = list(before)
    for item in overlay:
        name = item.get(key) if isinstance(item, dict) else None
        for number, existing in enumerate(merged):
            if name is not None and isinstance(existing, dict) and existing.get(key) == name:
                merged[number] = merge(existing, item)
                break
        else:
            merged.append(item)
    return merged
