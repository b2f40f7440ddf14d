# SPDX-License-Identifier: Apache-2.0
"""Find pods' namespaces by the container runtime's word, and by cgroups where it has none.

                 refresh(wanted)
    event loop ------------------> thread: ListPodSandbox, PodSandboxStatus of those not known yet
         ^                            |
         +------ answered() ----------+

A new pod is waited for until the runtime was asked about it; one that it does not know, and all
while it does not answer, are looked for by cgroup. Nothing it said is believed later without proof:
a bound namespace's path is the pod's as long as it is there, and a process must be in the cgroup of
that very sandbox when its namespace is open.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import structlog

from ztunnel.agent.pods.cgroup_discovery import Discovery
from ztunnel.agent.pods.cri_sandbox import SOCKETS, CriError, CriRuntime, Sandbox, find_socket
from ztunnel.agent.pods.netns_finder import PROC, NetnsHandle, ProcFs

HOST = PROC / "1/root"  # the runtime's files, seen from a container with the host's processes
AUTO, NONE = "auto", "none"
_END = 10.0  # seconds for the thread to end; a call takes two at most

log = structlog.get_logger()


@dataclass(frozen=True)
class _Asked:
    """What the last turn was about, and whether the runtime answered."""

    uids: frozenset[str] = frozenset()
    problem: str = ""


class RuntimeDiscovery:
    """A `Finder`. All but the thread itself is for the event loop's thread only."""

    def __init__(
        self,
        dial: Callable[[], CriRuntime],
        cgroups: Discovery,
        answered: Callable[[], None] = lambda: None,
        *,
        host: Path = HOST,
        proc: Path = PROC,
    ) -> None:
        """`dial` raises CriError while there is no runtime; `answered` is called by the thread."""
        self._dial = dial
        self._cgroups = cgroups
        self._answered = answered
        self._host = host
        self._processes = ProcFs(proc)
        self._known: dict[str, Sandbox] = {}  # written by the thread, whole entries only
        self._asked = _Asked()
        self._wanted: frozenset[str] = frozenset()
        self._found: set[str] = set()
        self._wake = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="cri", daemon=True)
        self._thread.start()

    def view(self) -> dict[str, object]:
        """`pods`: of how many wanted ones the runtime told where they are."""
        return {
            "answers": self._answers,
            "problem": self._asked.problem,
            "pods": len(self._wanted & self._known.keys()),
        }

    def refresh(self, wanted: Iterable[str]) -> None:
        """Ask about pods that are not known, without waiting for the answer."""
        self._wanted = frozenset(wanted)
        self._found &= self._wanted
        missing = self._wanted - self._known.keys()
        if missing:
            self._wake.set()
        self._cgroups.refresh(missing & self._asked.uids if self._answers else missing)

    def open(self, pod_uid: str) -> NetnsHandle | None:
        """The namespace of a pod; None while it is not found. Raises HostNamespaceError."""
        found = self._find(pod_uid)
        if found is not None:
            self._found.add(pod_uid)
        return found

    def close(self) -> None:
        """End the thread."""
        self._ended = True
        self._wake.set()
        self._thread.join(_END)

    @property
    def _answers(self) -> bool:
        return not self._asked.problem

    def _find(self, pod_uid: str) -> NetnsHandle | None:
        sandbox = self._known.get(pod_uid)
        if sandbox is not None:
            found = self._opened(sandbox)
            if found is not None:
                return found
            self._known.pop(pod_uid, None)  # it ended: there is another by now, or none
            self._wake.set()
            self._cgroups.refresh([pod_uid])
        elif self._is_to_come(pod_uid):
            return None
        return self._cgroups.open(pod_uid)

    def _is_to_come(self, pod_uid: str) -> bool:
        """Whether the runtime is about to say where a new pod is."""
        return self._answers and pod_uid not in self._found | self._asked.uids

    def _opened(self, sandbox: Sandbox) -> NetnsHandle | None:
        found = None
        if sandbox.netns:
            found = self._processes.open_path(self._on_host(sandbox.netns))
        if found is None and sandbox.pid:
            found = self._processes.open(
                sandbox.pid, lambda pid: sandbox.id in self._processes.cgroups(pid)
            )
        return found

    def _on_host(self, path: str) -> Path:
        """/var/run is a link to /run, which would lead back to our own."""
        real = f"/run/{path.removeprefix('/var/run/')}" if path.startswith("/var/run/") else path
        return self._host / real.lstrip("/")

    # -- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        runtime: CriRuntime | None = None
        while True:
            self._wake.wait()
            self._wake.clear()
            if self._ended:
                break
            before, wanted, learnt = self._asked, self._wanted, False
            try:
                runtime = runtime or self._dial()
                learnt = self._ask(runtime, wanted)
                problem = ""
            except CriError as error:
                problem = str(error)
            if problem != before.problem:
                log.info("container runtime", answers=not problem, problem=problem)
            self._asked = _Asked(wanted, problem)
            if learnt or wanted - before.uids or problem != before.problem:
                self._answered()
        if runtime is not None:
            runtime.close()

    def _ask(self, runtime: CriRuntime, wanted: frozenset[str]) -> bool:
        """Whether anything new was learnt. Raises CriError."""
        running, learnt = runtime.sandboxes(), False
        for uid in set(self._known) - wanted:
            self._known.pop(uid, None)
        for uid in sorted(wanted & running.keys()):
            known = self._known.get(uid)
            if known is not None and known.id == running[uid]:
                continue
            try:
                self._known[uid] = runtime.sandbox(uid, running[uid])
                learnt = True
            except CriError as error:  # it ended, or this runtime tells less
                log.info("sandbox not told", pod_uid=uid, problem=str(error))
        return learnt


def dialler(setting: str, host: Path = HOST) -> Callable[[], CriRuntime]:
    """How to reach the runtime: `auto`, `none`, or the path of its socket on the host."""

    def dial() -> CriRuntime:
        if setting == NONE:
            raise CriError("not asked, by --cri-socket none")
        candidates = SOCKETS if setting == AUTO else (Path(setting),)
        socket = find_socket(host, candidates)
        try:
            from ztunnel.agent.pods.cri_client import Runtime  # noqa: PLC0415  only where one is
        except ImportError as error:
            raise CriError(f"{error}; pip install 'ztunnel[kubernetes]'") from error
        return Runtime(socket)

    return dial
