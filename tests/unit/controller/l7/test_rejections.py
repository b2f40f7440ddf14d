# SPDX-License-Identifier: Apache-2.0
"""Annotations of gateway pods, and Events."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

import pytest

from ztunnel.controller.l7.object_client import ObjectClient, Ref, event
from ztunnel.controller.l7.rejections import Rejections
from ztunnel.controller.l7.watches import Watches

ANNOTATION = "ztunnel.dev/rejected-config"
POD = Ref("Pod", "shop", "way-1")
ROUTES = "envoy.config.route.v3.RouteConfiguration"
LISTENER = "envoy.config.listener.v3.Listener"


class FakeCluster:
    """Pods by Ref: as the watch has them, and as the API server has them."""

    def __init__(self) -> None:
        self.watched: dict[Ref, dict[str, Any]] = {}
        self.stored: dict[Ref, dict[str, Any]] = {}
        self.reads = 0

    def of(self, ref: Ref) -> dict[str, Any] | None:
        return self.watched.get(ref)

    def get(self, ref: Ref) -> dict[str, Any] | None:
        self.reads += 1
        return self.stored.get(ref)

    def annotate(self, value: str) -> None:
        def pod(text: str) -> dict[str, Any]:
            metadata = {
                "namespace": POD.namespace,
                "name": POD.name,
                "labels": {"gateway.networking.k8s.io/gateway-name": "way"},
                "annotations": {ANNOTATION: text} if text else {},
            }
            return {"kind": "Pod", "metadata": metadata}

        self.watched[POD] = pod(value[:256])
        self.stored[POD] = pod(value)


def made() -> tuple[FakeCluster, Rejections]:
    cluster = FakeCluster()
    return cluster, Rejections(cast("ObjectClient", cluster), cast("Watches", cluster))


def annotation(*resources: tuple[str, str, str]) -> str:
    rows = [{"type": kind, "name": name, "message": text} for kind, name, text in resources]
    return json.dumps({"hash": str(hash(resources)), "resources": rows})


def test_long_annotation_is_read_from_the_api_server() -> None:
    cluster, rejections = made()
    cluster.annotate(annotation((ROUTES, "shop/web|80", "bad " + "x" * 400)))
    assert rejections.reconcile(POD)
    assert rejections.by_service()["shop/web"].startswith("bad x")
    assert rejections.of_gateway("shop/way") == ""


def test_unchanged_annotation_is_not_read_again() -> None:
    cluster, rejections = made()
    cluster.annotate(annotation((ROUTES, "shop/web|80", "bad")))
    assert rejections.reconcile(POD)
    assert not rejections.reconcile(POD)
    assert cluster.reads == 1


def test_rejection_ends_with_the_annotation_and_with_the_pod() -> None:
    cluster, rejections = made()
    ends: list[Callable[[], None]] = [lambda: cluster.annotate(""), cluster.watched.clear]
    for end in ends:
        cluster.annotate(annotation((LISTENER, "waypoint", "no")))
        assert rejections.reconcile(POD)
        assert "no" in rejections.of_gateway("shop/way")
        assert rejections.of_gateway("shop/other") == ""
        end()
        assert rejections.reconcile(POD)
        assert rejections.of_gateway("shop/way") == ""


@pytest.mark.parametrize("text", ["{", "[]", '{"resources": 3}', '{"resources": [3]}', "null"])
def test_malformed_annotation_is_ignored(text: str) -> None:
    cluster, rejections = made()
    cluster.annotate(text)
    rejections.reconcile(POD)
    assert rejections.by_service() == {}


def test_event_of_equal_content_has_an_equal_name() -> None:
    from datetime import UTC, datetime

    obj = {"kind": "HTTPRoute", "metadata": {"namespace": "shop", "name": "web", "uid": "1"}}
    now = datetime(2026, 1, 1, tzinfo=UTC)
    first, later = event(obj, "A", "m", now), event(obj, "A", "m", datetime.now(UTC))
    assert first["metadata"] == later["metadata"]
    assert event(obj, "A", "other", now)["metadata"] != first["metadata"]
    assert first["involvedObject"]["apiVersion"] == "gateway.networking.k8s.io/v1"
