# SPDX-License-Identifier: Apache-2.0
"""A second implementation of the policy semantics, from the specification and the raw objects.

It is slow, has no index, and shares no code with the translation or the policy engine.
"""

from __future__ import annotations

import ipaddress
from typing import Any

Json = dict[str, Any]


def allowed(
    objects: list[Json],
    root: str,
    *,
    namespace: str,
    labels: dict[str, str],
    source_ip: str,
    identity: str,
    ip: str,
    port: int,
) -> bool:
    """Whether a connection to a pod in `namespace` with `labels` is allowed."""
    connection = {"ip": source_ip, "identity": identity, "to": ip, "port": port}
    if not identity and _mode(objects, root, namespace, labels, port) == "STRICT":
        return False
    mine = [
        each
        for each in objects
        if each["kind"] == "AuthorizationPolicy"
        and each["metadata"]["namespace"] in (root, namespace)
        and _selects(each, labels)
    ]
    denies = [each for each in mine if each["spec"].get("action") == "DENY"]
    allows = [each for each in mine if each["spec"].get("action", "ALLOW") == "ALLOW"]
    if any(_matches(each, connection) for each in denies):
        return False
    if not allows:
        return True
    return any(_matches(each, connection) for each in allows)


def _selects(obj: Json, labels: dict[str, str]) -> bool:
    wanted = (obj["spec"].get("selector") or {}).get("matchLabels") or {}
    return all(labels.get(key) == value for key, value in wanted.items())


def _matches(policy: Json, connection: Json) -> bool:
    namespace = policy["metadata"]["namespace"]
    return any(_rule(rule, namespace, connection) for rule in policy["spec"].get("rules", []))


def _rule(rule: Json, namespace: str, connection: Json) -> bool:
    froms, tos, whens = rule.get("from"), rule.get("to"), rule.get("when", [])
    if froms is not None and not any(_fields(f["source"], namespace, connection) for f in froms):
        return False
    if tos is not None and not any(_fields(t["operation"], namespace, connection) for t in tos):
        return False
    for each in whens:
        fields = {}
        name = {
            "source.principal": "principals",
            "source.namespace": "namespaces",
            "source.ip": "ipBlocks",
            "destination.ip": "to",
            "destination.port": "ports",
        }[each["key"]]
        if each.get("values"):
            fields[name] = each["values"]
        if each.get("notValues"):
            fields[f"not{name[0].upper()}{name[1:]}"] = each["notValues"]
        if not _fields(fields, namespace, connection):
            return False
    return True


def _fields(fields: Json, namespace: str, connection: Json) -> bool:
    for name, values in fields.items():
        negative = name.startswith("not")
        plain = name[3].lower() + name[4:] if negative else name
        hit = any(_value(plain, value, namespace, connection) for value in values)
        if hit == negative:
            return False
    return True


def _value(name: str, value: str, namespace: str, connection: Json) -> bool:
    identity = str(connection["identity"])
    if name == "ports":
        return int(value) == int(connection["port"])
    if name in ("ipBlocks", "remoteIpBlocks", "to"):
        address = ipaddress.ip_address(connection["to" if name == "to" else "ip"])
        return bool(address in ipaddress.ip_network(value, strict=False))
    if not identity:
        return False
    _, _, _, _, its_namespace, _, account = identity.split("/")
    if name == "serviceAccounts":
        full = value if "/" in value else f"{namespace}/{value}"
        return full == f"{its_namespace}/{account}"
    text = identity[len("spiffe://") :] if name == "principals" else its_namespace
    return _text(value, str(text))


def _text(pattern: str, text: str) -> bool:
    if pattern == "*":
        return True
    if pattern[-1] == "*":
        return text.startswith(pattern[:-1])
    if pattern[0] == "*":
        return text.endswith(pattern[1:])
    return text == pattern


def _mode(objects: list[Json], root: str, namespace: str, labels: Json, port: int) -> str:
    workload: list[Json] = []
    namespaced: list[Json] = []
    mesh: list[Json] = []
    for each in objects:
        place = each["metadata"]["namespace"]
        if each["kind"] != "PeerAuthentication" or place not in (root, namespace):
            continue
        if (each["spec"].get("selector") or {}).get("matchLabels"):
            if _selects(each, labels):
                workload.append(each)
        elif place == root:
            mesh.append(each)
        else:
            namespaced.append(each)
    for level in (workload, namespaced, mesh):
        level.sort(
            key=lambda each: (
                each["metadata"]["namespace"] == root,
                each["metadata"].get("creationTimestamp", ""),
                each["metadata"]["namespace"],
                each["metadata"]["name"],
            )
        )
    if workload:
        mode = workload[0]["spec"].get("portLevelMtls", {}).get(port, {}).get("mode", "UNSET")
        if mode != "UNSET":
            return str(mode)
    for level in (workload, namespaced, mesh):
        mode = level[0]["spec"].get("mtls", {}).get("mode", "UNSET") if level else "UNSET"
        if mode != "UNSET":
            return str(mode)
    return "PERMISSIVE"
