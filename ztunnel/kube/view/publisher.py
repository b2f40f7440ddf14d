# SPDX-License-Identifier: Apache-2.0
"""Publishes changes of the cluster view to an ordered list of consumers.

    source --feeds--> ClusterView --drain--> ViewChange --> before() of each consumer, in order
                                                        --> apply() of each consumer, in order

The agent registers its consumers in one list, which states the reason for each position.

One object must not stop the others: if a consumer raises, it gets the objects of the change one by
one. An OSError concerns the node, not an object, and is raised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import structlog

from ztunnel.kube.view.cluster_view import ClusterView, ViewChange

log = structlog.get_logger()

_MAX_ERROR_CHARS = 320
_REMOVED = ("removed_workloads", "removed_services", "removed_policies", "removed_l7")
_ADDED = ("workloads", "services", "policies", "l7")


class ViewConsumer:
    """Reacts to changes of the view; both methods do nothing unless they are overridden.

    They run in the event loop and must not block. An empty change may come: `local_pods` is valid
    in it, too.
    """

    def before(self, change: ViewChange) -> None:
        """Revoke what rests on the old state. No consumer has applied the change yet."""

    def apply(self, change: ViewChange) -> None:
        """Apply the change. The consumers before this one in the list have applied it."""


class ViewPublisher:
    """One per view. Nothing else may drain the view."""

    def __init__(self, view: ClusterView) -> None:
        self._view = view
        self._consumers: tuple[ViewConsumer, ...] = ()

    def subscribe(self, consumers: tuple[ViewConsumer, ...]) -> None:
        """Set the consumers, in the order in which they are called. Once only."""
        if self._consumers:
            raise ValueError("the view has its consumers already")
        self._consumers = consumers

    def publish(self) -> None:
        """Call all consumers with what changed since the last call."""
        change = self._view.drain()
        for consumer in self._consumers:
            _notify(consumer.before, change)
        for consumer in self._consumers:
            _notify(consumer.apply, change)


def _notify(method: Callable[[ViewChange], None], change: ViewChange) -> None:
    try:
        method(change)
    except OSError:
        raise
    except Exception:
        log.exception("view consumer failed", consumer=method.__qualname__)
        for what, part in single_changes(change):
            _notify_single(method, what, part)


def _notify_single(method: Callable[[ViewChange], None], what: str, part: ViewChange) -> None:
    try:
        method(part)
    except OSError:
        raise
    except Exception as error:
        log.error(
            "object not applied",
            consumer=method.__qualname__,
            object=what,
            error=f"{type(error).__name__}: {error}"[:_MAX_ERROR_CHARS],
        )


def single_changes(change: ViewChange) -> Iterator[tuple[str, ViewChange]]:
    """Split a change: changes of one object each, with the name of the object; removals first."""
    empty = replace(change, **dict.fromkeys((*_REMOVED, *_ADDED), ()))  # type: ignore[arg-type]
    for field in (*_REMOVED, *_ADDED):
        for value in getattr(change, field):
            name = value if isinstance(value, str) else getattr(value, "uid", "") or value.key
            yield str(name), replace(empty, **{field: (value,)})  # type: ignore[arg-type]
