# SPDX-License-Identifier: Apache-2.0
"""Runs an `ApiServerSource` in a thread and applies its deltas to a mesh state."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any

from ztunnel.kube.client.access import Access
from ztunnel.kube.client.reflector import SILENCE_TIMEOUT_S
from ztunnel.kube.sources.api_server import ApiServerSource, watched_resources
from ztunnel.kube.view.cluster_view import ClusterView, ViewChange
from ztunnel.mesh.state import MeshState


class SourceRunner:
    """Follows a server like the agent of `node`.

    `changes` has the deltas that an agent sends to its workers; `state` is built from them alone.
    """

    def __init__(
        self,
        kubeconfig: Path,
        node: str = "n1",
        *,
        silence_timeout_s: float = SILENCE_TIMEOUT_S,
        patience: float = 30,
    ) -> None:
        self.state = MeshState()
        self.changes: list[ViewChange] = []
        self.mirror = ClusterView("cluster.local", "Kubernetes")
        self._access = Access(kubeconfig)
        self._node = node
        self._silence_timeout_s = silence_timeout_s
        self._patience = patience
        self._stop: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._synced = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> SourceRunner:
        self.start()
        assert self._synced.wait(self._patience), f"not synced: {self.errors()}"
        return self

    def start(self) -> None:
        """Start without waiting for the first view."""
        self._thread.start()
        self._stop.result(10)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        loop, stop = self._stop.result(0)
        loop.call_soon_threadsafe(stop.set)
        self._thread.join(30)
        assert not self._thread.is_alive(), "the source did not stop"
        assert self._failure is None, self._failure

    @property
    def is_synced(self) -> bool:
        return self._synced.is_set()

    def errors(self) -> dict[str, str]:
        return self.source.errors()

    def view(self) -> dict[str, Any]:
        return self.source.view()

    def workload(self, name: str, namespace: str) -> Any:
        """The workload in the workers' state, or None."""
        return self.state.workload(f"Kubernetes//Pod/{namespace}/{name}")

    def _run(self) -> None:
        try:
            asyncio.run(self._follow())
        except BaseException as error:
            self._failure = error
            raise

    async def _follow(self) -> None:
        stop = asyncio.Event()
        kinds = watched_resources(self._node)
        self.source = ApiServerSource(
            self._access,
            kinds,
            self.mirror,
            self._changed,
            silence_timeout_s=self._silence_timeout_s,
        )
        self._stop.set_result((asyncio.get_running_loop(), stop))
        running = asyncio.create_task(self.source.run())
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait((running, stopped), return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    def _changed(self) -> None:
        change = self.mirror.drain()
        if change:
            self.state.apply(change)
            self.changes.append(change)
        self._synced.set()
