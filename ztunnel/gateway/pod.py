# SPDX-License-Identifier: Apache-2.0
"""One gateway pod of the node, as the gateway process serves it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import msgspec

from ztunnel.gateway.compiler import Compiled
from ztunnel.gateway.envoy_admin import EnvoyAdmin
from ztunnel.gateway.metrics_server import MetricsServer
from ztunnel.gateway.xds.ads_server import AdsServer
from ztunnel.gateway.xds.descriptors import EnvoyApi
from ztunnel.gateway.xds.resources import VERSION_BYTES
from ztunnel.ipc.gateway_messages import (
    MAX_REJECTION_CHARS,
    MAX_XDS_NAME_CHARS,
    GatewayListenerKind,
    GatewayPodAdded,
    GatewayView,
    HeldGatewayListeners,
    RejectedResource,
)

MAX_REPORTED = 64  # rejected resources
VERSION_CHARS = 2 * VERSION_BYTES  # that are shown: hashes of the parts follow


class GatewayPod:
    """Its listeners, the ADS server, the metrics server, and Envoy's admin interface."""

    def __init__(
        self,
        api: EnvoyApi,
        added: GatewayPodAdded,
        *,
        request_socket: Callable[[], None],
        on_change: Callable[[GatewayPod], None],
    ) -> None:
        self.uid = added.pod_uid
        self.workload = added.workload
        self.gateway = added.gateway
        self.cookie = added.netns_cookie
        self.admin = EnvoyAdmin(request_socket)
        self.ads = AdsServer(api, added.workload, lambda: on_change(self))
        self.metrics = MetricsServer(self.admin)
        self._listeners: dict[GatewayListenerKind, socket.socket] = {}
        self._compiled: Compiled | None = None

    def held(self) -> tuple[HeldGatewayListeners, list[int]]:
        """The listeners, with their descriptors, for a new agent."""
        kinds = tuple(self._listeners)
        return (
            HeldGatewayListeners(self.uid, self.cookie, kinds),
            [self._listeners[kind].fileno() for kind in kinds],
        )

    async def listen(self, kind: GatewayListenerKind, sock: socket.socket) -> None:
        """Serve a listener, unless the pod has one of the kind."""
        if kind in self._listeners:
            sock.close()
            return
        sock.setblocking(False)
        self._listeners[kind] = sock
        await (self.ads.listen(sock) if kind.is_xds else self.metrics.listen(sock))

    def set_compiled(self, compiled: Compiled) -> None:
        """Send a configuration to Envoy."""
        self._compiled = compiled
        self.ads.set_config(compiled.config)

    async def close(self) -> None:
        """Stop serving. Envoy continues with its configuration."""
        self._listeners.clear()
        self.ads.close()
        self.admin.close()
        await self.metrics.close()

    def rejected(self) -> tuple[RejectedResource, ...]:
        """What Envoy rejects, and what does not conform to its API. Of a part: `name#part`."""
        found = [
            (type_url, f"{each.name}#{each.part}" if each.part else each.name, each.message)
            for type_url, each in self.ads.rejected()
        ]
        if self._compiled is not None:
            found += [(each.type_url, each.name, each.message) for each in self._compiled.invalid]
        return tuple(
            RejectedResource(
                type_url[:256], name[:MAX_XDS_NAME_CHARS], message[:MAX_REJECTION_CHARS]
            )
            for type_url, name, message in sorted(found)[:MAX_REPORTED]
        )

    async def view(self, view: GatewayView, log_level: str, error: str) -> bytes:
        """A view as JSON text. `error`: of the last compilation. Raises EnvoyAdminError."""
        if view is GatewayView.CONFIG_DUMP:
            return await self.admin.get("/config_dump?include_eds")
        if view is GatewayView.CLUSTERS:
            return await self.admin.get("/clusters?format=json")
        if view is GatewayView.LOG:
            query = f"?{_log_query(log_level)}" if log_level else ""
            text = await self.admin.get(f"/logging{query}", method="POST")
            return msgspec.json.encode({"loggers": _loggers(text.decode("utf-8", "replace"))})
        return msgspec.json.encode(self._xds(error))

    def _xds(self, error: str) -> dict[str, Any]:
        compiled = self._compiled
        return {
            "workload": self.workload,
            "gateway": self.gateway,
            "connected": self.ads.is_connected,
            "synced": self.ads.is_synced,
            "error": error,
            "compile_seconds": round(compiled.seconds, 6) if compiled is not None else None,
            "problems": [str(each) for each in compiled.problems] if compiled is not None else [],
            "rejected": msgspec.to_builtins(
                [
                    {"type": each.type_url, "name": each.name, "message": each.message}
                    for each in self.rejected()
                ]
            ),
            "resources": [
                {
                    "type": each.type_url.rpartition(".")[2],
                    "name": each.name,
                    "version": each.version[:VERSION_CHARS],
                    "accepted": each.accepted[:VERSION_CHARS],
                    "state": each.state.value,
                    "message": each.message,
                }
                for each in self.ads.statuses()
            ],
        }


def _log_query(setting: str) -> str:
    """`debug` for all loggers, or `rbac=debug`."""
    logger, separator, level = setting.partition("=")
    if not separator:
        return f"level={quote(setting, safe='')}"
    return f"{quote(logger, safe='')}={quote(level, safe='')}"


def _loggers(text: str) -> dict[str, str]:
    """Of Envoy's `active loggers:` and a line `name: level` for each."""
    found = {}
    for line in text.splitlines()[1:]:
        name, separator, level = line.strip().partition(": ")
        if separator:
            found[name] = level
    return found
