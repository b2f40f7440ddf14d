# SPDX-License-Identifier: Apache-2.0
"""The mesh and the L7 objects, as the agent sends them.

no state --reset--> receiving a snapshot --complete--> in sync --delta--> in sync
                                                          | reset
                                                          v
                                        receiving a snapshot (the previous state stays in use)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import msgspec
import structlog

from ztunnel.ipc.gateway_messages import GatewaySettings, L7Delta
from ztunnel.ipc.messages import MeshDelta
from ztunnel.l7.inputs import Inputs, Settings
from ztunnel.l7.objects import L7Key, l7_object
from ztunnel.l7.store import L7Store
from ztunnel.l7.traffic.locality import NOWHERE, locality_of
from ztunnel.mesh.state import MeshState

log = structlog.get_logger()

_decoder = msgspec.json.Decoder()


class GatewayState:
    """Apply messages only while no compilation reads the inputs."""

    def __init__(self) -> None:
        self._settings = Settings()
        self._mesh: MeshState | None = None
        self._next_mesh: MeshState | None = None
        self._parts: list[MeshDelta] = []  # of an incomplete revision
        self._l7: L7Store | None = None
        self._next_l7: L7Store | None = None
        self.invalid: dict[str, str] = {}  # objects that cannot be read, with the reason

    def inputs(self) -> Inputs | None:
        """What to compile from; None until the first snapshots are complete."""
        if self._mesh is None or self._l7 is None:
            return None
        return Inputs(self._l7, self._mesh, self._settings)

    def apply(self, message: MeshDelta | L7Delta | GatewaySettings) -> None:
        """Apply a message of the agent."""
        if isinstance(message, MeshDelta):
            self._apply_mesh(message.expanded())
        elif isinstance(message, L7Delta):
            self._apply_l7(message)
        else:
            self._apply_settings(message)

    def _apply_settings(self, message: GatewaySettings) -> None:
        """Each reconnection sends them: the same values leave the same object."""
        values = msgspec.structs.asdict(message)
        if any(getattr(self._settings, name) != value for name, value in values.items()):
            self._settings = replace(self._settings, **values)

    def set_mesh_config(self, config: Mapping[str, Any]) -> None:
        """Replace Istio's MeshConfig."""
        self._settings = replace(self._settings, mesh_config=config)

    def set_locality(self, pods: Iterable[str]) -> None:
        """Take the locality of this node from one of its gateway pods, by Workload.uid."""
        if self._mesh is None:
            return
        found = (locality_of(self._mesh.workload(uid)) for uid in pods)
        locality = next(("/".join(each) for each in found if each != NOWHERE), "")
        if locality != self._settings.locality:
            self._settings = replace(self._settings, locality=locality)

    def _apply_mesh(self, delta: MeshDelta) -> None:
        if delta.reset:
            self._next_mesh = MeshState(delta.registry_only)
            self._parts.clear()
        if self._next_mesh is not None:
            self._next_mesh.apply(delta)
            if delta.complete:
                self._mesh, self._next_mesh = self._next_mesh, None
                log.info("mesh synced", revision=delta.revision)
        elif self._mesh is not None:
            self._parts.append(delta)
            if not delta.more:
                parts, self._parts = self._parts, []
                for part in parts:
                    self._mesh.apply(part)

    def _apply_l7(self, delta: L7Delta) -> None:
        if delta.reset:
            self._next_l7 = L7Store()
            self.invalid.clear()
        store = self._next_l7 if self._next_l7 is not None else self._l7
        if store is None:
            return
        for key in delta.removed:
            self.invalid.pop(key, None)
            store.remove(_key(key))
        for body in delta.objects:
            try:
                store.put(l7_object(_decoder.decode(body.body)))
                self.invalid.pop(body.key, None)
            except (ValueError, RecursionError) as error:  # its last valid version stays
                self.invalid[body.key] = str(error)[:1024]
                log.warning("object invalid", object=body.key, error=str(error)[:1024])
        if delta.complete and self._next_l7 is not None:
            self._l7, self._next_l7 = self._next_l7, None


def _key(text: str) -> L7Key:
    """Of `L7ObjectBody.key`: `kind namespace/name` or `kind name`."""
    kind, _, place = text.partition(" ")
    namespace, _, name = place.rpartition("/")
    return L7Key(kind, namespace, name)
