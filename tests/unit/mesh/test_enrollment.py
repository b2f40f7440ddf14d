# SPDX-License-Identifier: Apache-2.0
"""Enrollment: Istio's labels and exceptions as a table."""

from __future__ import annotations

import pytest

from ztunnel.mesh.enrollment import (
    CaptureRejected,
    Enrolled,
    EnrollmentDecision,
    NotEnrolled,
    decide,
)

MODE = "istio.io/dataplane-mode"
SIDECAR = {"sidecar.istio.io/status": "{}"}
IPS = ("10.244.1.2", "fd00:10:244:1::2")

ENROLLED = Enrolled()
NO_LABEL = NotEnrolled("no istio.io/dataplane-mode label")
OPTED_OUT = NotEnrolled("istio.io/dataplane-mode=none")
HOST = CaptureRejected(
    "the pod uses the host network", "remove the label: capturing the pod would capture the node"
)
HAS_SIDECAR = CaptureRejected("the pod has a sidecar", "remove the sidecar or the ambient label")


def labels(mode: str | None) -> dict[str, str]:
    return {"app": "web"} if mode is None else {"app": "web", MODE: mode}


@pytest.mark.parametrize(
    ("namespace", "pod", "expected"),
    [
        (None, None, NO_LABEL),
        ("", None, NO_LABEL),
        (None, "", NO_LABEL),
        ("", "", NO_LABEL),
        ("ambient", None, ENROLLED),
        (None, "ambient", ENROLLED),
        ("ambient", "ambient", ENROLLED),
        ("none", "ambient", ENROLLED),
        ("sidecar", "ambient", ENROLLED),
        ("none", None, OPTED_OUT),
        (None, "none", OPTED_OUT),
        ("ambient", "none", OPTED_OUT),
        ("none", "none", OPTED_OUT),
        ("ambient", "", ENROLLED),
        ("ambient", "nonne", ENROLLED),
        ("ambient", "None", ENROLLED),
        ("Ambient", None, NotEnrolled("istio.io/dataplane-mode=Ambient")),
        ("ambient ", None, NotEnrolled("istio.io/dataplane-mode=ambient ")),
        ("sidecar", None, NotEnrolled("istio.io/dataplane-mode=sidecar")),
        (None, "true", NotEnrolled("istio.io/dataplane-mode=true")),
        ("enabled", "true", NotEnrolled("istio.io/dataplane-mode=true")),
    ],
)
def test_namespace_and_pod_labels_decide_enrollment(
    namespace: str | None, pod: str | None, expected: EnrollmentDecision
) -> None:
    decision = decide(
        labels(namespace), labels(pod), {}, host_network=False, phase="Running", addresses=IPS
    )
    assert decision == expected


@pytest.mark.parametrize(
    ("annotations", "host_network", "phase", "addresses", "expected"),
    [
        ({}, True, "Running", IPS, HOST),
        (SIDECAR, True, "Running", IPS, HOST),
        ({}, True, "Pending", (), HOST),
        (SIDECAR, False, "Running", IPS, HAS_SIDECAR),
        ({"sidecar.istio.io/status": ""}, False, "Running", IPS, HAS_SIDECAR),
        ({"sidecar.istio.io/inject": "true"}, False, "Running", IPS, ENROLLED),
        ({}, False, "Pending", IPS, NotEnrolled("the pod is Pending")),
        ({}, False, "Succeeded", IPS, NotEnrolled("the pod is Succeeded")),
        ({}, False, "Failed", IPS, NotEnrolled("the pod is Failed")),
        ({}, False, "Unknown", IPS, NotEnrolled("the pod is Unknown")),
        ({}, False, "", IPS, NotEnrolled("the pod is not yet running")),
        ({}, False, "Running", (), NotEnrolled("the pod has no address yet")),
        ({}, False, "Running", IPS[:1], ENROLLED),
    ],
)
@pytest.mark.parametrize("where", ["namespace", "pod"])
def test_selected_pod_that_cannot_be_captured_is_rejected(
    *,
    where: str,
    annotations: dict[str, str],
    host_network: bool,
    phase: str,
    addresses: tuple[str, ...],
    expected: EnrollmentDecision,
) -> None:
    decision = decide(
        labels("ambient" if where == "namespace" else None),
        labels("ambient" if where == "pod" else None),
        annotations,
        host_network=host_network,
        phase=phase,
        addresses=addresses,
    )
    assert decision == expected


@pytest.mark.parametrize("pod", [None, "none"])
def test_pod_outside_the_mesh_gets_no_hint(pod: str | None) -> None:
    decision = decide(
        labels(None), labels(pod), SIDECAR, host_network=True, phase="Running", addresses=IPS
    )
    assert isinstance(decision, NotEnrolled)
