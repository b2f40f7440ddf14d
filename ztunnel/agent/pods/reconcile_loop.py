# SPDX-License-Identifier: Apache-2.0
"""Retries the enrollment of pods: with backoff after a failure, and all pods periodically."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from ztunnel.agent.periodic import attempt
from ztunnel.agent.pods.enroller import Enroller
from ztunnel.kube.view.cluster_view import ViewChange
from ztunnel.kube.view.publisher import ViewConsumer

MIN_BACKOFF_S = 0.05
RESYNC_INTERVAL_S = 2.0  # between checks of all pods: namespaces change without notification


class Wakeup:
    """Wakes the loop from the event loop or from another thread."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def set(self) -> None:
        """Wake the loop; for the thread of the event loop."""
        self._event.set()

    def set_from_thread(self) -> None:
        """Wake the loop; for any thread."""
        with suppress(RuntimeError):  # the event loop has stopped
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self, timeout_s: float) -> bool:
        """Whether it was set before the timeout."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            return False
        return True

    def clear(self) -> None:
        """Forget earlier calls of `set`."""
        self._event.clear()


class ReconcileLoop(ViewConsumer):
    """Runs `Enroller.advance` after every wakeup, and `Enroller.recheck` at each resync."""

    def __init__(self, enroller: Enroller, wakeup: Wakeup) -> None:
        self._enroller = enroller
        self._wakeup = wakeup

    def apply(self, change: ViewChange) -> None:
        self._wakeup.set()

    async def run(self) -> None:
        """Reconcile until cancelled."""
        delay = MIN_BACKOFF_S
        while True:
            self._wakeup.clear()
            if self._enroller.is_settled:
                delay = RESYNC_INTERVAL_S
            if await self._wakeup.wait(delay):
                delay = MIN_BACKOFF_S
            else:
                delay = min(delay * 2, RESYNC_INTERVAL_S)
            is_resync = delay == RESYNC_INTERVAL_S
            attempt(self._enroller.recheck if is_resync else self._enroller.advance)
