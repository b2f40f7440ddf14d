# SPDX-License-Identifier: Apache-2.0
"""`Lab`: the whole lab as one object, for `ztctl lab` and for the system tests.

    with Lab("demo") as lab:
        lab.exec("client", "curl", "-s", "http://my-app")

Nothing of the lab stays resident but the node components: each call reads the object directory,
plans, makes it so and returns. Calls of several processes take turns by a file lock.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Any

from ztunnel.lab import cleanup, components
from ztunnel.lab.cluster import overview, scheduler, services
from ztunnel.lab.components import Component
from ztunnel.lab.errors import LabError
from ztunnel.lab.names import STATE_ROOT, LabNames
from ztunnel.lab.network import kube_proxy, links, netns
from ztunnel.lab.network.addresses import MAX_NODES, node_addresses
from ztunnel.lab.objects import (
    Key,
    Object,
    ObjectStore,
    key_of,
    of_kind,
    read_manifests,
    write_atomically,
)
from ztunnel.lab.runtime import capture_gate, cgroups, containers, images, mounts, process, sandbox
from ztunnel.lab.runtime.pods import Kubelet

READY_TIMEOUT_S = 90.0  # for all components and pods, including the compiler run of the loader
_TOOLS = ("mount", "nft", "nsenter", "setpriv", "setsid", "unshare")
_APPLY_FIRST = ("Namespace", "ServiceAccount", "ConfigMap")

KINDS = {
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
    """The manifests a lab starts with when none are given."""
    return Path(str(resources.files("ztunnel.lab") / "manifests"))


class Lab:
    """One lab. Unset arguments are those the lab was brought up with, else the defaults.

    `nodes`: how many (2). `mesh`: start agents and proxies (True). `agent_options`,
    `proxy_options`: more words for the agents' and proxies' command lines; in an agent's `{node}`
    is the node's name, and a --kubeconfig takes the place of the lab's objects. `progress`: called
    with a line for each step. `pod_uid` gives a new pod its uid: an attribute, for those who put
    an API server in front of the lab.
    All methods raise LabError.
    """

    def __init__(
        self,
        name: str = "lab",
        *,
        nodes: int | None = None,
        mesh: bool | None = None,
        agent_options: Sequence[str] | None = None,
        proxy_options: Sequence[str] | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self.names = LabNames(name, cgroups.cgroup2_root())
        self.progress = progress or (lambda _: None)
        saved = self._saved_settings()
        self._check_node_count(nodes, saved.get("nodes"))
        self.nodes = scheduler.make_nodes(nodes or saved.get("nodes", 2))
        self.mesh: bool = saved.get("mesh", True) if mesh is None else mesh
        if agent_options is None:
            agent_options = saved.get("agent_options", ())
        self.agent_options = tuple(agent_options)
        if proxy_options is None:
            proxy_options = saved.get("proxy_options", ())
        self.proxy_options = tuple(proxy_options)
        self._manifests_applied: bool = saved.get("manifests_applied", False)
        self.store = ObjectStore(self.names.objects)
        self.pod_uid: Callable[[Object], str] = lambda _: _uid()
        self._kubelet = Kubelet(self.names, self.nodes, self.store, self._await_capture)

    # -- life ------------------------------------------------------------------------------

    @property
    def exists(self) -> bool:
        """Whether the lab was brought up and not yet taken down."""
        return self.names.settings.exists()

    def up(
        self,
        manifests: Sequence[Path] | None = None,
        *,
        wait: bool = True,
        timeout: float = READY_TIMEOUT_S,
    ) -> list[str]:
        """Bring the lab up, or mend what is broken of it; problems that are left.

        `manifests` are files and directories; None means the demo, when the lab is new.
        """
        _require_root("bring a lab up")
        process.require(*_TOOLS)
        if manifests is None and not self._manifests_applied:
            manifests = [demo_manifests()]
        objects = read_manifests(manifests or [])
        deadline = time.monotonic() + timeout
        with self._locked():
            self._save_settings()
            mounts.ensure(bpffs=self.mesh)
            self._wire()
            self._put_all(scheduler.system_objects(self.store.load(), self.nodes))
            self._drop_broken()
            self._start_components(deadline)
            self._admit(objects)
            self._manifests_applied = True
            self._save_settings()
            return self._reconcile(deadline if wait else None)

    def down(self) -> list[str]:
        """Remove every trace, whatever state the lab is in; what was removed, line by line."""
        _require_root("take a lab down")
        return cleanup.remove_everything(self.names)

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

    # -- objects ---------------------------------------------------------------------------

    def apply(
        self,
        *sources: Path | Object,
        wait: bool = True,
        timeout: float = READY_TIMEOUT_S,
    ) -> list[str]:
        """Apply manifests (files, directories, or objects as mappings); problems that are left."""
        objects: list[Object] = []
        for source in sources:
            objects += read_manifests([source]) if isinstance(source, Path) else [source]
        with self._change():
            for key in self._admit(objects):
                self.progress(f"{key} applied")
            return self._reconcile(time.monotonic() + timeout if wait else None)

    def delete(self, kind: str, name: str, namespace: str = "default") -> list[str]:
        """Delete an object and what depends on it; problems that are left."""
        key = self._key(kind, name, namespace)
        with self._change():
            objects = self.store.load()
            if key not in objects:
                raise LabError(f"{key} not found in lab {self.names.name!r}; nothing was deleted")
            gone = [key]
            if key.kind == "Namespace":
                gone += [other for other in objects if other.namespace == name]
            for other in gone:
                self.store.remove(other)
                self.progress(f"{other} deleted")
            return self._reconcile(time.monotonic() + READY_TIMEOUT_S, only_new=True)

    def label(
        self,
        kind: str,
        name: str,
        labels: Mapping[str, str | None],
        namespace: str = "default",
    ) -> None:
        """Set labels of a stored object (None removes one). Enrolment follows by itself."""
        with self._change():
            if KINDS.get(kind.lower(), kind) == "Pod":
                obj = self.pod(name, namespace)
            else:
                obj = self.get(kind, name, namespace)
            merged = {**obj["metadata"].get("labels", {}), **labels}
            obj["metadata"]["labels"] = {k: v for k, v in merged.items() if v is not None}
            self.store.put(obj)
            self._publish()

    def get(self, kind: str, name: str, namespace: str = "default") -> Object:
        """A stored object."""
        key = self._key(kind, name, namespace)
        self._require_up()
        found = self.store.load().get(key)
        if found is None:
            raise LabError(f"{key} not found in lab {self.names.name!r}; see: ztctl lab status")
        return found

    def pods(self, namespace: str | None = None) -> list[Object]:
        """All pods, or those of a namespace."""
        pods = of_kind(self.store.load(), "Pod")
        return [pod for pod in pods if namespace in (None, pod["metadata"]["namespace"])]

    def pod(self, reference: str, namespace: str = "default") -> Object:
        """A pod by `NAME`, `pod/NAME`, or the first ready one of `deploy/NAME`."""
        kind, _, name = reference.rpartition("/")
        self._require_up()
        if KINDS.get(kind or "pod") == "Pod":
            return self.get("Pod", name, namespace)
        if KINDS.get(kind) != "Deployment":
            raise LabError(f"{reference!r} names no pod; use NAME, pod/NAME or deploy/NAME")
        found = [pod for pod in self.pods(namespace) if scheduler.deployment_of(pod) == name]
        if not found:
            raise LabError(f"deployment {namespace}/{name} has no pod; see: ztctl lab status")
        return max(found, key=scheduler.is_ready)

    # -- running things ----------------------------------------------------------------------

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
        _require_root("run in a pod")
        pod = self.pod(reference, namespace)
        if not pod["spec"].get("nodeName"):
            raise LabError(f"{key_of(pod)} is not scheduled; see: ztctl lab status")
        chosen = _container(pod, container)
        box = sandbox.describe(self.names, pod)
        line = containers.exec_argv(self.names, box, pod, chosen, argv, privileged=privileged)
        return line, containers.exec_environment(pod, chosen)

    def node_argv(self, node: str, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` in a node's network namespace and cgroup."""
        _require_root("run in a node")
        self._require_node(node)
        cgroup = self.names.node_cgroup(node) / "system"
        cgroup.mkdir(parents=True, exist_ok=True)
        return process.joined(cgroup, [*netns.enter_argv(self.names.node_netns(node)), *argv])

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
        """Start a command in a pod with pipes to it; the caller ends it."""
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

    # -- components --------------------------------------------------------------------------

    def component(self, node: str, kind: str) -> Component:
        """The agent, proxy or dns process of a node."""
        self._require_node(node)
        for component in self._components(node):
            if component.kind == kind:
                return component
        known = ", ".join(component.kind for component in self._components(node))
        raise LabError(f"no component {kind!r} on {node}; this lab runs {known}")

    def kill(self, node: str, kind: str) -> None:
        """SIGKILL a component and leave it dead."""
        with self._change():
            self.component(node, kind).stop(kill=True)

    def start(self, node: str, kind: str, timeout: float = READY_TIMEOUT_S) -> None:
        """Start a component that does not run, and wait until it serves."""
        with self._change():
            component = self.component(node, kind)
            component.start()
            component.wait_ready(time.monotonic() + timeout)
            self.progress(f"{node}: {kind} ready")

    def restart(
        self, node: str, kind: str, *, kill: bool = False, timeout: float = READY_TIMEOUT_S
    ) -> None:
        """Stop a component (SIGTERM, or SIGKILL if `kill`) and start it again."""
        with self._change():
            self.component(node, kind).stop(kill=kill)
        self.start(node, kind, timeout)

    def log_paths(self, target: str, component: str | None, namespace: str) -> list[Path]:
        """The log of a node's component, or those of a pod's container(s)."""
        if target in {node.name for node in self.nodes}:
            if component is None:
                return [each.log for each in self._components(target)]
            return [self.component(target, component).log]
        pod = self.pod(target, namespace)
        chosen = [_container(pod, component)] if component else pod["spec"]["containers"]
        uid = pod["metadata"]["uid"]
        return [containers.log_path(self.names, uid, each["name"]) for each in chosen]

    def status(self) -> dict[str, Any]:
        """The lab at this moment: nodes, pods, services."""
        _require_root("look into the lab's namespaces")
        self._require_up()
        parts = {node.name: self._components(node.name) for node in self.nodes}
        return overview.describe(self.names, self.nodes, parts, self.store.load())

    # -- how ---------------------------------------------------------------------------------

    def _components(self, node: str) -> list[Component]:
        return components.of_node(
            self.names,
            node,
            mesh=self.mesh,
            agent_options=self.agent_options,
            proxy_options=self.proxy_options,
        )

    def _wire(self) -> None:
        links.ensure_underlay(self.names)
        for node in self.nodes:
            links.ensure_node(self.names, node, self.nodes)
            self.names.run_dir(node.name).mkdir(exist_ok=True)
            self.names.node_cgroup(node.name).mkdir(parents=True, exist_ok=True)
            self.progress(f"{node.name}: network ready")
        self.names.ca.mkdir(mode=0o700, exist_ok=True)

    def _start_components(self, deadline: float) -> None:
        wanted = [part for node in self.nodes for part in self._components(node.name)]
        for part in wanted:
            if part.start():
                self.progress(f"{part.node}: {part.kind} started, pid {part.pid}")
        for part in wanted:
            part.wait_ready(deadline)
            self.progress(f"{part.node}: {part.kind} ready")

    def _admit(self, objects: Sequence[Object]) -> list[Key]:
        """Store applied objects, namespaces first; the keys, in that order."""
        stored = self.store.load()
        rank = {kind: number for number, kind in enumerate(_APPLY_FIRST)}
        ordered = sorted(objects, key=lambda obj: rank.get(obj["kind"], len(rank)))
        for obj in ordered:
            key = key_of(obj)
            if key.namespace and not self._has_namespace(stored, key.namespace):
                raise LabError(
                    f"{key}: namespace {key.namespace!r} does not exist; mend: apply a Namespace"
                )
            stored[key] = scheduler.admit(obj, stored.get(key), _uid, _now())
            self.store.put(stored[key])
        return [key_of(obj) for obj in ordered]

    @staticmethod
    def _has_namespace(objects: Mapping[Key, Object], name: str) -> bool:
        return name in scheduler.SYSTEM_NAMESPACES or Key("Namespace", "", name) in objects

    def _reconcile(self, deadline: float | None, *, only_new: bool = False) -> list[str]:
        """Make the kernel agree with the objects; wait for readiness unless `deadline` is None.

        `only_new`: wait for pods made now, and look at the others once.
        """
        self._put_all(scheduler.system_objects(self.store.load(), self.nodes))
        self._put_all(services.plan_services(self.store.load()))
        self._drop_broken()
        objects = self.store.load()
        planned = scheduler.plan_pods(objects, self.nodes, uid=self.pod_uid, now=_now())
        self._remove_leftovers(objects, planned)
        self._put_all(planned.pods)
        self._publish()
        self._kubelet.collect(planned.pods)
        table = images.extensions(objects)
        runnable = [pod for pod in planned.pods if scheduler.pod_ips(pod)]
        running = [self._kubelet.run(pod, table) for pod in runnable]
        old = [pod for pod in running if only_new and key_of(pod) in objects]
        new = [pod for pod in running if pod not in old]
        self._kubelet.wait_ready(old, 0, self.progress)
        left = self._kubelet.wait_ready(new, deadline or 0, self.progress)
        self._publish()
        unready = [self._kubelet.explain(pod) for pod in left] if deadline else []
        return [*planned.problems, *unready, *self._uncaptured(running)]

    def _await_capture(self, pod: Object) -> None:
        """Hold a new pod's programs back until the mesh has it, if it is the mesh's."""
        if self.mesh and capture_gate.is_due(pod, self.store.load()):
            capture_gate.wait_captured(self.names, pod)

    def _uncaptured(self, pods: Sequence[Object]) -> Iterator[str]:
        """What keeps the mesh from pods that are its own, pod by pod."""
        objects = self.store.load()
        for pod in pods:
            if self.mesh and capture_gate.is_due(pod, objects):
                problem = capture_gate.wait_captured(self.names, pod, patience=0)
                if problem:
                    yield problem

    def _drop_broken(self) -> None:
        """Forget that a pod ran whose sandbox is gone; the next plan makes it anew.

        Told before agents are waited for: they are not ready while a pod can't be found.
        """
        for pod in self._kubelet.broken(self.store.load()):
            self.store.put(scheduler.unbound(pod))

    def _remove_leftovers(self, objects: Mapping[Key, Object], planned: scheduler.PodPlan) -> None:
        """Forget pods that their Deployment no longer wants."""
        for pod in of_kind(objects, "Pod"):
            if pod["metadata"].get("ownerReferences") and key_of(pod) not in planned.keys:
                self.store.remove(key_of(pod))

    def _publish(self) -> None:
        """Bring endpoints, counters and every node's kube-proxy up to date with the pods."""
        objects = self.store.load()
        slices = services.plan_slices(objects)
        self._put_all(slices)
        for key in services.stale_slices(objects, slices):
            self.store.remove(key)
        for deployment in of_kind(objects, "Deployment"):
            status = scheduler.deployment_status(deployment, objects)
            self.store.put({**deployment, "status": status})
        served = list(kube_proxy.frontends(self.store.load()))
        for node in self.nodes:
            script = kube_proxy.render(served, node_addresses(node.index))
            kube_proxy.apply(self.names.node_netns(node.name), script)

    def _put_all(self, objects: Sequence[Object]) -> None:
        for obj in objects:
            self.store.put(obj)

    def _key(self, kind: str, name: str, namespace: str) -> Key:
        known = KINDS.get(kind.lower(), kind)
        return key_of({"kind": known, "metadata": {"name": name, "namespace": namespace}})

    def _require_up(self) -> None:
        if not self.exists:
            name = self.names.name
            raise LabError(f"lab {name!r} is not up; mend: ztctl lab up --name {name}")

    def _require_node(self, node: str) -> None:
        self._require_up()
        names = [each.name for each in self.nodes]
        if node not in names:
            have = ", ".join(names)
            raise LabError(f"no node {node!r} in lab {self.names.name!r}; it has {have}")

    @contextmanager
    def _change(self) -> Iterator[None]:
        """A change of a lab that is up."""
        _require_root("change a lab")
        self._require_up()
        with self._locked():
            yield

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One command at a time; files are made readable whatever the person's umask.

        The unprivileged proxy must reach its run directory.
        """
        umask = os.umask(0o022)
        try:
            self.names.objects.mkdir(parents=True, exist_ok=True)
            with (STATE_ROOT / f".{self.names.name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        finally:
            os.umask(umask)

    def _saved_settings(self) -> dict[str, Any]:
        try:
            saved: dict[str, Any] = json.loads(self.names.settings.read_text())
        except FileNotFoundError:
            return {}
        return saved

    def _save_settings(self) -> None:
        settings = {
            "nodes": len(self.nodes),
            "mesh": self.mesh,
            "agent_options": list(self.agent_options),
            "proxy_options": list(self.proxy_options),
            "manifests_applied": self._manifests_applied,
        }
        write_atomically(self.names.settings, json.dumps(settings, indent=2) + "\n")

    def _check_node_count(self, asked: int | None, have: int | None) -> None:
        if asked is not None and not 1 <= asked <= MAX_NODES:
            raise LabError(f"{asked} nodes: a lab has 1 to {MAX_NODES}")
        if asked is not None and have is not None and asked < have:
            raise LabError(
                f"lab {self.names.name!r} has {have} nodes and can grow but not shrink to {asked}; "
                f"mend: ztctl lab down --name {self.names.name}, then up"
            )


def _container(pod: Object, name: str | None) -> Object:
    found: list[Object] = pod["spec"]["containers"]
    for container in found:
        if name in (None, container["name"]):
            return container
    have = ", ".join(container["name"] for container in found)
    raise LabError(f"{key_of(pod)} has no container {name!r}; it has {have}")


def _require_root(purpose: str) -> None:
    if os.geteuid() != 0:
        raise LabError(f"must be root to {purpose} (namespaces, cgroups); mend: sudo ztctl lab …")


def _uid() -> str:
    return str(uuid.uuid4())


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
