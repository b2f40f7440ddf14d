# SPDX-License-Identifier: Apache-2.0
"""Publishes changes of the cluster view to an ordered list of consumers.

    source --feeds--> ClusterView --drain--> ViewChange --> before() of each consumer, in order
                                                        --> apply() of each consumer, in order

The agent registers its consumers in one list, which states the reason for each position.
"""

from __future__ import annotations

from ztunnel.kube.view.cluster_view import ClusterView, ViewChange


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
            consumer.before(change)
        for consumer in self._consumers:
            consumer.apply(change)
