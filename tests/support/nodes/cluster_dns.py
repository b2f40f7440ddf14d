# SPDX-License-Identifier: Apache-2.0
"""The DNS of the cluster: CoreDNS behind the service `kube-dns`, whose address the kubelet writes
into the resolv.conf of pods."""

from __future__ import annotations

from typing import Any

from tests.support.nodes.node_config import CLUSTER_DNS, CLUSTER_DOMAIN
from tests.support.nodes.objects import account, metadata

IMAGE = "localhost/coredns:test"
IMAGES = (IMAGE, "registry.k8s.io/coredns/coredns:v1.12.2")  # the latter in the conformance suite
SPACE, NAME = "kube-system", "coredns"
ELSEWHERE, ADDRESS = "www.example.test", "192.0.2.7"  # an external host, and its address
_COREFILE = f"""
.:53 {{
    errors
    ready
    kubernetes {CLUSTER_DOMAIN} in-addr.arpa {{
        pods insecure
    }}
    hosts {{
        {ADDRESS} {ELSEWHERE}
        fallthrough
    }}
    cache 5
}}
"""
_LABELS = {"k8s-app": "kube-dns"}


def objects() -> list[dict[str, Any]]:
    """All objects, as kubeadm installs them; RBAC covers what the plugin reads."""
    rules = [
        {
            "apiGroups": [""],
            "resources": ["services", "pods", "namespaces"],
            "verbs": ["list", "watch"],
        },
        {
            "apiGroups": ["discovery.k8s.io"],
            "resources": ["endpointslices"],
            "verbs": ["list", "watch"],
        },
    ]
    rbac = "rbac.authorization.k8s.io"
    role = {"apiVersion": f"{rbac}/v1", "kind": "ClusterRole", **metadata(NAME), "rules": rules}
    binding = {
        "apiVersion": f"{rbac}/v1",
        "kind": "ClusterRoleBinding",
        **metadata(NAME),
        "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": NAME},
        "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": SPACE}],
    }
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        **metadata(NAME, SPACE),
        "data": {"Corefile": _COREFILE},
    }
    return [account(NAME, SPACE), role, binding, config, _deployment(), _service()]


def _deployment() -> dict[str, Any]:
    container = {
        "name": NAME,
        "image": IMAGE,
        "args": ["-conf", "/etc/coredns/Corefile"],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 1},
        "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns"}],
    }
    pod = {
        "metadata": {"labels": _LABELS},
        "spec": {
            "serviceAccountName": NAME,
            "dnsPolicy": "Default",
            "containers": [container],
            "volumes": [{"name": "config", "configMap": {"name": NAME}}],
        },
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        **metadata(NAME, SPACE),
        "spec": {"selector": {"matchLabels": _LABELS}, "template": pod},
    }


def _service() -> dict[str, Any]:
    ports = [{"name": f"dns-{way.lower()}", "port": 53, "protocol": way} for way in ("UDP", "TCP")]
    spec = {"clusterIP": CLUSTER_DNS, "selector": _LABELS, "ports": ports}
    return {"apiVersion": "v1", "kind": "Service", **metadata("kube-dns", SPACE), "spec": spec}
