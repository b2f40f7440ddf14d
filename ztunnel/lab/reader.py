# SPDX-License-Identifier: Apache-2.0
"""Read access to a lab: objects, components, logs, status, and command lines that run in it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ztunnel.l7.objects import L7_KINDS
from ztunnel.lab import status
from ztunnel.lab.cluster.deployments import WORKLOAD_KINDS, workload_of
from ztunnel.lab.cluster.pod_fields import is_ready
from ztunnel.lab.components import Component, components_of
from ztunnel.lab.errors import LabError
from ztunnel.lab.names import LabNames
from ztunnel.lab.network import netns
from ztunnel.lab.network.addresses import make_nodes
from ztunnel.lab.objects import Key, Object, ObjectStore, key_of, of_kind
from ztunnel.lab.runtime import containers, process, sandbox
from ztunnel.lab.state import LabSettings

KINDS = {  # by the names that commands accept, in lower case
    "namespace": "Namespace",
    "ns": "Namespace",
    "pod": "Pod",
    "po": "Pod",
    "deployment": "Deployment",
    "deploy": "Deployment",
    "daemonset": "DaemonSet",
    "ds": "DaemonSet",
    "service": "Service",
    "svc": "Service",
    "serviceentry": "ServiceEntry",
    "se": "ServiceEntry",
    "serviceaccount": "ServiceAccount",
    "sa": "ServiceAccount",
    "configmap": "ConfigMap",
    "cm": "ConfigMap",
    "secret": "Secret",
    "node": "Node",
    "ingress": "Ingress",
    "ing": "Ingress",
    "ingressclass": "IngressClass",
    "peerauthentication": "PeerAuthentication",
    "pa": "PeerAuthentication",
    **{kind.lower(): kind for kind in L7_KINDS},
    "gc": "GatewayClass",
    "gtw": "Gateway",
    "refgrant": "ReferenceGrant",
    "btlspolicy": "BackendTLSPolicy",
    "dr": "DestinationRule",
    "vs": "VirtualService",
    "ap": "AuthorizationPolicy",
    "ra": "RequestAuthentication",
}


class LabReader:
    """Reads a lab without changing it. All methods raise LabError."""

    def __init__(self, names: LabNames, settings: LabSettings) -> None:
        self.names = names
        self.settings = settings
        self.nodes = make_nodes(settings.nodes)
        self.store = ObjectStore(names.objects, names.secrets)

    @property
    def exists(self) -> bool:
        """Whether the lab was created and not removed."""
        return self.names.settings.exists()

    def get(self, kind: str, name: str, namespace: str = "default") -> Object:
        """An object by kind and name."""
        key = self.key(kind, name, namespace)
        self.require_up()
        obj = self.store.load().get(key)
        if obj is None:
            lab = self.names.name
            raise LabError(f"{key} not found in lab {lab!r}; hint: see `ztctl lab status`")
        return obj

    def pods(self, namespace: str | None = None) -> list[Object]:
        """All pods, or those of a namespace."""
        pods = of_kind(self.store.load(), "Pod")
        return [pod for pod in pods if namespace in (None, pod["metadata"]["namespace"])]

    def pod(self, reference: str, namespace: str = "default") -> Object:
        """A pod by `NAME`, or one of `deploy/NAME` or `ds/NAME`, if possible a ready one."""
        kind, _, name = reference.rpartition("/")
        self.require_up()
        if KINDS.get(kind or "pod") == "Pod":
            return self.get("Pod", name, namespace)
        if KINDS.get(kind) not in WORKLOAD_KINDS:
            raise LabError(
                f"{reference!r} is not a pod; hint: use NAME, pod/NAME, deploy/NAME, ds/NAME"
            )
        workload = self.key(kind, name, namespace)
        pods = [pod for pod in self.pods(namespace) if workload_of(pod) == workload]
        if not pods:
            raise LabError(f"{workload} has no pod; hint: see `ztctl lab status`")
        return max(pods, key=is_ready)

    def components(self, node: str) -> list[Component]:
        """The components of a node, in the order in which they are started."""
        return components_of(self.names, node, self.settings)

    def component(self, node: str, kind: str) -> Component:
        """A component of a node: `agent`, `proxy`, `gateway` or `dns`."""
        self._require_node(node)
        components = self.components(node)
        for component in components:
            if component.kind == kind:
                return component
        known = ", ".join(component.kind for component in components)
        raise LabError(f"no component {kind!r} on {node}; hint: this lab runs {known}")

    def log_paths(self, target: str, component: str | None, namespace: str) -> list[Path]:
        """The logs of a node's components or of a pod's containers; None selects all of them."""
        if target in {node.name for node in self.nodes}:
            if component is None:
                return [each.log for each in self.components(target)]
            return [self.component(target, component).log]
        pod = self.pod(target, namespace)
        if component:
            selected = [containers.find_container(pod, component)]
        else:
            selected = pod["spec"]["containers"]
        uid = pod["metadata"]["uid"]
        return [containers.log_path(self.names, uid, each["name"]) for each in selected]

    def status(self) -> dict[str, Any]:
        """The current state of nodes, pods and services."""
        require_root("read the state of a lab")
        self.require_up()
        components = {node.name: self.components(node.name) for node in self.nodes}
        return status.describe(self.names, self.nodes, components, self.store.load())

    def exec_argv(
        self,
        reference: str,
        argv: Sequence[str],
        *,
        namespace: str = "default",
        container: str | None = None,
        privileged: bool = False,
    ) -> tuple[list[str], dict[str, str]]:
        """The command line and environment that run `argv` in a pod."""
        require_root("run a command in a pod")
        pod = self.pod(reference, namespace)
        if not pod["spec"].get("nodeName"):
            raise LabError(f"{key_of(pod)} is not scheduled; hint: see `ztctl lab status`")
        target = containers.find_container(pod, container)
        pod_sandbox = sandbox.describe(self.names, pod)
        line = containers.exec_argv(
            self.names, pod_sandbox, pod, target, argv, privileged=privileged
        )
        return line, containers.exec_environment(pod, target)

    def node_argv(self, node: str, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` in a node's network namespace and cgroup."""
        require_root("run a command in a node")
        self._require_node(node)
        cgroup = self.names.node_cgroup(node) / "system"
        cgroup.mkdir(parents=True, exist_ok=True)
        in_netns = [*netns.enter_argv(self.names.node_netns(node)), *argv]
        return process.in_cgroup_argv(cgroup, in_netns)

    def external_argv(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` on the machine outside the cluster."""
        require_root("run a command outside the cluster")
        self.require_up()
        self.names.external_cgroup.mkdir(parents=True, exist_ok=True)
        in_netns = [*netns.enter_argv(self.names.external_netns), *argv]
        return process.in_cgroup_argv(self.names.external_cgroup, in_netns)

    def key(self, kind: str, name: str, namespace: str) -> Key:
        """The key of an object; `kind` may be a short name."""
        known = KINDS.get(kind.lower(), kind)
        return key_of({"kind": known, "metadata": {"name": name, "namespace": namespace}})

    def require_up(self) -> None:
        """Raise LabError unless the lab exists."""
        if not self.exists:
            name = self.names.name
            raise LabError(f"lab {name!r} is not up; hint: ztctl lab up --name {name}")

    def _require_node(self, node: str) -> None:
        self.require_up()
        nodes = [each.name for each in self.nodes]
        if node not in nodes:
            known = ", ".join(nodes)
            raise LabError(f"no node {node!r} in lab {self.names.name!r}; hint: it has {known}")


def require_root(purpose: str) -> None:
    """Raise LabError unless the process runs as root."""
    if os.geteuid() != 0:
        raise LabError(f"cannot {purpose} without root; hint: sudo ztctl lab …")
