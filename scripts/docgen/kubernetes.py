# SPDX-License-Identifier: Apache-2.0
"""Reference of what the mesh reads from, writes to and may do in a Kubernetes cluster."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from scripts.docgen import facts
from scripts.docgen.markdown import ROOT, code, enum_members, sources, table
from ztunnel.agent.api.admin_views import NOT_SERVED

_EVENT = re.compile(r'"(Mesh[A-Z][A-Za-z]+)"')
_LABEL = re.compile(r'"([a-z0-9.-]+\.(?:io|dev)/[A-Za-z-]+)"')


def events() -> str:
    """Reasons of the Events that agent and controller emit."""
    found = {
        reason
        for path in sources("ztunnel/agent", "ztunnel/controller")
        for reason in _EVENT.findall(_read(path))
    }
    return table(("reason", "meaning"), _described(found, facts.EVENTS, "Event"))


def pod_errors() -> str:
    """Reasons why the agent retries a step of a pod's enrollment."""
    found = {value for _, value, _ in enum_members("ztunnel/agent/pods/pod.py", "RetryReason")}
    found.add(NOT_SERVED)
    return table(("reason", "meaning"), _described(found, facts.POD_ERRORS, "pod error"))


def csr_reasons() -> str:
    """Reasons that the controller gives in the conditions of a request."""
    found = {value for _, value, _ in enum_members("ztunnel/controller/csr_policy.py", "Reason")}
    return table(("reason", "meaning"), _described(found, facts.CSR_REASONS, "CSR reason"))


def labels() -> str:
    """Labels and annotations that the code names."""
    found = {
        name
        for path in sources("ztunnel/agent", "ztunnel/controller", "ztunnel/kube", "ztunnel/mesh")
        for name in _LABEL.findall(_read(path))
        if name not in facts.NOT_LABELS
    }
    rows = (
        (code(name), *facts.LABELS.get(name, ("", f"UNDESCRIBED: add it to {facts.__file__}")))
        for name in sorted(found)
    )
    return table(("name", "on", "meaning"), rows)


def rbac() -> str:
    """Rules of every Role and ClusterRole in deploy/."""
    parts = []
    for path in sorted((ROOT / "deploy").glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if document and document["kind"] in ("Role", "ClusterRole"):
                parts.append(_role(document, path.name))
    return "\n\n".join(parts)


def _role(role: dict[str, Any], file: str) -> str:
    meta = role["metadata"]
    where = f" in `{meta['namespace']}`" if "namespace" in meta else ""
    head = f"### {role['kind']} {meta['name']}\n\n{role['kind']}{where}, from `deploy/{file}`."
    rows = [
        (
            ", ".join(code(group or "core") for group in rule["apiGroups"]),
            ", ".join(map(code, rule["resources"])),
            ", ".join(map(code, rule.get("resourceNames", ()))) or "all",
            ", ".join(rule["verbs"]),
        )
        for rule in role["rules"]
    ]
    return f"{head}\n\n{table(('API groups', 'resources', 'names', 'verbs'), rows)}"


def _described(found: set[str], known: dict[str, str], kind: str) -> Iterator[tuple[str, str]]:
    for name in sorted(found):
        yield code(name), known.get(name, f"UNDESCRIBED {kind}")


def _read(path: Any) -> str:
    return str(path.read_text(encoding="utf-8"))
