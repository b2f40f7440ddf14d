# SPDX-License-Identifier: Apache-2.0
"""Short constructors of workloads and label sets."""

from __future__ import annotations

from ztunnel.mesh.model import Workload
from ztunnel.telemetry import labels
from ztunnel.telemetry.labels import Labels, Reporter


def pod(name: str, owner: str = "", namespace: str = "shop", **pod_labels: str) -> Workload:
    """A replica of a deployment, or a bare pod."""
    return Workload(
        uid=f"Kubernetes//Pod/{namespace}/{name}",
        pod_uid=f"{name}-uid",
        name=name,
        namespace=namespace,
        service_account=owner or name,
        node="n1",
        addresses=("10.0.0.1",),
        labels=pod_labels,
        owner_kind="deployment" if owner else "pod",
        owner_name=owner,
    )


def between(source: str, destination: str) -> Labels:
    """The label set of two bare pods."""
    return labels.connection_labels(Reporter.SOURCE, pod(source), pod(destination))
