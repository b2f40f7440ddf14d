# SPDX-License-Identifier: Apache-2.0
"""The lab annotates BackendTLSPolicies as the controller does."""

from __future__ import annotations

from tests.support.certificate_authority import CertificateAuthority
from ztunnel.lab.cluster.l7.backend_certificates import plan_certificates
from ztunnel.lab.objects import Object, key_of

CA = CertificateAuthority()
ANNOTATION = "ztunnel.dev/ca-certificates"
POLICY: Object = {
    "apiVersion": "gateway.networking.k8s.io/v1",
    "kind": "BackendTLSPolicy",
    "metadata": {"name": "tls", "namespace": "shop"},
    "spec": {
        "targetRefs": [{"group": "", "kind": "Service", "name": "web"}],
        "validation": {
            "hostname": "a.example",
            "caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": "ca"}],
        },
    },
}
CONFIG_MAP: Object = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "ca", "namespace": "shop"},
    "data": {"ca.crt": CA.pem},
}


def plan(*objects: Object) -> tuple[list[Object], list[str]]:
    return plan_certificates({key_of(obj): obj for obj in objects})


def test_annotation_follows_the_config_map() -> None:
    (annotated,), problems = plan(POLICY, CONFIG_MAP)
    assert annotated["metadata"]["annotations"] == {ANNOTATION: CA.pem}
    assert annotated["spec"] == POLICY["spec"]
    assert problems == []
    assert plan(annotated, CONFIG_MAP) == ([], [])
    (removed,), (problem,) = plan(annotated)
    assert removed["metadata"]["annotations"] == {}
    assert "ConfigMap ca does not exist" in problem


def test_config_map_of_another_namespace_does_not_count() -> None:
    other = {**CONFIG_MAP, "metadata": {"name": "ca", "namespace": "other"}}
    changed, problems = plan(POLICY, other)
    assert changed == []
    assert len(problems) == 1
