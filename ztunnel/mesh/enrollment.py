# SPDX-License-Identifier: Apache-2.0
"""Which pods are of the mesh: Istio's labels, a pure decision.

Sources: `istio.io/dataplane-mode` (istio.io, "Add workloads to an ambient mesh") and
cni/pkg/util/podutil.go for the exceptions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MODE_LABEL = "istio.io/dataplane-mode"
AMBIENT = "ambient"
OPT_OUT = "none"
SIDECAR_ANNOTATION = "sidecar.istio.io/status"
REDIRECTION = "ambient.istio.io/redirection"  # the mark that an agent puts on a captured pod
ENABLED = "enabled"
TUNNEL_LABEL = "networking.istio.io/tunnel"  # Istio's injection puts it on pods with a sidecar
TUNNEL = "http"  # the sidecar itself listens for HBONE


def has_own_tunnel(labels: Mapping[str, str]) -> bool:
    """Whether the pod takes HBONE by itself, without a node's proxy: then it says so by a label."""
    return labels.get(TUNNEL_LABEL) == TUNNEL


@dataclass(frozen=True, slots=True)
class Enrolled:
    """The pod's connections are captured."""


@dataclass(frozen=True, slots=True)
class NotEnrolled:
    """Nobody asked for it, or it is not running."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """It was asked for, but can't be; `mend` says what to do."""

    reason: str
    mend: str


Decision = Enrolled | NotEnrolled | Refused


def decide(
    namespace_labels: Mapping[str, str],
    pod_labels: Mapping[str, str],
    annotations: Mapping[str, str],
    *,
    host_network: bool,
    phase: str,
    addresses: Sequence[str],
) -> Decision:
    """Whether a pod is captured: it or its namespace asks for it, and it does not opt out.

    Any other value on a pod of an enrolled namespace changes nothing: a typing error is no exit.
    """
    own, inherited = pod_labels.get(MODE_LABEL, ""), namespace_labels.get(MODE_LABEL, "")
    if own == OPT_OUT or AMBIENT not in (own, inherited):
        mode = own or inherited
        return NotEnrolled(f"{MODE_LABEL}={mode}" if mode else f"no {MODE_LABEL} label")
    if host_network:
        return Refused(
            "the pod uses the host's network", "capturing it would capture the node: drop the label"
        )
    if SIDECAR_ANNOTATION in annotations:
        return Refused("the pod has a sidecar", "remove the sidecar, or the ambient label")
    if phase != "Running":
        return NotEnrolled(f"the pod is {phase or 'not yet running'}")
    if not addresses:
        return NotEnrolled("the pod has no address yet")
    return Enrolled()
