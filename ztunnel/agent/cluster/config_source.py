# SPDX-License-Identifier: Apache-2.0
"""Selects the source of the cluster's configuration: an API server or a directory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from ztunnel.agent.config import Options
from ztunnel.kube.sources.api_server import ApiServerSource, watched_resources
from ztunnel.kube.sources.directory import DirectorySource
from ztunnel.kube.view.cluster_view import ClusterView


class ConfigSource(Protocol):
    """Feeds the view until cancelled; `synced` is set once the view is complete."""

    synced: asyncio.Event

    async def run(self) -> None: ...
    def lacks_account(self, namespace: str, name: str) -> bool: ...
    def errors(self) -> dict[str, str]: ...
    def view(self) -> dict[str, Any]: ...


def config_source_of(
    options: Options, view: ClusterView, on_change: Callable[[], None]
) -> ConfigSource:
    """The source that the options select. Raises AccessError."""
    if options.access is not None:
        return ApiServerSource(options.access, watched_resources(options.node), view, on_change)
    if options.manifests is None:
        raise ValueError("the options have neither a directory nor an API server")
    return DirectorySource(options.manifests, view, on_change)
