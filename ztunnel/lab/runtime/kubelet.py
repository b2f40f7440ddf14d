# SPDX-License-Identifier: Apache-2.0
"""The lab's kubelet: runs the planned pods, removes the others, and updates their status."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from ztunnel.lab.cluster.pod_fields import is_ready
from ztunnel.lab.names import LabNames
from ztunnel.lab.network.addresses import Node
from ztunnel.lab.objects import Object, Objects, ObjectStore, key_of, of_kind
from ztunnel.lab.runtime import containers, images, probes, sandbox, termination, volumes
from ztunnel.lab.runtime.sandbox import Sandbox

_POLL_INTERVAL_S = 0.05


class Kubelet:
    """Runs the pods of all nodes of a lab. Stateless: the kernel has the current state."""

    def __init__(
        self,
        names: LabNames,
        nodes: Sequence[Node],
        store: ObjectStore,
        before_start: Callable[[Object], None],
    ) -> None:
        """`before_start` is called for each new pod, with its network up and before containers."""
        self._names = names
        self._nodes = {node.name: node for node in nodes}
        self._store = store
        self._before_start = before_start

    def dead_pods(self, objects: Objects) -> list[Object]:
        """The pods in phase Running whose sandbox does not exist any more."""
        return [
            pod
            for pod in of_kind(objects, "Pod")
            if pod.get("status", {}).get("phase") == "Running"
            and not sandbox.is_alive(self._names, sandbox.describe(self._names, pod))
        ]

    def remove_others(self, pods: Iterable[Object]) -> None:
        """Remove the sandboxes of all pods except these."""
        uids = {pod["metadata"]["uid"] for pod in pods}
        for pod_sandbox in list(sandbox.recorded(self._names)):
            if pod_sandbox.uid not in uids:
                sandbox.destroy(self._names, pod_sandbox)

    def stop(self, pods: Sequence[Object]) -> None:
        """Stop the containers of pods, all at the same time: preStop, SIGTERM, SIGKILL."""
        with ThreadPoolExecutor(max_workers=max(1, len(pods))) as pool:
            list(pool.map(lambda pod: termination.stop(self._names, pod), pods))

    def remove(self, pods: Iterable[Object]) -> None:
        """Remove the sandboxes of these pods."""
        for pod in pods:
            sandbox.destroy(self._names, sandbox.describe(self._names, pod))

    def run(self, pod: Object, objects: Objects) -> Object:
        """Start what does not run of a bound pod and update its volumes; return the stored object.

        `objects` has its images and volumes. The status has the addresses before a container
        starts, so that the agent can capture the pod before its first connection.
        """
        pod_sandbox = sandbox.describe(self._names, pod)
        pod, commands = copy.deepcopy(pod), images.user_commands(objects)
        try:
            volumes.sync(self._names.pod_dir(pod_sandbox.uid), pod, objects)
        except volumes.VolumeError as error:
            if not sandbox.is_alive(self._names, pod_sandbox):  # a running pod continues
                reasons = {each["name"]: str(error) for each in pod["spec"]["containers"]}
                self._update_status(pod, pod_sandbox, waiting=reasons)
                return pod
        if not sandbox.is_alive(self._names, pod_sandbox):
            sandbox.create(self._names, self._nodes[pod_sandbox.node], pod)
        if pod["status"]["phase"] != "Running":
            pod["status"]["phase"] = "Running"
            self._update_status(pod, pod_sandbox, waiting={})
            self._before_start(pod)
        waiting = {}
        for container in pod["spec"]["containers"]:
            if not containers.is_running(self._names, pod_sandbox, container["name"]):
                try:
                    containers.start(self._names, pod_sandbox, pod, container, commands)
                except images.UnknownImageError as error:
                    waiting[container["name"]] = str(error)
        self._update_status(pod, pod_sandbox, waiting=waiting)
        return pod

    def wait_ready(
        self, pods: Sequence[Object], deadline: float, progress: Callable[[str], None]
    ) -> list[Object]:
        """Probe the pods until all are ready or the deadline passes. Returns the unready ones.

        Pods that cannot start because of an unknown image are not waited for.
        """
        unready = list(pods)
        while unready:
            unready = [pod for pod in unready if not self._probe(pod, progress)]
            if all(map(_waiting_messages, unready)) or time.monotonic() > deadline:
                break
            time.sleep(_POLL_INTERVAL_S)
        return unready

    def unready_reason(self, pod: Object) -> str:
        """The reason why a pod is not ready."""
        pod_sandbox = sandbox.describe(self._names, pod)
        for status in pod["status"].get("containerStatuses", []):
            waiting = status.get("state", {}).get("waiting")
            if waiting:
                return f"{key_of(pod)}: {waiting['message']}"
            if not status["ready"]:
                name = status["name"]
                log = containers.log_path(self._names, pod_sandbox.uid, name)
                is_running = containers.is_running(self._names, pod_sandbox, name)
                state = "runs but is not ready" if is_running else "has exited"
                return f"{key_of(pod)}: container {name} {state}; hint: see {log}"
        return f"{key_of(pod)}: not ready"

    def _probe(self, pod: Object, progress: Callable[[str], None]) -> bool:
        """Probe the pod and update its status. Returns whether it is ready."""
        pod_sandbox, was_ready = sandbox.describe(self._names, pod), is_ready(pod)
        self._update_status(pod, pod_sandbox, waiting=_waiting_messages(pod), probe=True)
        ready = is_ready(pod)
        if ready and not was_ready:
            key = key_of(pod)
            progress(f"{pod_sandbox.node}: pod {key.namespace}/{key.name} ready")
        return ready

    def _update_status(
        self, pod: Object, pod_sandbox: Sandbox, *, waiting: Mapping[str, str], probe: bool = False
    ) -> None:
        """Store the pod's status. A container becomes ready only by a probe."""
        before = {entry["name"]: entry for entry in pod["status"].get("containerStatuses", [])}
        statuses = []
        for container in pod["spec"]["containers"]:
            name = container["name"]
            if probe:
                ready = probes.is_ready(self._names, pod_sandbox, pod, container)
            else:
                was_ready = bool(before.get(name, {}).get("ready"))
                ready = was_ready and containers.is_running(self._names, pod_sandbox, name)
            statuses.append(_container_status(container, ready, waiting.get(name)))
        all_ready = str(all(status["ready"] for status in statuses))
        pod["status"]["conditions"] = [
            {"type": "PodScheduled", "status": "True"},
            {"type": "Initialized", "status": "True"},
            {"type": "ContainersReady", "status": all_ready},
            {"type": "Ready", "status": all_ready},
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


def _waiting_messages(pod: Object) -> dict[str, str]:
    """The messages of the containers that cannot start, by container name."""
    return {
        status["name"]: status["state"]["waiting"]["message"]
        for status in pod["status"].get("containerStatuses", [])
        if "waiting" in status.get("state", {})
    }
