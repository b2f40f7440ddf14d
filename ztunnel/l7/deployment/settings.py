# SPDX-License-Identifier: Apache-2.0
"""What the deployment of every gateway has in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

PROXY_IMAGE = "ztunnel-envoy:latest"  # built by `scripts/image -e`
CONTAINER = "istio-proxy"  # Istio's name: overlays and `kubectl logs -c` of users apply unchanged
USER_ID = 15088  # any non-root user but 1337, which is reserved for sidecars (istioctl: IST0144)
FIELD_MANAGER = "ztunnel-gateway-controller"

DRAIN_S = 20  # Envoy finishes requests; each response asks the client to open another connection
GRACE_S = DRAIN_S + 10  # until the kubelet kills Envoy

GATEWAY_LABEL = "gateway.networking.k8s.io/gateway-name"
CLASS_LABEL = "gateway.networking.k8s.io/gateway-class-name"
MANAGED_LABEL = "app.kubernetes.io/managed-by"
MANAGED_BY = "ztunnel-controller"
CONTROLLER_NAME = "ztunnel.dev/waypoint-controller"  # of the GatewayClasses of waypoints
INGRESS_CONTROLLER_NAME = "ztunnel.dev/gateway-controller"  # of those of ingress gateways
ALL_NAMESPACES = "*"  # in a setting that lists namespaces


@dataclass(frozen=True)
class DeploymentSettings:
    """`proxy_image` contains `envoy`, version 1.36 or later, and bash, which starts the drain.

    `cpu_limit` and `memory_limit` are Kubernetes quantities; a ConfigMap of a Gateway's
    `parametersRef` overrides them. `host_port_namespaces`: whose Gateways may bind ports of nodes;
    `*` stands for all.
    """

    proxy_image: str = PROXY_IMAGE
    image_pull_policy: str = ""
    cpu_request: str = "100m"
    cpu_limit: str = "2"
    memory_request: str = "128Mi"
    memory_limit: str = "1Gi"
    host_port_namespaces: frozenset[str] = frozenset()

    def permits_host_ports(self, namespace: str) -> bool:
        """Whether the pods of a namespace's Gateways may bind ports of their nodes."""
        return bool(self.host_port_namespaces & {ALL_NAMESPACES, namespace})
