# SPDX-License-Identifier: Apache-2.0
"""The lab's kubelet: makes the planned pods run, ends the others, and writes down what it sees."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from ztunnel.lab.cluster.scheduler import NodePlan, is_ready
from ztunnel.lab.names import LabNames
from ztunnel.lab.objects import Object, Objects, ObjectStore, key_of, of_kind
from ztunnel.lab.runtime import containers, images, probes, sandbox
from ztunnel.lab.runtime.sandbox import Sandbox

_POLL = 0.05  # seconds


class Kubelet:
    """Runs pods on the nodes of one lab. Stateless: it asks the kernel what is there."""

    def __init__(
        self,
        names: LabNames,
        nodes: Sequence[NodePlan],
        store: ObjectStore,
        before_start: Callable[[Object], None],
    ) -> None:
        """`before_start` is called once per new pod: it has its network, and no program yet."""
        self._names = names
        self._nodes = {node.name: node for node in nodes}
        self._store = store
        self._before_start = before_start

    def broken(self, objects: Objects) -> list[Object]:
        """The pods that ran and whose sandbox is gone."""
        return [
            pod
            for pod in of_kind(objects, "Pod")
            if pod.get("status", {}).get("phase") == "Running"
            and not sandbox.is_alive(self._names, sandbox.describe(self._names, pod))
        ]

    def collect(self, wanted: Iterable[Object]) -> None:
        """End every sandbox that belongs to none of the wanted pods."""
        uids = {pod["metadata"]["uid"] for pod in wanted}
        for box in list(sandbox.recorded(self._names)):
            if box.uid not in uids:
                sandbox.destroy(self._names, box)

    def run(self, pod: Object, table: Mapping[str, str]) -> Object:
        """Make one bound pod run; the object as stored afterwards.

        Sandbox and addresses are published before a container starts, so that a mesh agent can
        enrol the pod before its program opens a connection.
        """
        box = sandbox.describe(self._names, pod)
        pod = copy.deepcopy(pod)
        if not sandbox.is_alive(self._names, box):
            sandbox.create(self._names, self._nodes[box.node], pod)
        if pod["status"]["phase"] != "Running":
            pod["status"]["phase"] = "Running"
            self._report(pod, box, waiting={})
            self._before_start(pod)
        waiting = {}
        for container in pod["spec"]["containers"]:
            if not containers.is_running(self._names, box, container["name"]):
                try:
                    containers.start(self._names, box, pod, container, table)
                except images.UnknownImageError as error:
                    waiting[container["name"]] = str(error)
        self._report(pod, box, waiting=waiting)
        return pod

    def wait_ready(
        self, pods: Sequence[Object], deadline: float, progress: Callable[[str], None]
    ) -> list[Object]:
        """Watch the pods until all are ready or the deadline passes; those that are not.

        Pods whose program is unknown are not waited for: only another manifest helps them.
        """
        left = list(pods)
        while left:
            left = [pod for pod in left if not self._observe(pod, progress)]
            if all(map(_waiting, left)) or time.monotonic() > deadline:
                break
            time.sleep(_POLL)
        return left

    def explain(self, pod: Object) -> str:
        """Why a pod is not ready, for a person."""
        box = sandbox.describe(self._names, pod)
        for status in pod["status"].get("containerStatuses", []):
            waiting = status.get("state", {}).get("waiting")
            if waiting:
                return f"{key_of(pod)}: {waiting['message']}"
            if not status["ready"]:
                name = status["name"]
                log = containers.log_path(self._names, box.uid, name)
                state = "runs" if containers.is_running(self._names, box, name) else "ended"
                return f"{key_of(pod)}: container {name} {state} but is not ready; see {log}"
        return f"{key_of(pod)}: not ready"

    def _observe(self, pod: Object, progress: Callable[[str], None]) -> bool:
        """Probe the pod and store its condition when it changed; whether it is ready."""
        box, was = sandbox.describe(self._names, pod), is_ready(pod)
        waiting = _waiting(pod)
        self._report(pod, box, waiting=waiting, probe=True)
        ready = is_ready(pod)
        if ready and not was:
            key = key_of(pod)
            progress(f"{box.node}: pod {key.namespace}/{key.name} ready")
        return ready

    def _report(
        self, pod: Object, box: Sandbox, *, waiting: Mapping[str, str], probe: bool = False
    ) -> None:
        """Write the pod's status as it is now; readiness is only ever true after a probe."""
        before = {entry["name"]: entry for entry in pod["status"].get("containerStatuses", [])}
        statuses = []
        for container in pod["spec"]["containers"]:
            name = container["name"]
            known = before.get(name, {})
            ready = (
                probes.is_ready(self._names, box, pod, container)
                if probe
                else bool(known.get("ready")) and containers.is_running(self._names, box, name)
            )
            statuses.append(_container_status(container, ready, waiting.get(name)))
        everything = all(status["ready"] for status in statuses)
        pod["status"]["conditions"] = [
            {"type": "PodScheduled", "status": "True"},
            {"type": "Initialized", "status": "True"},
            {"type": "ContainersReady", "status": str(everything)},
            {"type": "Ready", "status": str(everything)},
        ]
        pod["status"]["containerStatuses"] = statuses
        self._store.put(pod)


def _container_status(container: Object, ready: bool, waiting: str | None) -> Object:
    if waiting:
        state: Object = {"waiting": {"reason": "ImagePullBackOff", "message": waiting}}
    else:
        state = {"running": {}}
    return {
        "name": container["name"],
        "image": container["image"],
        "ready": ready,
        "started": not waiting,
        "restartCount": 0,
        "state": state,
    }


def _waiting(pod: Object) -> dict[str, str]:
    return {
        status["name"]: status["state"]["waiting"]["message"]
        for status in pod["status"].get("containerStatuses", [])
        if "waiting" in status.get("state", {})
    }
