# SPDX-License-Identifier: Apache-2.0
"""What the library reads off our requests."""

from __future__ import annotations

from kubernetes.watch import Watch

from ztunnel.kube.client.list_watch import ListWatch, Resource


def test_a_watch_remembers_the_version_of_each_event() -> None:
    watch = Watch()
    requests = ListWatch(None, Resource("Pod", "/api/v1/pods"), lambda: None).request
    kind = watch.get_return_type(requests)
    assert watch.get_watch_argument_name(requests) == "watch"
    event = '{"type":"ADDED","object":{"kind":"Pod","metadata":{"resourceVersion":"41"}}}'
    assert watch.unmarshal_event(event, kind)["object"]["kind"] == "Pod"
    assert watch.resource_version == "41"
    bookmark = '{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"42"}}}'
    watch.unmarshal_event(bookmark, kind)
    assert watch.resource_version == "42"
