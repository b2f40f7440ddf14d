# SPDX-License-Identifier: Apache-2.0
"""Where the agent learns of the cluster: an API server, or a directory of manifests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from ztunnel.agent.config import Options
from ztunnel.kube.sources.api_server import ApiServerSource, watched_resources
from ztunnel.kube.sources.directory import DirectorySource
from ztunnel.kube.view.cluster_view import ClusterView


class Source(Protocol):
    """Feeds a mirror until cancelled; `synced` is set once the first complete view is in it."""

    synced: asyncio.Event

    async def run(self) -> None: ...
    def lacks_account(self, namespace: str, name: str) -> bool: ...
    def errors(self) -> dict[str, str]: ...
    def view(self) -> dict[str, Any]: ...


def source_of(options: Options, mirror: ClusterView, on_change: Callable[[], None]) -> Source:
    """The source that the options name. Raises `kube.access.AccessError`."""
    if options.access is not None:
        return ApiServerSource(options.access, watched_resources(options.node), mirror, on_change)
    if options.manifests is None:
        raise ValueError("options name neither a directory nor an API server")
    return DirectorySource(options.manifests, mirror, on_change)
