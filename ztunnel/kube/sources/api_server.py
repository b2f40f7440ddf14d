# SPDX-License-Identifier: Apache-2.0
"""An API server as the source of a mirror: one informer a kind, all feeding one event loop.

    informer threads ──▶ inbox ──(wake)──▶ loop: gather a moment, feed the mirror, on_change()

What the library's informer does (list, watch, resume, 410, tell what vanished meanwhile) is not
done again here; its own copy of the objects is reduced to `NAME`, as the mirror has the rest.
Of ServiceAccounts the names are all there is: `lacks_account` asks for them (0016).
A server that is lost changes nothing: what is known stays in force, and `health` says for how long.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from kubernetes.informer import ADDED, DELETED, ERROR, MODIFIED, SharedInformer

from ztunnel.kube.client.access import Access
from ztunnel.kube.client.list_watch import SILENCE, ListWatch, Resource
from ztunnel.kube.client.object_decoder import NAME
from ztunnel.kube.objects.fields import Object
from ztunnel.kube.view.cluster_view import ClusterView

GATHER = 0.02  # seconds: what a burst of events is gathered for, before the workers are told
TURN = 200  # events fed before the loop serves others
LOGGERS = ("kubernetes.informer.informer",)  # tracebacks of what `listwatch` says in a line
_SECURITY = "/apis/security.istio.io/v1"
_NETWORKING = "/apis/networking.istio.io/v1"
_ACCOUNT = "ServiceAccount"


def granted(node: str) -> tuple[Resource, ...]:
    """What the agent of a node may read: of nodes only its own. `deploy/` grants exactly this."""
    return (
        Resource("Namespace", "/api/v1/namespaces"),
        Resource("Node", "/api/v1/nodes", only=f"metadata.name={node}"),
        Resource("Pod", "/api/v1/pods"),
        Resource(_ACCOUNT, "/api/v1/serviceaccounts"),
        Resource("Service", "/api/v1/services"),
        Resource("EndpointSlice", "/apis/discovery.k8s.io/v1/endpointslices"),
        Resource("AuthorizationPolicy", f"{_SECURITY}/authorizationpolicies", optional=True),
        Resource("PeerAuthentication", f"{_SECURITY}/peerauthentications", optional=True),
        Resource("ServiceEntry", f"{_NETWORKING}/serviceentries", optional=True),
    )


class ApiSource:
    """Feeds a mirror from an API server; `on_change` is called after it was fed, in the same loop.

    `synced` is set once every kind was listed and is in the mirror; before, `on_change` is not
    called: half a view would take pods out of the mesh. Accounts are not waited for: nothing is
    taken away for want of them.
    """

    def __init__(
        self,
        access: Access,
        kinds: Sequence[Resource],
        mirror: ClusterView,
        on_change: Callable[[], None],
        *,
        silence: float = SILENCE,
    ) -> None:
        self.synced = asyncio.Event()
        self._client = access.client()
        self._mirror = mirror
        self._on_change = on_change
        self._inbox: deque[tuple[bool, Object]] = deque()
        self._unlisted = {kind.kind for kind in kinds}
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()
        self._watches = [
            ListWatch(self._client, kind, self._listing(kind.kind), silence=silence)
            for kind in kinds
        ]
        self._informers = [self._informer(watch) for watch in self._watches]
        pairs = zip(self._watches, self._informers, strict=True)
        accounts = (pair for pair in pairs if pair[0].resource.kind == _ACCOUNT)
        self._accounts = next(accounts, None)
        for name in LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)

    async def run(self) -> None:
        """Follow the server until cancelled."""
        try:
            for informer in self._informers:
                informer.start()
            while True:
                await self._woken.wait()
                await asyncio.sleep(GATHER)
                self._woken.clear()
                await self._feed()
        finally:
            await asyncio.to_thread(self._stop)

    def errors(self) -> dict[str, str]:
        """What is wrong, by kind."""
        return {
            watch.resource.kind: watch.health.error for watch in self._watches if watch.health.error
        }

    def view(self) -> dict[str, Any]:
        """For status: whether every kind's watch is open, and since when one is not."""
        healths = [watch.health for watch in self._watches]
        oldest = min(health.heard for health in healths)
        return {
            "kind": "kubernetes",
            "path": self._client.configuration.host,
            "present": all(health.connected for health in healths),
            "age_seconds": round(time.monotonic() - oldest, 1) if oldest else None,
            "versions": {watch.resource.kind: watch.version for watch in self._watches},
            "lists": {watch.resource.kind: watch.lists for watch in self._watches},
        }

    def lacks_account(self, namespace: str, name: str) -> bool:
        """Whether a service account is known not to be there.

        Known: all were listed and their watch is open. Else nobody knows, and False is returned.
        """
        if self._accounts is None:
            return False
        watch, informer = self._accounts
        is_known = _ACCOUNT not in self._unlisted and watch.health.connected
        return is_known and informer.cache.get_by_key(f"{namespace}/{name}") is None

    async def _feed(self) -> None:
        """Take the inbox into the mirror, and tell of it."""
        # asked first: what was listed is in the inbox by then
        all_listed = self._unlisted <= {_ACCOUNT}
        fed = False
        while self._inbox:
            for _ in range(min(TURN, len(self._inbox))):
                is_there, obj = self._inbox.popleft()
                if is_there:
                    self._mirror.upsert(obj)
                else:
                    metadata = obj["metadata"]
                    self._mirror.delete(obj["kind"], metadata["namespace"], metadata["name"])
                fed = True
            await asyncio.sleep(0)
        if all_listed and (fed or not self.synced.is_set()):
            self.synced.set()
            self._on_change()

    # In the informers' threads

    def _informer(self, watch: ListWatch) -> SharedInformer:
        kind = watch.resource.kind
        informer = SharedInformer(watch.request, key_func=_name)
        for event, is_there in ((ADDED, True), (MODIFIED, True), (DELETED, False)):
            # of an account nothing is kept but its name, which is the cache's key
            handle = dict.clear if kind == _ACCOUNT else self._handler(kind, is_there)
            informer.add_event_handler(event, handle)
        informer.add_event_handler(ERROR, watch.failed)
        return informer

    def _handler(self, kind: str, is_there: bool) -> Callable[[Object], None]:
        def handle(obj: Object) -> None:
            name = _name(obj)
            if is_there:
                taken = {"kind": kind, **obj}
            else:
                namespace, _, own = name.rpartition("/")
                taken = {"kind": kind, "metadata": {"namespace": namespace, "name": own}}
            obj.clear()  # in the informer's cache: it compares names only
            obj[NAME] = name
            self._inbox.append((is_there, taken))
            self._wake()

        return handle

    def _listing(self, kind: str) -> Callable[[], None]:
        def listed() -> None:
            if kind in self._unlisted:
                self._unlisted.discard(kind)
                self._wake()

        return listed

    def _wake(self) -> None:
        if not self._woken.is_set():
            self._loop.call_soon_threadsafe(self._woken.set)

    def _stop(self) -> None:
        for watch in self._watches:
            watch.stop()
        for informer in self._informers:
            informer.stop()
        self._client.close()


def _name(obj: Object) -> str:
    """`namespace/name`, or `name`: of an object, or of what is kept of one."""
    kept = obj.get(NAME)
    if kept is not None:
        return str(kept)
    metadata = obj["metadata"]
    namespace = metadata.get("namespace")
    return f"{namespace}/{metadata['name']}" if namespace else str(metadata["name"])
