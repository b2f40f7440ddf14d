# SPDX-License-Identifier: Apache-2.0
"""Keeps the condition of every policy true, for whoever leads: one writer for all nodes.

    watch ──▶ the object as it is now ──▶ `kube.verdict.due` ──▶ apply to its status, if it differs

By server-side apply of that one condition and without force: what another controller (istiod)
holds is left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import structlog
from kubernetes.client.exceptions import ApiException
from kubernetes.informer import ADDED, DELETED, MODIFIED, SharedInformer

from ztunnel.controller.kube_client import MANAGER, TIMEOUT
from ztunnel.kube.client.list_watch import ListWatch, Resource
from ztunnel.kube.objects.fields import Object
from ztunnel.kube.objects.policy_status import JUDGED, due
from ztunnel.kube.sources.api_server import granted

_APPLY = "application/apply-patch+yaml"
_NOT_FOUND, _CONFLICT = 404, 409

log = structlog.get_logger()


def kinds() -> list[Resource]:
    """Of what agents read the kinds that are judged."""
    return [resource for resource in granted("") if resource.kind in JUDGED]


class PolicyWatch:
    """All policies as they are now. `changed(name)` is called from the watches' threads."""

    def __init__(self, api: Any, changed: Callable[[str], None]) -> None:
        self._changed = changed
        self._known: dict[str, Object] = {}
        self._watches = [ListWatch(api, kind, lambda: None) for kind in kinds()]
        self._informers = [self._informer(watch) for watch in self._watches]

    def get(self, name: str) -> Object | None:
        """A policy by the name that `changed` was called with."""
        return self._known.get(name)

    def start(self) -> None:
        """Begin to watch."""
        for informer in self._informers:
            informer.start()

    def stop(self) -> None:
        """End."""
        for watch in self._watches:
            watch.stop()
        for informer in self._informers:
            informer.stop()

    def _informer(self, watch: ListWatch) -> SharedInformer:
        kind = watch.resource.kind
        made = SharedInformer(watch.request)

        def came(obj: Object) -> None:
            name = _name(kind, obj)
            self._known[name] = {**obj, "kind": kind}
            self._changed(name)

        made.add_event_handler(ADDED, came)
        made.add_event_handler(MODIFIED, came)
        made.add_event_handler(DELETED, lambda obj: self._known.pop(_name(kind, obj), None))
        return made


class Verdicts:
    """Writes what is due. Thread-safe."""

    def __init__(self, api: Any, known: Callable[[str], Object | None]) -> None:
        self._api = api
        self._known = known
        self._paths = {kind.kind: kind.path for kind in kinds()}
        self._left: set[str] = set()  # policies whose status is another's: said once

    def handle(self, name: str) -> None:
        """Make one policy's condition true. Any exception means: try again."""
        obj = self._known(name)
        if obj is None:
            self._left.discard(name)
            return
        condition = due(obj, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
        if condition is None:
            return
        status = self._apply(obj, condition)
        if status == _CONFLICT and name not in self._left:
            self._left.add(name)
            log.info("policy's status is another controller's, left alone", policy=name)
        elif status < 300 and condition["status"] == "False":
            log.warning("policy refused", policy=name, reason=condition["message"])

    def _apply(self, obj: Object, condition: dict[str, object]) -> int:
        metadata, kind = obj["metadata"], obj["kind"]
        base, _, plural = self._paths[kind].rpartition("/")
        path = f"{base}/namespaces/{metadata['namespace']}/{plural}/{metadata['name']}/status"
        named = {key: metadata[key] for key in ("namespace", "name", "uid")}
        request = self._api.param_serialize(
            "PATCH",
            path,
            query_params=[("fieldManager", MANAGER)],
            header_params={"Accept": "application/json", "Content-Type": _APPLY},
            body={
                "apiVersion": base.removeprefix("/apis/"),
                "kind": kind,
                "metadata": named,  # with its uid: a later one of the name is another policy
                "status": {"conditions": [condition]},
            },
            auth_settings=["BearerToken"],
        )
        answer = self._api.call_api(*request, _request_timeout=TIMEOUT)
        text = answer.read()
        if answer.status not in (_NOT_FOUND, _CONFLICT) and answer.status >= 300:
            raise ApiException(status=answer.status, reason=text.decode(errors="replace")[:300])
        return int(answer.status)


def _name(kind: str, obj: Object) -> str:
    metadata = obj["metadata"]
    return f"{kind}/{metadata['namespace']}/{metadata['name']}"
