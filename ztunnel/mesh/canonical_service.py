# SPDX-License-Identifier: Apache-2.0
"""Derives the names of a workload in telemetry: canonical service, canonical revision and owner.

Source of the labels and their order: istio.io, "Canonical Service".
"""

from __future__ import annotations

from ztunnel.mesh.model import Workload

OWNER_KINDS = ("deployment", "cronjob", "job", "pod")
_SERVICE = ("service.istio.io/canonical-name", "app.kubernetes.io/name", "app")
_REVISION = ("service.istio.io/canonical-revision", "app.kubernetes.io/version", "version")
LABELS = (*_SERVICE, *_REVISION)


def owner(workload: Workload) -> tuple[str, str]:
    """Return kind (one of OWNER_KINDS) and name of the pod's owner, shared by all its replicas."""
    kind = workload.owner_kind if workload.owner_kind in OWNER_KINDS else "pod"
    return kind, workload.owner_name or workload.name


def service(workload: Workload) -> str:
    """Return the canonical service name."""
    return _first(workload, _SERVICE) or owner(workload)[1]


def revision(workload: Workload) -> str:
    """Return the canonical revision, `latest` by default."""
    return _first(workload, _REVISION) or "latest"


def _first(workload: Workload, names: tuple[str, ...]) -> str:
    return next((found for name in names if (found := workload.labels.get(name))), "")
