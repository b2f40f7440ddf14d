# SPDX-License-Identifier: Apache-2.0
"""Every consumer gets every object, whatever another object or consumer does."""

from __future__ import annotations

import pytest

from tests.support import kube_objects as objects
from ztunnel.kube.view.cluster_view import ClusterView, ViewChange
from ztunnel.kube.view.publisher import ViewConsumer, ViewPublisher


class Recorder(ViewConsumer):
    """Fails with `error` for a workload named `bad`."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error
        self.prepared: set[str] = set()
        self.applied: set[str] = set()

    def before(self, change: ViewChange) -> None:
        self._record(change, self.prepared)

    def apply(self, change: ViewChange) -> None:
        self._record(change, self.applied)

    def _record(self, change: ViewChange, into: set[str]) -> None:
        for each in change.workloads:
            if self._error and each.name == "bad":
                raise self._error
            into.add(each.name)
        into.update(each.name for each in (*change.services, *change.policies))
        into.update(change.removed_workloads)


def published(*consumers: Recorder) -> ClusterView:
    view = ClusterView("td", "c")
    publisher = ViewPublisher(view)
    publisher.subscribe(consumers)
    view.upsert(objects.pod("gone", "10.0.0.9"))
    publisher.publish()
    view.delete("Pod", "default", "gone")
    view.upsert(objects.pod("bad", "10.0.0.1"))
    view.upsert(objects.pod("a", "10.0.0.2"))
    view.upsert(objects.service("s", "10.96.0.1"))
    metadata = {"name": "deny", "namespace": "other"}
    view.upsert({"kind": "AuthorizationPolicy", "metadata": metadata, "spec": {"action": "DENY"}})
    publisher.publish()
    return view


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), RecursionError()], ids=repr)
def test_object_that_a_consumer_rejects_hides_no_other_object(error: Exception) -> None:
    failing, after = Recorder(error), Recorder()
    published(failing, after)
    others = {"gone", "a", "s", "deny", "c//Pod/default/gone"}
    assert failing.prepared == failing.applied == others
    assert after.prepared == after.applied == others | {"bad"}


def test_error_of_the_node_is_raised() -> None:
    with pytest.raises(OSError, match="map"):
        published(Recorder(OSError("map is full")))
