# SPDX-License-Identifier: Apache-2.0
"""Feeds a cluster view from an API server: one reflector per kind, one event loop.

    reflector threads ──▶ queue ──(wake)──▶ loop: collect a batch, update the view, on_change()

ServiceAccounts are not part of the view: only whether one exists is of interest (`lacks_account`,
decision 0016). If the server is lost, the last known state stays in force; `view` reports its age.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ztunnel.kube.client.access import Access
from ztunnel.kube.client.object_decoder import Event, EventType
from ztunnel.kube.client.reflector import SILENCE_TIMEOUT_S, Reflector, Resource, stop_all
from ztunnel.kube.objects.l7_kinds import L7_KINDS
from ztunnel.kube.view.cluster_view import ClusterView

BATCH_WINDOW_S = 0.02  # collect a burst of events before the workers are updated
EVENTS_PER_TURN = 200  # then other tasks of the loop run
_SECURITY = "/apis/security.istio.io/v1"
_NETWORKING = "/apis/networking.istio.io/v1"
_ACCOUNT = "ServiceAccount"


def watched_resources(node: str) -> tuple[Resource, ...]:
    """What the agent of a node watches; of Nodes only its own. deploy/ grants exactly this."""
    return (
        Resource("Namespace", "/api/v1/namespaces"),
        Resource("Node", "/api/v1/nodes", f"metadata.name={node}"),
        Resource("Pod", "/api/v1/pods"),
        Resource(_ACCOUNT, "/api/v1/serviceaccounts"),
        Resource("Service", "/api/v1/services"),
        Resource("EndpointSlice", "/apis/discovery.k8s.io/v1/endpointslices"),
        Resource("PeerAuthentication", f"{_SECURITY}/peerauthentications", optional=True),
        Resource("ServiceEntry", f"{_NETWORKING}/serviceentries", optional=True),
        *(
            Resource(kind, f"/apis/{info.api_version}/{info.plural}", optional=True)
            for kind, info in L7_KINDS.items()
        ),
    )


class ApiServerSource:
    """Updates `view`, then calls `on_change`, both in the running loop.

    `synced` is set once every kind was listed and is in the view. `on_change` is not called
    before: with a partial view, pods would leave the mesh. ServiceAccounts do not delay it.
    """

    def __init__(
        self,
        access: Access,
        resources: Sequence[Resource],
        view: ClusterView,
        on_change: Callable[[], None],
        *,
        silence_timeout_s: float = SILENCE_TIMEOUT_S,
    ) -> None:
        self.synced = asyncio.Event()
        self._client = access.client()
        self._cluster_view = view
        self._on_change = on_change
        self._queue: deque[Event] = deque()
        self._unlisted = {resource.kind for resource in resources}
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()
        self._reflectors = {
            resource.kind: Reflector(
                self._client,
                resource,
                self._ignore if resource.kind == _ACCOUNT else self._receive,
                self._listed_callback(resource.kind),
                silence_timeout_s=silence_timeout_s,
            )
            for resource in resources
        }

    async def run(self) -> None:
        """Follow the server until cancelled."""
        try:
            for reflector in self._reflectors.values():
                reflector.start()
            while True:
                await self._woken.wait()
                await asyncio.sleep(BATCH_WINDOW_S)
                self._woken.clear()
                await self._update_view()
        finally:
            await asyncio.to_thread(self._stop)

    def errors(self) -> dict[str, str]:
        """Current errors by kind."""
        healths = {kind: reflector.health for kind, reflector in self._reflectors.items()}
        return {kind: health.error for kind, health in healths.items() if health.error}

    def view(self) -> dict[str, Any]:
        """For status: `present` if every watch is open, `age_seconds` of the oldest one."""
        reflectors = self._reflectors
        healths = [reflector.health for reflector in reflectors.values()]
        oldest = min(health.last_response for health in healths)
        return {
            "kind": "kubernetes",
            "path": self._client.configuration.host,
            "present": all(health.connected for health in healths),
            "age_seconds": round(time.monotonic() - oldest, 1) if oldest else None,
            "versions": {kind: each.version for kind, each in reflectors.items()},
            "lists": {kind: each.lists for kind, each in reflectors.items()},
        }

    def lacks_account(self, namespace: str, name: str) -> bool:
        """Whether a service account is known not to exist.

        That is known only while the watch is open. Otherwise False: it may exist.
        """
        reflector = self._reflectors.get(_ACCOUNT)
        if reflector is None or _ACCOUNT in self._unlisted:
            return False
        return reflector.health.connected and not reflector.has(namespace, name)

    async def _update_view(self) -> None:
        # read before the queue is drained: objects of a listed kind are in the queue by then
        all_listed = self._unlisted <= {_ACCOUNT}
        is_changed = False
        while self._queue:
            for _ in range(min(EVENTS_PER_TURN, len(self._queue))):
                self._apply(self._queue.popleft())
            is_changed = True
            await asyncio.sleep(0)
        if all_listed and (is_changed or not self.synced.is_set()):
            self.synced.set()
            self._on_change()

    def _apply(self, event: Event) -> None:
        obj = event.object
        if event.type is EventType.UPSERT:
            self._cluster_view.upsert(obj)
        else:
            metadata = obj["metadata"]
            self._cluster_view.delete(obj["kind"], metadata.get("namespace", ""), metadata["name"])

    # Called in the reflectors' threads

    def _receive(self, event: Event) -> None:
        self._queue.append(event)
        self._wake()

    def _ignore(self, event: Event) -> None:
        """The reflector remembers the names."""

    def _listed_callback(self, kind: str) -> Callable[[], None]:
        def listed() -> None:
            if kind in self._unlisted:
                self._unlisted.discard(kind)
                self._wake()

        return listed

    def _wake(self) -> None:
        if not self._woken.is_set():
            self._loop.call_soon_threadsafe(self._woken.set)

    def _stop(self) -> None:
        stop_all(self._reflectors.values())
        self._client.close()
