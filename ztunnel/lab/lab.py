# SPDX-License-Identifier: Apache-2.0
"""`Lab`: the interface of the lab, for `ztctl lab` and for tests.

    with Lab("demo") as lab:
        lab.exec("client", "curl", "-s", "http://my-app")

Only the components of nodes keep running. Each call reads the object directory, reconciles, and
returns. A file lock serializes calls of several processes.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Any

from ztunnel.lab import cleanup, status
from ztunnel.lab.cluster.deployments import deployment_of
from ztunnel.lab.cluster.pod_fields import is_ready
from ztunnel.lab.components import Component, components_of, start_all
from ztunnel.lab.errors import LabError
from ztunnel.lab.names import LabNames
from ztunnel.lab.network import links, netns
from ztunnel.lab.network.addresses import make_nodes
from ztunnel.lab.objects import Key, Object, ObjectStore, key_of, of_kind, read_manifests
from ztunnel.lab.reconciler import Reconciler, new_uid
from ztunnel.lab.runtime import cgroups, containers, mounts, process, sandbox
from ztunnel.lab.state import load_settings, locked

READY_TIMEOUT_S = 90.0  # for all components and pods; includes the loader's compiler run
_REQUIRED_PROGRAMS = ("mount", "nft", "nsenter", "setpriv", "setsid", "unshare")

KINDS = {  # by the names that commands accept, in lower case
    "namespace": "Namespace",
    "ns": "Namespace",
    "pod": "Pod",
    "po": "Pod",
    "deployment": "Deployment",
    "deploy": "Deployment",
    "service": "Service",
    "svc": "Service",
    "serviceentry": "ServiceEntry",
    "se": "ServiceEntry",
    "serviceaccount": "ServiceAccount",
    "sa": "ServiceAccount",
    "configmap": "ConfigMap",
    "cm": "ConfigMap",
    "node": "Node",
}


def demo_manifests() -> Path:
    """The directory of the manifests that a new lab applies by default."""
    return Path(str(resources.files("ztunnel.lab") / "manifests"))


class Lab:
    """A lab. Arguments that are None have the values with which the lab was created.

    `nodes`: their number (default 2). `mesh`: run agents and proxies (default True).
    `agent_options`, `proxy_options`: more arguments of their command lines. In those of the agent,
    `{node}` is replaced by the node's name, and --kubeconfig replaces the lab's objects as source.
    `pod_uid` returns the uid of a new pod. `progress` receives a line for each step.

    All methods raise LabError. Timeouts are in seconds.
    """

    def __init__(
        self,
        name: str = "lab",
        *,
        nodes: int | None = None,
        mesh: bool | None = None,
        agent_options: Sequence[str] | None = None,
        proxy_options: Sequence[str] | None = None,
        pod_uid: Callable[[Object], str] = new_uid,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self.names = LabNames(name, cgroups.cgroup2_root())
        self.progress = progress or (lambda _: None)
        self.settings = load_settings(self.names)
        if nodes is not None:
            self.settings.set_nodes(self.names, nodes)
        if mesh is not None:
            self.settings.mesh = mesh
        if agent_options is not None:
            self.settings.agent_options = tuple(agent_options)
        if proxy_options is not None:
            self.settings.proxy_options = tuple(proxy_options)
        self.nodes = make_nodes(self.settings.nodes)
        self.store = ObjectStore(self.names.objects)
        self._reconciler = Reconciler(
            self.names,
            self.nodes,
            self.store,
            self.settings,
            pod_uid=pod_uid,
            progress=self.progress,
        )

    # -- lifecycle -------------------------------------------------------------------------------

    @property
    def exists(self) -> bool:
        """Whether the lab was created and not removed."""
        return self.names.settings.exists()

    def up(
        self,
        manifests: Sequence[Path] | None = None,
        *,
        wait: bool = True,
        timeout: float = READY_TIMEOUT_S,
    ) -> list[str]:
        """Create the lab, or repair it. Returns the remaining problems.

        `manifests`: files and directories. None applies the demo, but only to a new lab.
        """
        _require_root("create a lab")
        process.require(*_REQUIRED_PROGRAMS)
        if manifests is None and not self.settings.manifests_applied:
            manifests = [demo_manifests()]
        objects = read_manifests(manifests or [])
        deadline = time.monotonic() + timeout
        with locked(self.names):
            self.settings.save(self.names)
            mounts.ensure(bpffs=self.settings.mesh)
            self._set_up_nodes()
            self._reconciler.put_system_objects()
            self._reconciler.unbind_dead_pods()
            all_components = (part for node in self.nodes for part in self._components(node.name))
            start_all(all_components, deadline, self.progress)
            self._reconciler.apply(objects)
            self.settings.manifests_applied = True
            self.settings.save(self.names)
            return self._reconciler.reconcile(deadline if wait else None)

    def down(self) -> list[str]:
        """Remove the lab, in whatever state it is. Returns a line for each removed item."""
        _require_root("remove a lab")
        return cleanup.remove_all(self.names)

    def __enter__(self) -> Lab:
        try:
            self.up()
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.down()

    # -- objects ---------------------------------------------------------------------------------

    def apply(
        self,
        *sources: Path | Object,
        wait: bool = True,
        timeout: float = READY_TIMEOUT_S,
    ) -> list[str]:
        """Apply manifests (files, directories) and objects. Returns the remaining problems."""
        objects: list[Object] = []
        for source in sources:
            objects += read_manifests([source]) if isinstance(source, Path) else [source]
        with self._change():
            for key in self._reconciler.apply(objects):
                self.progress(f"{key} applied")
            return self._reconciler.reconcile(time.monotonic() + timeout if wait else None)

    def delete(self, kind: str, name: str, namespace: str = "default") -> list[str]:
        """Delete an object and its dependents. Returns the remaining problems."""
        key = self._key(kind, name, namespace)
        with self._change():
            objects = self.store.load()
            if key not in objects:
                raise LabError(f"{key} not found in lab {self.names.name!r}")
            deleted = [key]
            if key.kind == "Namespace":
                deleted += [other for other in objects if other.namespace == name]
            for each in deleted:
                self.store.remove(each)
                self.progress(f"{each} deleted")
            deadline = time.monotonic() + READY_TIMEOUT_S
            return self._reconciler.reconcile(deadline, wait_for_new_only=True)

    def label(
        self,
        kind: str,
        name: str,
        labels: Mapping[str, str | None],
        namespace: str = "default",
    ) -> None:
        """Set labels of an object; None removes a label. The agents then (un)enroll its pods."""
        with self._change():
            if KINDS.get(kind.lower(), kind) == "Pod":
                obj = self.pod(name, namespace)
            else:
                obj = self.get(kind, name, namespace)
            merged = {**obj["metadata"].get("labels", {}), **labels}
            obj["metadata"]["labels"] = {k: v for k, v in merged.items() if v is not None}
            self.store.put(obj)
            self._reconciler.publish()

    def get(self, kind: str, name: str, namespace: str = "default") -> Object:
        """An object by kind and name."""
        key = self._key(kind, name, namespace)
        self._require_up()
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
        """A pod by `NAME` or `pod/NAME`, or one of `deploy/NAME`, if possible a ready one."""
        kind, _, name = reference.rpartition("/")
        self._require_up()
        if KINDS.get(kind or "pod") == "Pod":
            return self.get("Pod", name, namespace)
        if KINDS.get(kind) != "Deployment":
            raise LabError(f"{reference!r} is not a pod; hint: use NAME, pod/NAME or deploy/NAME")
        pods = [pod for pod in self.pods(namespace) if deployment_of(pod) == name]
        if not pods:
            raise LabError(
                f"deployment {namespace}/{name} has no pod; hint: see `ztctl lab status`"
            )
        return max(pods, key=is_ready)

    # -- commands in pods and nodes ----------------------------------------------------------------

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
        _require_root("run a command in a pod")
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
        _require_root("run a command in a node")
        self._require_node(node)
        cgroup = self.names.node_cgroup(node) / "system"
        cgroup.mkdir(parents=True, exist_ok=True)
        in_netns = [*netns.enter_argv(self.names.node_netns(node)), *argv]
        return process.in_cgroup_argv(cgroup, in_netns)

    def exec(
        self,
        reference: str,
        *argv: str,
        namespace: str = "default",
        container: str | None = None,
        privileged: bool = False,
        stdin: str | None = None,
        timeout: float | None = 60,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a pod and wait for it."""
        line, env = self.exec_argv(
            reference, argv, namespace=namespace, container=container, privileged=privileged
        )
        return subprocess.run(
            line,
            env=env,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=check,
        )

    def popen(
        self,
        reference: str,
        *argv: str,
        namespace: str = "default",
        container: str | None = None,
        privileged: bool = False,
    ) -> subprocess.Popen[bytes]:
        """Start a command in a pod, with pipes to it. The caller ends it."""
        line, env = self.exec_argv(
            reference, argv, namespace=namespace, container=container, privileged=privileged
        )
        pipe = subprocess.PIPE
        return subprocess.Popen(line, env=env, stdin=pipe, stdout=pipe, stderr=pipe)

    def node_exec(
        self, node: str, *argv: str, timeout: float | None = 60, check: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a node's network namespace and wait for it."""
        return subprocess.run(
            self.node_argv(node, argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=check,
        )

    # -- components --------------------------------------------------------------------------------

    def component(self, node: str, kind: str) -> Component:
        """A component of a node: `agent`, `proxy` or `dns`."""
        self._require_node(node)
        components = self._components(node)
        for component in components:
            if component.kind == kind:
                return component
        known = ", ".join(component.kind for component in components)
        raise LabError(f"no component {kind!r} on {node}; hint: this lab runs {known}")

    def kill(self, node: str, kind: str) -> None:
        """Kill a component with SIGKILL; it stays dead."""
        with self._change():
            self.component(node, kind).stop(kill=True)

    def start(self, node: str, kind: str, timeout: float = READY_TIMEOUT_S) -> None:
        """Start a component, and wait until it is ready."""
        with self._change():
            component = self.component(node, kind)
            component.start()
            component.wait_ready(time.monotonic() + timeout)
            self.progress(f"{node}: {kind} ready")

    def restart(
        self, node: str, kind: str, *, kill: bool = False, timeout: float = READY_TIMEOUT_S
    ) -> None:
        """Stop a component, with SIGTERM or if `kill` with SIGKILL, and start it again."""
        with self._change():
            self.component(node, kind).stop(kill=kill)
        self.start(node, kind, timeout)

    def log_paths(self, target: str, component: str | None, namespace: str) -> list[Path]:
        """The logs of a node's components or of a pod's containers; None selects all of them."""
        if target in {node.name for node in self.nodes}:
            if component is None:
                return [each.log for each in self._components(target)]
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
        _require_root("read the state of a lab")
        self._require_up()
        components = {node.name: self._components(node.name) for node in self.nodes}
        return status.describe(self.names, self.nodes, components, self.store.load())

    # -- internals ---------------------------------------------------------------------------------

    def _components(self, node: str) -> list[Component]:
        return components_of(self.names, node, self.settings)

    def _set_up_nodes(self) -> None:
        links.ensure_underlay(self.names)
        for node in self.nodes:
            links.ensure_node(self.names, node, self.nodes)
            self.names.run_dir(node.name).mkdir(exist_ok=True)
            self.names.node_cgroup(node.name).mkdir(parents=True, exist_ok=True)
            self.progress(f"{node.name}: network ready")
        self.names.ca.mkdir(mode=0o700, exist_ok=True)

    def _key(self, kind: str, name: str, namespace: str) -> Key:
        known = KINDS.get(kind.lower(), kind)
        return key_of({"kind": known, "metadata": {"name": name, "namespace": namespace}})

    def _require_up(self) -> None:
        if not self.exists:
            name = self.names.name
            raise LabError(f"lab {name!r} is not up; hint: ztctl lab up --name {name}")

    def _require_node(self, node: str) -> None:
        self._require_up()
        nodes = [each.name for each in self.nodes]
        if node not in nodes:
            known = ", ".join(nodes)
            raise LabError(f"no node {node!r} in lab {self.names.name!r}; hint: it has {known}")

    @contextmanager
    def _change(self) -> Iterator[None]:
        """Hold the lock of an existing lab."""
        _require_root("change a lab")
        self._require_up()
        with locked(self.names):
            yield


def _require_root(purpose: str) -> None:
    if os.geteuid() != 0:
        raise LabError(f"cannot {purpose} without root; hint: sudo ztctl lab …")
