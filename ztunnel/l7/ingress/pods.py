# SPDX-License-Identifier: Apache-2.0
"""What the configuration of an ingress gateway depends on of its pods."""

from __future__ import annotations

from ztunnel.l7.inputs import Edge, Inputs
from ztunnel.l7.objects import L7Object
from ztunnel.mesh import canonical_service
from ztunnel.mesh.model import TunnelProtocol, Workload

GATEWAY_LABEL = "gateway.networking.k8s.io/gateway-name"
CLASS_LABEL = "gateway.networking.k8s.io/gateway-class-name"


def edge_of(inputs: Inputs, gateway: L7Object) -> Edge:
    """Return what is known of the gateway's pods. Without pods, of its Gateway.

    Policies select a gateway by the labels of any of its pods.
    """
    key = f"{gateway.namespace}/{gateway.name}"
    class_name = str(gateway.spec.get("gatewayClassName"))
    name = f"{gateway.name}-{class_name}"
    own = {**_infrastructure(gateway), GATEWAY_LABEL: gateway.name, CLASS_LABEL: class_name}
    pods = sorted((w for w in inputs.mesh.workloads() if w.gateway == key), key=_uid)
    labels = [own, *(pod.labels for pod in pods)]
    edge = Edge(
        name=name,
        labels=tuple({tuple(sorted(each.items())): each for each in labels}.values()),
        canonical_service=name,
        canonical_revision="latest",
        has_ipv6=any(":" in address for pod in pods for address in pod.addresses),
    )
    return _with_pod(edge, pods[0]) if pods else edge


def _with_pod(edge: Edge, pod: Workload) -> Edge:
    is_enrolled = pod.protocol is TunnelProtocol.HBONE
    return Edge(
        name=canonical_service.owner(pod)[1],
        labels=edge.labels,
        canonical_service=canonical_service.service(pod),
        canonical_revision=canonical_service.revision(pod),
        principal=pod.identity if is_enrolled else "",
        has_ipv6=edge.has_ipv6,
    )


def _infrastructure(gateway: L7Object) -> dict[str, str]:
    """`spec.infrastructure.labels`, which the pods get."""
    infrastructure = gateway.spec.get("infrastructure")
    labels = infrastructure.get("labels") if isinstance(infrastructure, dict) else None
    found = labels.items() if isinstance(labels, dict) else ()
    return {k: v for k, v in found if isinstance(k, str) and isinstance(v, str)}


def _uid(pod: Workload) -> str:
    return pod.uid
