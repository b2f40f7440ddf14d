# SPDX-License-Identifier: Apache-2.0
"""What telemetry calls a workload: Istio's canonical service and revision, and its owner's name.

Labels and order: istio.io, "Canonical Service".
"""

from __future__ import annotations

from ztunnel.mesh.model import Workload

OWNER_KINDS = ("deployment", "cronjob", "job", "pod")
_SERVICE = ("service.istio.io/canonical-name", "app.kubernetes.io/name", "app")
_REVISION = ("service.istio.io/canonical-revision", "app.kubernetes.io/version", "version")


def owner(workload: Workload) -> tuple[str, str]:
    """Kind (one of OWNER_KINDS) and name of what made the pod: one name for all its replicas."""
    kind = workload.owner_kind if workload.owner_kind in OWNER_KINDS else "pod"
    return kind, workload.owner_name or workload.name


def service(workload: Workload) -> str:
    """The canonical service."""
    return _first(workload, _SERVICE) or owner(workload)[1]


def revision(workload: Workload) -> str:
    """The canonical revision."""
    return _first(workload, _REVISION) or "latest"


def _first(workload: Workload, names: tuple[str, ...]) -> str:
    return next((found for name in names if (found := workload.labels.get(name))), "")
