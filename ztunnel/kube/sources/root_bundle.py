# SPDX-License-Identifier: Apache-2.0
"""The mesh's roots as the signer publishes them, watched by each agent."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from kubernetes import client

from ztunnel.kube.client.informers import informer, stop_all
from ztunnel.kube.constants import ROOTS_CONFIGMAP, ROOTS_KEY


class RootsSource:
    """The ConfigMap of one namespace. What was seen last stays when it is deleted."""

    def __init__(self, api: Any, namespace: str) -> None:
        self.bundle = b""
        self._on_change: Callable[[bytes], None] = lambda _: None
        self._loop = asyncio.get_running_loop()
        self._stopped = threading.Event()
        self._informer = informer(
            client.CoreV1Api(api).list_namespaced_config_map,
            self._seen,
            self._stopped,
            namespace=namespace,
            field_selector=f"metadata.name={ROOTS_CONFIGMAP}",
        )

    def start(self, on_change: Callable[[bytes], None]) -> None:
        """Begin to watch; `on_change` is called in the loop with each new bundle (PEM)."""
        self._on_change = on_change
        self._informer.start()

    def close(self) -> None:
        """End it; may wait a second."""
        self._stopped.set()
        stop_all([self._informer])

    def _seen(self, config_map: Any) -> None:
        bundle = (config_map.data or {}).get(ROOTS_KEY, "").encode()
        self._loop.call_soon_threadsafe(self._take, bundle)

    def _take(self, bundle: bytes) -> None:
        if bundle and bundle != self.bundle:
            self.bundle = bundle
            self._on_change(bundle)
