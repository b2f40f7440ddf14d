# SPDX-License-Identifier: Apache-2.0
"""The reflector against scripted API server responses."""

from __future__ import annotations

import json
from typing import Any

import pytest
from urllib3.exceptions import ProtocolError

from tests.support.scripted_api import Response, ScriptedClient, failure, reply
from ztunnel.kube.client import reflector
from ztunnel.kube.client.object_decoder import Event, EventType
from ztunnel.kube.client.reflector import Reflector, Resource, backoff_s
from ztunnel.kube.objects.fields import Undecodable

PODS = Resource("Pod", "/api/v1/pods")
POLICIES = Resource("AuthorizationPolicy", "/apis/security/policies", optional=True)
WAIT_S = 10.0


def pod(name: str, version: int = 1) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "shop", "resourceVersion": str(version)}}


def listed(*objects: dict[str, Any], version: str = "10", token: str = "") -> Response:
    metadata = {"resourceVersion": version, "continue": token}
    return reply({"metadata": metadata, "items": objects})


def watched(*events: tuple[str, dict[str, Any]], cut: bool = False) -> Response:
    lines = [json.dumps({"type": kind, "object": obj}).encode() + b"\n" for kind, obj in events]
    return Response(200, [*lines, *([ProtocolError("connection reset")] if cut else [])])


GONE = ("ERROR", {"kind": "Status", "code": 410, "message": "too old resource version"})


class Run:
    """A reflector that follows a script to its end."""

    def __init__(self, *script: Response, resource: Resource = PODS, **options: Any) -> None:
        self.client = ScriptedClient(*script)
        self.events: list[Event] = []
        self.listed = 0
        self.reflector = Reflector(self.client, resource, self.receive, self.count, **options)
        self.client.on_finished = self.reflector.stop
        self.reflector.start()
        assert self.client.finished.wait(WAIT_S)
        self.reflector.join(WAIT_S)

    def receive(self, event: Event) -> None:
        self.events.append(event)

    def count(self) -> None:
        self.listed += 1

    @property
    def names(self) -> list[str]:
        """Names of the objects, with a minus if deleted."""
        signs = {EventType.UPSERT: "", EventType.DELETE: "-"}
        return [signs[event.type] + event.object["metadata"]["name"] for event in self.events]

    @property
    def versions(self) -> list[str]:
        """The version that each watch started from; `list` for a page of a list."""
        return [query.get("resourceVersion", "list") for query in self.client.queries]


@pytest.fixture(autouse=True)
def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector, "BACKOFF_S", (0.0, 0.0))
    monkeypatch.setattr(reflector, "NOT_INSTALLED_RETRY_S", 0.0)


def test_pages_are_listed_then_watched_from_their_version() -> None:
    run = Run(listed(pod("a"), token="more"), listed(pod("b")), watched(("ADDED", pod("c", 11))))
    assert run.names == ["a", "b", "c"]
    assert run.versions == ["list", "list", "10", "11"]
    assert run.client.queries[1]["continue"] == "more"
    assert (run.listed, run.reflector.lists) == (1, 1)
    assert run.reflector.has("shop", "c")
    assert not run.reflector.has("shop", "d")


def test_cut_watch_continues_after_last_event_or_bookmark() -> None:
    bookmark = ("BOOKMARK", {"metadata": {"resourceVersion": "20"}})
    run = Run(
        listed(),
        watched(("ADDED", pod("a", 11)), cut=True),
        watched(bookmark, cut=True),
        watched(("DELETED", pod("a", 21))),
    )
    assert run.names == ["a", "-a"]
    assert run.versions == ["list", "10", "11", "20", "21"]
    assert run.reflector.lists == 1


def test_gone_lists_again_and_deletes_vanished_objects_first() -> None:
    run = Run(
        listed(pod("a"), pod("b")),
        watched(GONE),
        listed(pod("b"), pod("c"), version="30"),
        watched(),
    )
    assert run.names == ["a", "b", "-a", "b", "c"]
    assert run.versions == ["list", "10", "list", "30", "30"]
    assert not run.reflector.has("shop", "a")


def test_gone_as_http_status_lists_again() -> None:
    run = Run(listed(), failure(410), listed(version="30"), watched())
    assert run.versions == ["list", "10", "list", "30", "30"]


def test_list_that_expires_between_pages_is_restarted() -> None:
    run = Run(listed(pod("a"), token="more"), failure(410), listed(pod("b")), watched())
    assert run.names == ["a", "-a", "b"]
    assert run.reflector.lists == 1


def test_missing_optional_kind_counts_as_listed_until_it_is_installed() -> None:
    run = Run(failure(404), failure(404), listed(pod("p")), watched(), resource=POLICIES)
    assert run.names == ["p"]
    assert (run.listed, run.reflector.lists) == (3, 1)


def test_missing_required_kind_is_an_error() -> None:
    run = Run(failure(404, "not found"))
    assert run.listed == 0


def test_error_is_reported_and_retried() -> None:
    errors: list[str] = []

    class Recorder(Run):
        def receive(self, event: Event) -> None:
            errors.append(self.reflector.health.error)
            super().receive(event)

    run = Recorder(failure(403, "pods is forbidden"), listed(pod("a")), failure(500, "broken"))
    assert run.names == ["a"]
    assert errors == [""]
    assert run.reflector.health.error == "OSError: end of the script"
    assert not run.reflector.health.connected


def test_event_may_span_chunks() -> None:
    line = json.dumps({"type": "ADDED", "object": pod("a", 11)}).encode() + b"\n"
    run = Run(listed(), Response(200, [line[:20], line[20:] + line[:5], line[5:]]))
    assert run.names == ["a", "a"]


@pytest.mark.parametrize("line", [b"not JSON\n", b'{"type":"NEW","object":{}}\n'])
def test_malformed_event_ends_watch_without_losing_its_place(line: bytes) -> None:
    run = Run(listed(), Response(200, [line]), watched(("ADDED", pod("a", 11))))
    assert run.names == ["a"]
    assert run.versions == ["list", "10", "10", "11"]


def test_resync_delivers_every_object_again() -> None:
    run = Run(listed(pod("a")), watched(), listed(pod("a")), watched(), resync=True)
    assert run.names == ["a", "a"]
    assert run.reflector.lists == 2


class FailingRun(Run):
    """The consumer fails for the object `bad`, but for its deletion."""

    def receive(self, event: Event) -> None:
        super().receive(event)
        if event.type is EventType.UPSERT and event.object["metadata"]["name"] == "bad":
            raise RuntimeError("defect")


def test_failing_consumer_skips_no_other_object_of_list_or_watch() -> None:
    run = FailingRun(
        listed(pod("bad"), pod("a")), watched(("MODIFIED", pod("bad", 11)), ("ADDED", pod("b", 12)))
    )
    assert run.names == ["bad", "a", "bad", "b"]
    assert run.versions == ["list", "10", "12"]
    assert run.listed == 1


def test_failing_consumer_causes_another_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector, "RELIST_INTERVAL_S", 0.0)
    run = FailingRun(
        listed(),
        watched(("ADDED", pod("bad", 11)), ("ADDED", pod("late", 12))),
        listed(pod("late", 12), version="20"),
        watched(),
    )
    assert run.names == ["bad", "-bad", "late"]
    assert run.versions == ["list", "10", "list", "20", "20"]


def raw_list(*items: bytes, version: str = "10") -> Response:
    text = b'{"metadata":{"resourceVersion":"%s"},"items":[%s]}'
    return Response(200, [text % (version.encode(), b",".join(items))])


def raw_policy(name: str, extra: bytes = b"0") -> bytes:
    text = b'{"metadata":{"name":"%s","namespace":"shop","resourceVersion":"11"},"spec":{"x":%s}}'
    return text % (name.encode(), extra)


def raw_event(kind: str, obj: bytes) -> bytes:
    return b'{"type":"%s","object":%s}\n' % (kind.encode(), obj)


DEEP = b"[" * 5000 + b"]" * 5000


def test_undecodable_object_is_delivered_with_its_name_and_delays_no_other() -> None:
    run = Run(
        raw_list(raw_policy("deep", DEEP), raw_policy("a")),
        Response(
            200,
            [
                raw_event("ADDED", raw_policy("deeper", DEEP)),
                raw_event("MODIFIED", raw_policy("b")),
                raw_event("DELETED", raw_policy("deep", DEEP)),
            ],
        ),
        resource=POLICIES,
    )
    assert run.names == ["deep", "a", "deeper", "b", "-deep"]
    assert isinstance(run.events[0].object["spec"]["x"], Undecodable)
    assert run.reflector.lists == 1


def test_object_without_name_hides_no_other_and_deletes_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The unreadable object may be any of those that the list lacks."""
    monkeypatch.setattr(reflector, "RELIST_INTERVAL_S", 0.0)
    nameless = b'{"metadata":{"name":%s}}' % DEEP
    run = Run(
        raw_list(raw_policy("a")),
        watched(GONE),
        raw_list(nameless, raw_policy("b"), version="20"),
        watched(),
        raw_list(raw_policy("b"), version="30"),
        watched(),
        resource=POLICIES,
    )
    assert run.names == ["a", "b", "-a", "b"]
    assert run.versions == ["list", "10", "list", "20", "list", "30", "30"]


def test_event_that_stays_malformed_leads_to_a_list() -> None:
    run = Run(
        listed(),
        Response(200, [b"not JSON\n"]),
        Response(200, [b"not JSON\n"]),
        listed(pod("a"), version="20"),
        watched(),
    )
    assert run.names == ["a"]
    assert run.versions == ["list", "10", "10", "list", "20", "20"]


def test_field_selector_is_part_of_every_request() -> None:
    run = Run(listed(), watched(), resource=Resource("Node", "/nodes", "metadata.name=n1"))
    assert {query["fieldSelector"] for query in run.client.queries} == {"metadata.name=n1"}


def test_backoff_grows_to_its_limit_with_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector, "BACKOFF_S", (0.2, 5.0))
    for failures, longest in ((1, 0.2), (2, 0.4), (5, 3.2), (6, 5.0), (1000, 5.0)):
        assert longest / 2 <= backoff_s(failures) <= longest
