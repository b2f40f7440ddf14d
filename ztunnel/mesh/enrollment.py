# SPDX-License-Identifier: Apache-2.0
"""Decides which pods are enrolled, from Istio's labels. Pure.

Sources: `istio.io/dataplane-mode` (istio.io, "Add workloads to an ambient mesh") and
cni/pkg/util/podutil.go of Istio for the exceptions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MODE_LABEL = "istio.io/dataplane-mode"
MODE_AMBIENT = "ambient"
MODE_NONE = "none"
SIDECAR_ANNOTATION = "sidecar.istio.io/status"
REDIRECTION_ANNOTATION = "ambient.istio.io/redirection"  # the agent annotates captured pods with it
REDIRECTION_ENABLED = "enabled"
REJECTED_CONFIG_ANNOTATION = "ztunnel.dev/rejected-config"  # of gateway pods, by their agent
TUNNEL_LABEL = "networking.istio.io/tunnel"  # set on pods by Istio's sidecar injection
TUNNEL_HTTP = "http"  # the sidecar accepts HBONE itself


def has_native_tunnel(labels: Mapping[str, str]) -> bool:
    """Return whether the pod itself accepts HBONE, without a node proxy; a label declares it."""
    return labels.get(TUNNEL_LABEL) == TUNNEL_HTTP


@dataclass(frozen=True, slots=True)
class Enrolled:
    """The node captures the pod."""


@dataclass(frozen=True, slots=True)
class NotEnrolled:
    """The pod is not selected for the mesh, or does not run."""

    reason: str


@dataclass(frozen=True, slots=True)
class CaptureRejected:
    """The pod is selected but cannot be captured; `hint` states what to do."""

    reason: str
    hint: str


EnrollmentDecision = Enrolled | NotEnrolled | CaptureRejected


def decide(
    namespace_labels: Mapping[str, str],
    pod_labels: Mapping[str, str],
    annotations: Mapping[str, str],
    *,
    host_network: bool,
    phase: str,
    addresses: Sequence[str],
) -> EnrollmentDecision:
    """Decide whether the node captures a pod: it or its namespace opts in and it does not opt out.

    An unknown label value on a pod of an enrolled namespace is ignored: a typo does not opt out.
    """
    own, inherited = pod_labels.get(MODE_LABEL, ""), namespace_labels.get(MODE_LABEL, "")
    if own == MODE_NONE or MODE_AMBIENT not in (own, inherited):
        mode = own or inherited
        return NotEnrolled(f"{MODE_LABEL}={mode}" if mode else f"no {MODE_LABEL} label")
    if host_network:
        return CaptureRejected(
            "the pod uses the host network",
            "remove the label: capturing the pod would capture the node",
        )
    if SIDECAR_ANNOTATION in annotations:
        return CaptureRejected("the pod has a sidecar", "remove the sidecar or the ambient label")
    if phase != "Running":
        return NotEnrolled(f"the pod is {phase or 'not yet running'}")
    if not addresses:
        return NotEnrolled("the pod has no address yet")
    return Enrolled()
