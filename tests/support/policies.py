# SPDX-License-Identifier: Apache-2.0
"""A small mesh, and helpers that build policies as Kubernetes objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ztunnel.kube.view.cluster_view import ClusterView
from ztunnel.mesh.model import SocketAddress, Workload
from ztunnel.mesh.policy.engine import Decision, PolicyEngine
from ztunnel.mesh.policy.match_terms import AuthzRequest

Json = dict[str, Any]
ROOT = "istio-system"
CLIENT = "spiffe://cluster.local/ns/front/sa/client"

WEB = Workload(
    uid="Kubernetes//Pod/shop/web",
    pod_uid="web-0",
    name="web",
    namespace="shop",
    service_account="web",
    node="n1",
    addresses=("10.244.1.7", "fd00::7"),
    labels={"app": "web", "version": "v1"},
)
DB = Workload(
    uid="Kubernetes//Pod/shop/db",
    pod_uid="db-0",
    name="db",
    namespace="shop",
    service_account="db",
    node="n1",
    addresses=("10.244.1.8",),
    labels={"app": "db"},
)
OTHER = Workload(
    uid="Kubernetes//Pod/other/web",
    pod_uid="other-0",
    name="web",
    namespace="other",
    service_account="web",
    node="n1",
    addresses=("10.244.1.9",),
    labels={"app": "web"},
)


def policy(
    rules: list[Json] | None = None,
    action: str = "",
    *,
    name: str = "p",
    namespace: str = "shop",
    annotations: Json | None = None,
    **spec: Any,
) -> Json:
    """An AuthorizationPolicy."""
    full_spec = {**({"action": action} if action else {}), **spec}
    if rules is not None:
        full_spec["rules"] = rules
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": namespace, "annotations": annotations or {}},
        "spec": full_spec,
    }


def peer(
    mode: str = "",
    *,
    name: str = "p",
    namespace: str = "shop",
    created: str = "",
    labels: Json | None = None,
    ports: Mapping[Any, str] | None = None,
) -> Json:
    """A PeerAuthentication."""
    spec: Json = {}
    if mode:
        spec["mtls"] = {"mode": mode}
    if labels is not None:
        spec["selector"] = {"matchLabels": labels}
    if ports is not None:
        spec["portLevelMtls"] = {port: {"mode": each} for port, each in ports.items()}
    metadata = {"name": name, "namespace": namespace}
    if created:
        metadata["creationTimestamp"] = created
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": metadata,
        "spec": spec,
    }


def authz_request(
    port: int = 80,
    *,
    identity: str = CLIENT,
    source: str = "10.244.2.3",
    to: str = "10.244.1.7",
) -> AuthzRequest:
    """A connection to be authorized."""
    return AuthzRequest(source, identity, SocketAddress(to, port))


def policies(*objects: Json) -> PolicyEngine:
    """An engine with the policies among the objects."""
    view = ClusterView("cluster.local", "Kubernetes", root_namespace=ROOT)
    for obj in objects:
        view.upsert(obj)
    made = PolicyEngine()
    for each in view.drain().policies:
        made.put(each)
    return made


def decide(request: AuthzRequest, *objects: Json, workload: Workload = WEB) -> Decision:
    """The decision of these policies alone."""
    return policies(*objects).decide(workload, request)
