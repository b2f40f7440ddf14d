# SPDX-License-Identifier: Apache-2.0
"""The controller's model of the mesh: services with their waypoints, and the L7 objects.

It has the agents' view without pods and endpoints, so that the status agrees with what nodes do.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ztunnel.kube.objects.fields import Object, TranslateError, make_key
from ztunnel.kube.view.cluster_view import ClusterView
from ztunnel.l7.inputs import Inputs, Settings
from ztunnel.l7.objects import STORED_KINDS, L7Key, l7_object
from ztunnel.l7.store import L7Store
from ztunnel.mesh.state import MeshState

VIEW_KINDS = frozenset({"Namespace", "Service", "ServiceEntry", "Gateway"})


class Model:
    """Thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._lock = threading.RLock()
        self._view = ClusterView(
            settings.trust_domain,
            "Kubernetes",
            settings.cluster_domain,
            settings.root_namespace,
        )
        self._mesh = MeshState()
        self._store = L7Store()
        self._inputs = Inputs(self._store, self._mesh, settings)

    def put(self, obj: Object) -> str:
        """Add or replace an object; returns why it is invalid, or an empty text."""
        error = ""
        with self._lock:
            if obj["kind"] in VIEW_KINDS:
                self._view.upsert(obj)
            if obj["kind"] in STORED_KINDS:
                try:
                    self._store.put(l7_object(obj))
                except (ValueError, TranslateError) as invalid:
                    self._remove_from_store(obj)
                    error = str(invalid)
        return error

    def remove(self, obj: Object) -> None:
        """Remove an object by kind, namespace and name."""
        metadata = obj["metadata"]
        with self._lock:
            if obj["kind"] in VIEW_KINDS:
                self._view.delete(obj["kind"], metadata.get("namespace", ""), metadata["name"])
            if obj["kind"] in STORED_KINDS:
                self._remove_from_store(obj)

    @contextmanager
    def inputs(self) -> Iterator[Inputs]:
        """The current state; it must not be used after the block."""
        with self._lock:
            self._mesh.apply(self._view.drain())
            yield self._inputs

    def has_address(self, ip: str) -> bool:
        """Whether an address (canonical) belongs to the cluster."""
        with self._lock:
            return bool(self._view.entries.cluster_address_owner(ip))

    def service_entry_error(self, namespace: str, name: str) -> str:
        """Why a ServiceEntry is not in force, as far as Services decide; empty if it is.

        Nodes also reject entries that claim the address of a node or pod.
        """
        key = make_key("ServiceEntry", namespace, name)
        with self._lock:
            error = self._view.error_of(key)
            return "" if error == self._view.entries.warning(key) else error

    def port_number(self, namespace: str, service: str, name: str) -> int | None:
        """The number of a Service's port with a name; None if there is no such port."""
        with self.inputs() as inputs:
            found = inputs.mesh.service(f"{namespace}/{service}")
            ports = found.ports if found is not None else ()
            return next((each.port for each in ports if name and each.name == name), None)

    def _remove_from_store(self, obj: Object) -> None:
        metadata = obj["metadata"]
        namespace = metadata.get("namespace") or ""
        self._store.remove(L7Key(obj["kind"], namespace, metadata["name"]))
