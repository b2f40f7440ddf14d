# SPDX-License-Identifier: Apache-2.0
"""A reflector with a cache, for kinds of which the objects themselves are needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ztunnel.kube.client.object_decoder import Event, EventType
from ztunnel.kube.client.reflector import Reflector, Resource
from ztunnel.kube.objects.fields import Object


class Informer:
    """Caches the objects of one kind by (namespace, name).

    `on_change(object)` is called in the reflector's thread, after the cache changed; a deleted
    object has metadata.namespace and metadata.name at least.
    """

    def __init__(
        self,
        client: Any,
        resource: Resource,
        on_change: Callable[[Object], None],
        *,
        on_listed: Callable[[], None] = lambda: None,
        resync: bool = False,
    ) -> None:
        self._objects: dict[tuple[str, str], Object] = {}
        self._on_change = on_change
        self.reflector = Reflector(client, resource, self._apply, on_listed, resync=resync)

    def get(self, namespace: str, name: str) -> Object | None:
        """The object as last seen; safe from any thread."""
        return self._objects.get((namespace, name))

    def names(self) -> list[str]:
        """The name of every object; safe from any thread."""
        return [name for _, name in list(self._objects)]

    def objects(self) -> list[Object]:
        """All objects as last seen; safe from any thread."""
        return list(self._objects.values())

    @property
    def is_listed(self) -> bool:
        """Whether the cache was complete once: an object that it lacks does not exist."""
        return self.reflector.lists > 0

    def _apply(self, event: Event) -> None:
        metadata = event.object["metadata"]
        key = metadata.get("namespace", ""), metadata["name"]
        if event.type is EventType.DELETE:
            self._objects.pop(key, None)
        else:
            self._objects[key] = event.object
        self._on_change(event.object)
