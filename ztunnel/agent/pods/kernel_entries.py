# SPDX-License-Identifier: Apache-2.0
"""The kernel's entries of captured namespaces, and the removal of stale ones.

An entry belongs to a namespace cookie, never to a pod's name or address, so a re-created pod
inherits nothing. Entries that an earlier agent pinned are adopted unchanged while their namespace
is an enrolled pod's, and removed otherwise.
"""

from __future__ import annotations

import structlog

from ztunnel.agent.datapath import DataPath
from ztunnel.agent.pods.pod import Pod, PodState
from ztunnel.agent.pods.registry import CapturedPods

log = structlog.get_logger()


class KernelEntries:
    """Removes what no pod of the registry claims; a removal that fails is retried."""

    def __init__(self, datapath: DataPath, pods: CapturedPods) -> None:
        self._datapath = datapath
        self._pods = pods
        self._inherited = datapath.enrolled()  # addresses by cookie, from an earlier agent
        self._stale = datapath.attached() | set(self._inherited)  # unless a pod claims them

    @property
    def is_clean(self) -> bool:
        """Whether no entry is left to remove."""
        return not self._stale

    def claim(self, pod: Pod) -> bool:
        """The pod lives in its namespace now; whether the kernel captures it already."""
        self._stale.discard(pod.cookie)
        return self._inherited.pop(pod.cookie, None) == pod.addresses

    def remove(self, cookie: int) -> None:
        """Stop capturing a namespace; if that fails, `remove_stale` retries it."""
        self._stale.add(cookie)
        try:
            self._datapath.unenroll(cookie)
        except OSError as error:
            log.error("kernel entry not removed", cookie=cookie, error=str(error))
            return
        log.info("kernel entry removed", cookie=cookie)
        self._stale.discard(cookie)
        self._inherited.pop(cookie, None)

    def remove_stale(self) -> None:
        """Remove the entries of namespaces that belong to no pod."""
        pending = {
            address
            for pod in self._pods
            if pod.state is PodState.PENDING
            for address in pod.addresses
        }
        for cookie in sorted(self._stale):
            if pending.intersection(self._inherited.get(cookie, ())):
                continue  # it may be that pod's, whose namespace is not found yet
            self.remove(cookie)
