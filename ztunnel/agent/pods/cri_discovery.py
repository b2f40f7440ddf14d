# SPDX-License-Identifier: Apache-2.0
"""Finds pods' network namespaces by CRI, with cgroup discovery as the fallback.

                 refresh(wanted)
    event loop ------------------> thread: ListPodSandbox, PodSandboxStatus of those not known yet
         ^                            |
         +------ on_response() -------+

A new pod waits until the runtime has been queried for it. Pods that the runtime does not know, and
all pods while it does not respond, are discovered by cgroup. CRI data is verified before use: a
bound namespace's path is the pod's while it exists, and a process must be in the cgroup of its
sandbox after its namespace is open.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import structlog

from ztunnel.agent.pods.cgroup_discovery import CgroupDiscovery
from ztunnel.agent.pods.cri_sandbox import SOCKETS, CriError, CriRuntime, Sandbox, find_socket
from ztunnel.agent.pods.netns_finder import PROC, NetnsHandle, ProcFs

HOST = PROC / "1/root"  # the root of the host, from a container with the host's pid namespace
AUTO, NONE = "auto", "none"
_STOP_TIMEOUT_S = 10.0  # for the thread; a call takes two seconds at most

log = structlog.get_logger()


@dataclass(frozen=True)
class _CriPollResult:
    """The pods of the last poll, and its error; empty if the runtime responded."""

    uids: frozenset[str] = frozenset()
    error: str = ""


class CriDiscovery:
    """Implements `enroller.PodDiscovery`. Use from the event loop's thread only."""

    def __init__(
        self,
        dial: Callable[[], CriRuntime],
        cgroups: CgroupDiscovery,
        on_response: Callable[[], None] = lambda: None,
        *,
        host: Path = HOST,
        proc: Path = PROC,
    ) -> None:
        """`dial` raises CriError while there is no runtime. The polling thread calls
        `on_response` after it learned something new."""
        self._dial = dial
        self._cgroups = cgroups
        self._on_response = on_response
        self._host = host
        self._processes = ProcFs(proc)
        self._sandboxes: dict[str, Sandbox] = {}  # written by the thread, whole entries only
        self._last_poll = _CriPollResult()
        self._wanted: frozenset[str] = frozenset()
        self._opened_uids: set[str] = set()
        self._wake = threading.Event()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="cri", daemon=True)
        self._thread.start()

    def view(self) -> dict[str, object]:
        """The section `container_runtime` of the status; `pods` counts those found by CRI."""
        return {
            "responds": self._responds,
            "error": self._last_poll.error,
            "pods": len(self._wanted & self._sandboxes.keys()),
        }

    def refresh(self, wanted: Iterable[str]) -> None:
        """Poll the runtime for unknown pods, without waiting for the response."""
        self._wanted = frozenset(wanted)
        self._opened_uids &= self._wanted
        missing = self._wanted - self._sandboxes.keys()
        if missing:
            self._wake.set()
        self._cgroups.refresh(missing & self._last_poll.uids if self._responds else missing)

    def open(self, pod_uid: str) -> NetnsHandle | None:
        """The namespace of a pod; None if it is not found.

        Raises HostNamespaceError, and OSError if it cannot be known.
        """
        found = self._find(pod_uid)
        if found is not None:
            self._opened_uids.add(pod_uid)
        return found

    def is_in_use(self, netns: NetnsHandle) -> bool:
        """Whether a process is in the namespace. Raises OSError."""
        return self._processes.is_in_use(netns)

    def close(self) -> None:
        """Stop the thread."""
        self._is_stopping = True
        self._wake.set()
        self._thread.join(_STOP_TIMEOUT_S)

    @property
    def _responds(self) -> bool:
        return not self._last_poll.error

    def _find(self, pod_uid: str) -> NetnsHandle | None:
        sandbox = self._sandboxes.get(pod_uid)
        if sandbox is not None:
            found = self._open(sandbox)
            if found is not None:
                return found
            self._sandboxes.pop(pod_uid, None)  # the sandbox is gone; there may be a new one
            self._wake.set()
            self._cgroups.refresh([pod_uid])
        elif self._is_being_polled(pod_uid):
            return None
        return self._cgroups.open(pod_uid)

    def _is_being_polled(self, pod_uid: str) -> bool:
        """Whether the next poll may find a new pod."""
        return self._responds and pod_uid not in self._opened_uids | self._last_poll.uids

    def _open(self, sandbox: Sandbox) -> NetnsHandle | None:
        found, unknown = None, None
        if sandbox.netns:
            try:
                found = self._processes.open_path(self._on_host(sandbox.netns))
            except OSError as error:  # the process may still prove the namespace
                unknown = error
        if found is None and sandbox.pid:
            found = self._processes.open(
                sandbox.pid, lambda pid: sandbox.id in self._processes.cgroups(pid)
            )
        if found is None and unknown is not None:
            raise unknown
        return found

    def _on_host(self, path: str) -> Path:
        """/var/run is a link to /run, which would be resolved in the agent's own root."""
        real = f"/run/{path.removeprefix('/var/run/')}" if path.startswith("/var/run/") else path
        return self._host / real.lstrip("/")

    # -- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        runtime: CriRuntime | None = None
        while True:
            self._wake.wait()
            self._wake.clear()
            if self._is_stopping:
                break
            before, wanted, learned = self._last_poll, self._wanted, False
            try:
                runtime = runtime or self._dial()
                learned = self._poll(runtime, wanted)
                failure = ""
            except (CriError, OSError) as error:  # OSError: no descriptor, for an import even
                failure = str(error)
            if failure != before.error:
                log.info("container runtime polled", responds=not failure, error=failure)
            self._last_poll = _CriPollResult(wanted, failure)
            if learned or wanted - before.uids or failure != before.error:
                self._on_response()
        if runtime is not None:
            runtime.close()

    def _poll(self, runtime: CriRuntime, wanted: frozenset[str]) -> bool:
        """Query the sandboxes of unknown pods; returns whether one is new. Raises CriError."""
        running, learned = runtime.sandboxes(), False
        for uid in set(self._sandboxes) - wanted:
            self._sandboxes.pop(uid, None)
        for uid in sorted(wanted & running.keys()):
            known = self._sandboxes.get(uid)
            if known is not None and known.id == running[uid]:
                continue
            try:
                self._sandboxes[uid] = runtime.sandbox(uid, running[uid])
                learned = True
            except CriError as error:  # it is gone, or the runtime reports no details
                log.info("sandbox status unavailable", pod_uid=uid, error=str(error))
        return learned


def runtime_dialer(setting: str, host: Path = HOST) -> Callable[[], CriRuntime]:
    """A function that connects to the runtime: `auto`, `none`, or its socket on the host."""

    def dial() -> CriRuntime:
        if setting == NONE:
            raise CriError("disabled by --cri-socket none")
        candidates = SOCKETS if setting == AUTO else (Path(setting),)
        socket = find_socket(host, candidates)
        try:
            from ztunnel.agent.pods.cri_client import CriClient  # noqa: PLC0415  only where one is
        except ImportError as error:
            raise CriError(f"{error}; hint: pip install 'ztunnel[kubernetes]'") from error
        return CriClient(socket)

    return dial
