# SPDX-License-Identifier: Apache-2.0
"""Serves Ingresses of our IngressClasses: applies the objects of the Gateway API that do so.

    Ingress, IngressClass, port names of Services
        ──▶ l7.kubernetes_ingress ──▶ server-side apply of HTTPRoutes and ListenerSets
    addresses of the Gateway ──▶ status of the Ingress

The objects are owned by their Ingresses, so that Kubernetes deletes them with those. An object of
the same name without our label is left alone and reported.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import structlog

from ztunnel.controller.l7.object_client import (
    REJECTED,
    ObjectClient,
    Ref,
    digest_of,
    for_all,
    mapping,
    ref_of,
)
from ztunnel.controller.l7.watches import INGRESS_KINDS, Watches
from ztunnel.kube.client.request import ApiError
from ztunnel.kube.objects.fields import Object
from ztunnel.l7.kubernetes_ingress.selection import ServedIngress, served_ingresses
from ztunnel.l7.kubernetes_ingress.translation import INGRESS_LABEL, PortNumber, translate

INGRESS, INGRESS_CLASS = INGRESS_KINDS
MADE_KINDS = ("HTTPRoute", "ListenerSet")
EVENT = "MeshIngressInvalid"

log = structlog.get_logger()


class Ingresses:
    """All Ingresses are reconciled together: some share a listener. Not thread-safe."""

    def __init__(self, client: ObjectClient, watches: Watches, port_number: PortNumber) -> None:
        self._client = client
        self._watches = watches
        self._port_number = port_number
        self._applied: dict[Ref, tuple[bytes, bytes]] = {}  # digests of the wish and of the result

    def reconcile(self) -> None:
        """Apply what is wanted, delete what is not, write statuses. Raises ApiError."""
        if not all(self._watches.is_listed(kind) for kind in (*INGRESS_KINDS, *MADE_KINDS)):
            return
        served = self._served()
        wanted: dict[Ref, Object] = {}
        by_gateway: dict[str, list[ServedIngress]] = defaultdict(list)
        for each in served:
            by_gateway[each.gateway].append(each)
        for gateway, members in sorted(by_gateway.items()):
            found = translate([each.ingress for each in members], gateway, self._port_number)
            wanted |= {ref_of(obj): obj for obj in found.objects}
            objects = {(each.ingress.namespace, each.ingress.name): each.obj for each in members}
            for problem in found.problems:
                obj = objects[problem.namespace, problem.name]
                self._client.emit_event(obj, EVENT, f"{problem.field}: {problem.message}")
        self._apply_all(wanted, served)
        self._prune(wanted)
        for_all(served, self._write_status)

    def _served(self) -> list[ServedIngress]:
        return served_ingresses(
            self._watches.objects(INGRESS),
            self._watches.objects(INGRESS_CLASS),
            lambda obj, text: self._client.emit_event(obj, EVENT, text),
        )

    def _apply_all(self, wanted: dict[Ref, Object], served: Iterable[ServedIngress]) -> None:
        owners = {each.ingress.uid: each.obj for each in served}
        for ref, obj in wanted.items():
            existing = self._watches.of(ref)
            known = digest_of(obj), digest_of((existing or {}).get("spec"))
            if existing is not None and self._applied.get(ref) == known and _is_made(existing):
                continue
            error = self._apply(ref, obj)
            for owner in (obj["metadata"].get("ownerReferences") or []) if error else ():
                self._client.emit_event(owners[owner["uid"]], EVENT, error)

    def _apply(self, ref: Ref, obj: Object) -> str:
        """Apply an object; returns why it could not be."""
        existing = self._client.get(ref)
        if existing is not None and not _is_made(existing):
            return f"{ref} exists and was not made for an Ingress; hint: rename one of them"
        try:
            result = self._client.apply(obj)
        except ApiError as error:
            if error.status not in REJECTED:
                raise
            return f"{ref}: the API server rejects it: {error.message}"
        self._applied[ref] = digest_of(obj), digest_of(result.get("spec"))
        log.info("ingress object applied", kind=ref.kind, object=f"{ref.namespace}/{ref.name}")
        return ""

    def _prune(self, wanted: dict[Ref, Object]) -> None:
        for kind in MADE_KINDS:
            for obj in self._watches.objects(kind):
                ref = ref_of(obj)
                if ref in wanted or not _is_made(obj):
                    continue
                current = self._client.get(ref)
                if current is not None and _is_made(current):
                    self._client.delete(current)
                    log.info(
                        "ingress object deleted", kind=kind, object=f"{ref.namespace}/{ref.name}"
                    )
                self._applied.pop(ref, None)

    def _write_status(self, served: ServedIngress) -> None:
        namespace, _, name = served.gateway.partition("/")
        gateway = self._watches.get("Gateway", namespace, name) or {}
        points = [
            {"hostname" if each.get("type") == "Hostname" else "ip": each["value"]}
            for each in mapping(gateway.get("status")).get("addresses") or []
        ]
        before = mapping(mapping(served.obj.get("status")).get("loadBalancer"))
        known = [
            {k: p[k] for k in ("ip", "hostname") if k in p} for p in before.get("ingress") or []
        ]
        if known != points:
            status = {"loadBalancer": {"ingress": points}}
            self._client.apply_status(served.obj, status, force=True)


def _is_made(obj: Object) -> bool:
    labels = mapping(obj["metadata"].get("labels"))
    owners = obj["metadata"].get("ownerReferences") or []
    return labels.get(INGRESS_LABEL) == "true" and any(o.get("kind") == INGRESS for o in owners)
