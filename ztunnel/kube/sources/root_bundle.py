# SPDX-License-Identifier: Apache-2.0
"""The mesh's root certificates, which the controller publishes in a ConfigMap."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ztunnel.kube.client.object_decoder import Event
from ztunnel.kube.client.reflector import Reflector, Resource, stop_all
from ztunnel.kube.constants import ROOTS_CONFIGMAP, ROOTS_KEY


class RootBundleSource:
    """Watches the ConfigMap of one namespace. If it is deleted, the last bundle stays in force."""

    def __init__(self, client: Any, namespace: str) -> None:
        self.bundle = b""
        self._on_change: Callable[[bytes], None] = lambda _: None
        self._loop = asyncio.get_running_loop()
        resource = Resource(
            "ConfigMap",
            f"/api/v1/namespaces/{namespace}/configmaps",
            f"metadata.name={ROOTS_CONFIGMAP}",
        )
        self._reflector = Reflector(client, resource, self._receive)

    def start(self, on_change: Callable[[bytes], None]) -> None:
        """Start watching; `on_change` is called in the event loop with each new bundle (PEM)."""
        self._on_change = on_change
        self._reflector.start()

    def close(self) -> None:
        """Stop watching; blocks for up to a second."""
        stop_all([self._reflector])

    def _receive(self, event: Event) -> None:
        bundle = (event.object.get("data") or {}).get(ROOTS_KEY, "").encode()
        self._loop.call_soon_threadsafe(self._apply, bundle)

    def _apply(self, bundle: bytes) -> None:
        if bundle and bundle != self.bundle:
            self.bundle = bundle
            self._on_change(bundle)
