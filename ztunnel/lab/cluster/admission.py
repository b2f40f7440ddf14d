# SPDX-License-Identifier: Apache-2.0
"""Applying an object over a stored one: the object that the lab stores. Pure."""

from __future__ import annotations

import base64
import binascii
import copy
from collections.abc import Callable
from typing import Any

from ztunnel.lab.cluster.digest import digest
from ztunnel.lab.cluster.external_addresses import EXTERNAL_TYPES
from ztunnel.lab.errors import LabError
from ztunnel.lab.objects import SECRET, Object, key_of

APPLIED_ANNOTATION = "ztunnel-lab/applied-spec"  # hash of a pod's spec, as in its manifest


def admit(new: Object, old: Object | None, uid: Callable[[], str], now: str) -> Object:
    """The object to store if `new` is applied over `old`.

    Fields that the lab sets (uid, node, addresses, status) are preserved. Labels and annotations
    are merged, and those of `new` take precedence, so that labels of `ztctl lab label` survive. A
    pod without an owner whose spec has changed is unbound, and so is created anew. Raises LabError
    if a Secret is invalid.
    """
    stored = copy.deepcopy(new)
    if new["kind"] == SECRET:
        _admit_secret(stored)
    metadata = stored["metadata"]
    if new["kind"] == "Pod":
        annotations = metadata.setdefault("annotations", {})
        annotations[APPLIED_ANNOTATION] = digest(new.get("spec"))
    if old is None:
        metadata.setdefault("uid", uid())
        metadata.setdefault("creationTimestamp", now)
        return unbound(stored) if new["kind"] == "Pod" else stored
    for field in ("labels", "annotations"):
        merged = {**old["metadata"].get(field, {}), **metadata.get(field, {})}
        if merged:
            metadata[field] = merged
    if new["kind"] == "Pod":
        return _admit_pod(stored, old)
    for field in ("uid", "creationTimestamp"):
        metadata.setdefault(field, old["metadata"].get(field))
    if new["kind"] == "Service":
        _preserve_cluster_ips(stored.setdefault("spec", {}), old.get("spec", {}))
        _preserve_node_ports(stored["spec"], old.get("spec", {}))
    if "status" in old:
        stored.setdefault("status", copy.deepcopy(old["status"]))
    return stored


def unbound(pod: Object) -> Object:
    """The pod without uid and status, as before scheduling: the next plan creates it anew."""
    metadata = {name: value for name, value in pod["metadata"].items() if name != "uid"}
    others = {name: value for name, value in pod.items() if name != "status"}
    return {**others, "metadata": metadata}


def terminating(pod: Object, now: str) -> Object:
    """The pod while it is being deleted, as the API server shows it during the grace period."""
    return {**pod, "metadata": {**pod["metadata"], "deletionTimestamp": now}}


def _admit_pod(stored: Object, old: Object) -> Object:
    applied = old["metadata"].get("annotations", {}).get(APPLIED_ANNOTATION)
    if applied != stored["metadata"]["annotations"][APPLIED_ANNOTATION]:
        return unbound(stored)
    unchanged = copy.deepcopy(old)
    for field in ("labels", "annotations"):
        if field in stored["metadata"]:
            unchanged["metadata"][field] = stored["metadata"][field]
    return unchanged


def _admit_secret(secret: Object) -> None:
    """Merge stringData into data, as the API server does."""
    secret.setdefault("type", "Opaque")
    data = dict(secret.get("data") or {})
    for name, text in (secret.pop("stringData", None) or {}).items():
        data[name] = base64.b64encode(str(text).encode()).decode()
    for name, value in data.items():
        try:
            base64.b64decode(value, validate=True)
        except (TypeError, ValueError, binascii.Error) as error:
            raise LabError(f"{key_of(secret)}: data[{name!r}] is not base64") from error
    secret["data"] = data


def _preserve_cluster_ips(new: dict[str, Any], old: dict[str, Any]) -> None:
    if "clusterIP" in new or "clusterIPs" in new:
        return
    for field in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
        if field in old and old.get("clusterIP") != "None":
            new.setdefault(field, old[field])


def _preserve_node_ports(new: dict[str, Any], old: dict[str, Any]) -> None:
    """Ports have the same node port as before, unless the manifest sets another one."""
    assigned = {
        (port["port"], port.get("protocol", "TCP")): port["nodePort"]
        for port in old.get("ports") or []
        if "nodePort" in port
    }
    for port in new.get("ports") or [] if new.get("type") in EXTERNAL_TYPES else []:
        key = port["port"], port.get("protocol", "TCP")
        if key in assigned:
            port.setdefault("nodePort", assigned[key])
