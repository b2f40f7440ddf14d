# SPDX-License-Identifier: Apache-2.0
"""`Lab`: the interface of the lab, for `ztctl lab` and for tests.

    with Lab("demo") as lab:
        lab.exec("client", "curl", "-s", "http://my-app")

Only the components of nodes keep running. Each call reads the object directory, reconciles, and
returns. A file lock serializes calls of several processes.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from types import TracebackType

from ztunnel.lab import cleanup
from ztunnel.lab.components import start_all
from ztunnel.lab.errors import LabError
from ztunnel.lab.names import LabNames
from ztunnel.lab.network import external, links
from ztunnel.lab.objects import Object, read_manifests
from ztunnel.lab.reader import KINDS, LabReader, require_root
from ztunnel.lab.reconciler import Reconciler, new_uid
from ztunnel.lab.runtime import cgroups, mounts, process
from ztunnel.lab.state import load_settings, locked

READY_TIMEOUT_S = 90.0  # for all components and pods; includes the loader's compiler run
_REQUIRED_PROGRAMS = ("mount", "nft", "nsenter", "setpriv", "setsid", "unshare")


def demo_manifests() -> Path:
    """The directory of the manifests that a new lab applies by default."""
    return Path(str(resources.files("ztunnel.lab") / "manifests"))


class Lab(LabReader):
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
        names = LabNames(name, cgroups.cgroup2_root())
        settings = load_settings(names)
        if nodes is not None:
            settings.set_nodes(names, nodes)
        if mesh is not None:
            settings.mesh = mesh
        if agent_options is not None:
            settings.agent_options = tuple(agent_options)
        if proxy_options is not None:
            settings.proxy_options = tuple(proxy_options)
        super().__init__(names, settings)
        self.progress = progress or (lambda _: None)
        self._reconciler = Reconciler(
            self.names,
            self.nodes,
            self.store,
            self.settings,
            pod_uid=pod_uid,
            progress=self.progress,
        )

    # -- lifecycle -------------------------------------------------------------------------------

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
        require_root("create a lab")
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
            all_components = (part for node in self.nodes for part in self.components(node.name))
            start_all(all_components, deadline, self.progress)
            self._reconciler.apply(objects)
            self.settings.manifests_applied = True
            self.settings.save(self.names)
            return self._reconciler.reconcile(deadline if wait else None)

    def down(self) -> list[str]:
        """Remove the lab, in whatever state it is. Returns a line for each removed item."""
        require_root("remove a lab")
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
        key = self.key(kind, name, namespace)
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

    # -- commands in pods and nodes ----------------------------------------------------------------

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

    def external_exec(
        self, *argv: str, timeout: float | None = 60, check: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the machine outside the cluster and wait for it."""
        return subprocess.run(
            self.external_argv(argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=check,
        )

    # -- components --------------------------------------------------------------------------------

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

    # -- internals ---------------------------------------------------------------------------------

    def _set_up_nodes(self) -> None:
        links.ensure_underlay(self.names)
        for node in self.nodes:
            links.ensure_node(self.names, node, self.nodes)
            self.names.run_dir(node.name).mkdir(exist_ok=True)
            self.names.node_cgroup(node.name).mkdir(parents=True, exist_ok=True)
            self.progress(f"{node.name}: network ready")
        external.ensure(self.names, self.nodes)
        self.names.ca.mkdir(mode=0o700, exist_ok=True)

    @contextmanager
    def _change(self) -> Iterator[None]:
        """Hold the lock of an existing lab."""
        require_root("change a lab")
        self.require_up()
        with locked(self.names):
            yield
